"""The convolutional connector of Cambrian-1's released code (Tong et al. 2024, arXiv 2406.16860)."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from connectors.contract import Connector, register
from connectors.grids import tiled
from connectors.mlp2x_gelu import two_layer_mlp


@register("cambrian_conv")
class CambrianConv(Connector):
    """A 3 x 3 convolution that halves both sides, GELU, a two-layer MLP."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.conv = nn.Conv2d(in_dim, in_dim, 3, stride=2, padding=1, bias=False)
        self.mlp = two_layer_mlp(in_dim, out_dim)

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(tiled(height, width, 2))

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(F.gelu(self.conv(features.permute(0, 3, 1, 2))).flatten(2).transpose(1, 2))
