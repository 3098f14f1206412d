"""Qwen2-VL's patch merger (Wang et al. 2024, arXiv 2409.12191)."""

import math

from torch import Tensor, nn

from connectors.contract import Connector, register
from connectors.grids import check_divisible, pad_to_multiple, space_to_depth, tiled


@register("qwen2vl_merger")
class Qwen2VLMerger(Connector):
    """LayerNorm of every patch, 2 x 2 patches side by side, then a two-layer MLP of their width.

    Args:
        pad: zeros at the bottom and the right of grids with odd sides; without, these are refused, as published.
    """

    def __init__(self, in_dim: int, out_dim: int, *, pad: bool = False) -> None:
        super().__init__(in_dim, out_dim)
        self.pad = pad
        self.norm = nn.LayerNorm(in_dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(4 * in_dim, 4 * in_dim), nn.GELU(), nn.Linear(4 * in_dim, out_dim))

    def check_grid(self, height: int, width: int) -> None:
        if not self.pad:
            check_divisible('Connector "qwen2vl_merger"', height, width, 2)

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(tiled(height, width, 2))

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(space_to_depth(pad_to_multiple(self.norm(features), 2), 2).flatten(1, 2))
