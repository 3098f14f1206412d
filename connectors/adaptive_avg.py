"""DeCo: pooling before the MLP (Yao et al. 2024, arXiv 2405.20985)."""

import math

from torch import Tensor

from ablate.core.fields import Size
from connectors.contract import Connector, register
from connectors.grids import at_most, average_to
from connectors.mlp2x_gelu import two_layer_mlp


@register("adaptive_avg")
class AdaptiveAverage(Connector):
    """The patches are averaged to a smaller grid, then a two-layer MLP.

    Args:
        side: rows and columns that are left: 144 tokens of 12 x 12. A side of the grid that is shorter stays.
    """

    def __init__(self, in_dim: int, out_dim: int, *, side: Size = 12) -> None:
        super().__init__(in_dim, out_dim)
        self.side = side
        self.mlp = two_layer_mlp(in_dim, out_dim)

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(at_most(height, width, self.side))

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[1:3]
        return self.mlp(average_to(features, *at_most(height, width, self.side)).flatten(1, 2))
