"""VILA's and NVILA's connectors (Lin et al. 2023, arXiv 2312.07533; Liu et al. 2024, arXiv 2412.04468)."""

import math
from typing import Literal

from torch import Tensor, nn

from connectors.contract import Connector, register
from connectors.grids import pad_to_multiple, space_to_depth, tiled


@register("mlp_downsample")
class MLPDownsample(Connector):
    """Squares of patches become one token each, grids padded with zeros: LayerNorm, then an MLP.

    Args:
        factor: side of a square. With 2 (VILA) the MLP has two layers; with 3 (NVILA) three, the first to 3 in_dim,
            with a second LayerNorm.
    """

    def __init__(self, in_dim: int, out_dim: int, *, factor: Literal[2, 3] = 2) -> None:
        super().__init__(in_dim, out_dim)
        self.factor = factor
        merged = factor * factor * in_dim
        if factor == 2:
            hidden = merged
            first: list[nn.Module] = [nn.LayerNorm(merged)]
        else:
            hidden = 3 * in_dim
            first = [nn.LayerNorm(merged), nn.Linear(merged, hidden), nn.GELU(), nn.LayerNorm(hidden)]
        self.mlp = nn.Sequential(*first, nn.Linear(hidden, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(tiled(height, width, self.factor))

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(space_to_depth(pad_to_multiple(features, self.factor), self.factor).flatten(1, 2))
