"""MobileVLM's connector, the lightweight downsample projector (Chu et al. 2023, arXiv 2312.16886, Sec. 3.4)."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from connectors.contract import Connector, register
from connectors.grids import tiled
from connectors.mlp2x_gelu import two_layer_mlp


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (n, c, h, w)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class DepthwiseBlock(nn.Module):
    """MobileNetV3's block without expansion (Howard et al. 2019, arXiv 1905.02244), with LayerNorm: depthwise 3 x 3
    convolution, squeeze-and-excitation, pointwise convolution; a residual at stride 1. (n, c, h, w) -> (n, c, h', w').
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 4)
        self.stride = stride
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        self.norm = ChannelNorm(channels)
        self.squeeze, self.excite = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.out_norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm(self.depthwise(x)))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean(dim=(2, 3), keepdim=True)))))
        y = self.out_norm(self.pointwise(y))
        return x + y if self.stride == 1 else y


@register("ldp")
class LDP(Connector):
    """A two-layer MLP, then two depthwise blocks, the second of which halves both sides: 576 patches, 144 tokens."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.mlp = two_layer_mlp(in_dim, out_dim)
        self.blocks = nn.Sequential(DepthwiseBlock(out_dim, stride=1), DepthwiseBlock(out_dim, stride=2))

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(tiled(height, width, 2))

    def forward(self, features: Tensor) -> Tensor:
        return self.blocks(self.mlp(features).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
