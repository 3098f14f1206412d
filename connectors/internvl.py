"""InternVL's connector (Chen et al. 2024, arXiv 2404.16821)."""

import math
from typing import Literal

from torch import Tensor, nn

from ablate.core.fields import Size
from connectors.contract import Connector, register
from connectors.grids import check_divisible, pad_to_multiple, space_to_depth, tiled


@register("internvl")
class InternVL(Connector):
    """Squares of patches become one token each: LayerNorm of their channels side by side, then a two-layer MLP.

    Args:
        factor: side of a square.
        version: "v1" leaves the tokens in the order of the transposed grid, as the first releases do.
        pad: zeros at the bottom and the right of grids whose sides are no multiples; without, these are refused, as
            published.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        factor: Size = 2,
        version: Literal["v2", "v1"] = "v2",
        pad: bool = False,
    ) -> None:
        super().__init__(in_dim, out_dim)
        self.factor, self.version, self.pad = factor, version, pad
        merged = factor * factor * in_dim
        self.mlp = nn.Sequential(
            nn.LayerNorm(merged), nn.Linear(merged, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim)
        )

    def check_grid(self, height: int, width: int) -> None:
        if not self.pad:
            check_divisible('Connector "internvl"', height, width, self.factor)

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(tiled(height, width, self.factor))

    def forward(self, features: Tensor) -> Tensor:
        merged = space_to_depth(pad_to_multiple(features, self.factor), self.factor)
        if self.version == "v1":
            merged = merged.transpose(1, 2)
        return self.mlp(merged.flatten(1, 2))
