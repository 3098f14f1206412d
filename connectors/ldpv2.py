"""MobileVLM V2's connector (Chu et al. 2024, arXiv 2402.03766, Sec. 3.2), also Cobra's (with side=14)."""

import math

from torch import Tensor, nn

from ablate.core.fields import Size
from connectors.contract import Connector, register
from connectors.grids import at_most, average_to
from connectors.mlp2x_gelu import two_layer_mlp


@register("ldpv2")
class LDPv2(Connector):
    """A two-layer MLP, average pooling to a fixed grid, and a depthwise convolution added as position.

    Args:
        side: rows and columns that are left: 144 tokens of 12 x 12. A side of the grid that is shorter stays.
    """

    def __init__(self, in_dim: int, out_dim: int, *, side: Size = 12) -> None:
        super().__init__(in_dim, out_dim)
        self.side = side
        self.mlp = two_layer_mlp(in_dim, out_dim)
        self.position = nn.Conv2d(out_dim, out_dim, 3, padding=1, groups=out_dim)

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(at_most(height, width, self.side))

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[1:3]
        pooled = average_to(self.mlp(features), *at_most(height, width, self.side)).permute(0, 3, 1, 2)
        return (pooled + self.position(pooled)).flatten(2).transpose(1, 2)
