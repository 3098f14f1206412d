"""Pooling after the MLP, at the language model's width: LLaVA-NeXT-Video (Zhang et al. 2024, arXiv 2410.02713)."""

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ablate.core.fields import Size
from connectors.contract import Connector, register
from connectors.grids import check_at_least, resize_to
from connectors.mlp2x_gelu import two_layer_mlp


@register("pool_after")
class PoolAfter(Connector):
    """A two-layer MLP on every patch, then the tokens are pooled.

    Args:
        mode: "bilinear" makes ceil(side / stride) rows and columns; "average" and "max" drop what is left over.
        stride: of the pooling.
    """

    reads_every_patch = False

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        mode: Literal["bilinear", "average", "max"] = "bilinear",
        stride: Size = 2,
    ) -> None:
        super().__init__(in_dim, out_dim)
        self.mode, self.stride = mode, stride
        self.mlp = two_layer_mlp(in_dim, out_dim)

    def check_grid(self, height: int, width: int) -> None:
        if self.mode != "bilinear":
            check_at_least(f'Connector "pool_after" with mode={self.mode}', height, width, self.stride)

    def num_tokens(self, height: int, width: int) -> int:
        rounded = math.ceil if self.mode == "bilinear" else math.floor
        return rounded(height / self.stride) * rounded(width / self.stride)

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.mlp(features)
        height, width = features.shape[1:3]
        if self.mode == "bilinear":
            pooled = resize_to(tokens, math.ceil(height / self.stride), math.ceil(width / self.stride))
            return pooled.flatten(1, 2)
        pool = F.avg_pool2d if self.mode == "average" else F.max_pool2d
        return pool(tokens.permute(0, 3, 1, 2), self.stride).flatten(2).transpose(1, 2)
