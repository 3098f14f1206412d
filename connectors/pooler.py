"""The convolutional pooler of LLaVA-NeXT's released code (github.com/LLaVA-VL/LLaVA-NeXT, `PoolerProjector`)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.fields import Size
from connectors.contract import Connector, register
from connectors.grids import check_at_least


@register("pooler")
class Pooler(Connector):
    """A convolution without overlap, GELU, a linear layer. Rows and columns that are left over are dropped.

    Args:
        stride: side and stride of the convolution.
    """

    reads_every_patch = False

    def __init__(self, in_dim: int, out_dim: int, *, stride: Size = 2) -> None:
        super().__init__(in_dim, out_dim)
        self.stride = stride
        self.pool = nn.Conv2d(in_dim, out_dim, stride, stride)
        self.projection = nn.Linear(out_dim, out_dim)

    def check_grid(self, height: int, width: int) -> None:
        check_at_least('Connector "pooler"', height, width, self.stride)

    def num_tokens(self, height: int, width: int) -> int:
        return (height // self.stride) * (width // self.stride)

    def forward(self, features: Tensor) -> Tensor:
        pooled = self.pool(features.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        return self.projection(F.gelu(pooled))
