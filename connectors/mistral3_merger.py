"""Mistral Small 3.1's patch merger and projector (transformers, `Mistral3PatchMerger`)."""

import math

from torch import Tensor, nn

from ablate.ssm import RMSNorm
from connectors.contract import Connector, register
from connectors.grids import check_divisible, pad_to_multiple, tiled, windows


@register("mistral3_merger")
class Mistral3Merger(Connector):
    """RMS norm, 2 x 2 patches merged by a matrix whose input is ordered by channel, then a two-layer MLP.

    Args:
        bias: of the MLP.
        pad: zeros at the bottom and the right of grids with odd sides; without, these are refused, as published.
    """

    def __init__(self, in_dim: int, out_dim: int, *, bias: bool = False, pad: bool = False) -> None:
        super().__init__(in_dim, out_dim)
        self.pad = pad
        self.norm = RMSNorm(in_dim, eps=1e-5)
        self.merge = nn.Linear(4 * in_dim, in_dim, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, out_dim, bias=bias), nn.GELU(), nn.Linear(out_dim, out_dim, bias=bias)
        )

    def check_grid(self, height: int, width: int) -> None:
        if not self.pad:
            check_divisible('Connector "mistral3_merger"', height, width, 2)

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(tiled(height, width, 2))

    def forward(self, features: Tensor) -> Tensor:
        squares = windows(pad_to_multiple(self.norm(features), 2), 2)  # (n, h / 2, w / 2, 4, c)
        return self.mlp(self.merge(squares.transpose(3, 4).flatten(3).flatten(1, 2)))
