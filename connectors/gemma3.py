"""Gemma 3's connector (Gemma Team 2025, arXiv 2503.19786): 64 x 64 patches become 16 x 16 tokens."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.fields import Size
from ablate.ssm import RMSNorm
from connectors.contract import Connector, register
from connectors.grids import check_divisible, tiled


@register("gemma3")
class Gemma3(Connector):
    """Average pooling, an RMS norm, and a matrix without bias that starts at zero.

    Args:
        factor: side of a pooled square.
        pad: grids whose sides are no multiples end with smaller rectangles; without, these are refused, as published.
    """

    starts_at_zero = True
    test_fields: ClassVar[Mapping[str, Any]] = {"factor": 2}

    def __init__(self, in_dim: int, out_dim: int, *, factor: Size = 4, pad: bool = False) -> None:
        super().__init__(in_dim, out_dim)
        self.factor, self.pad = factor, pad
        self.norm = RMSNorm(in_dim, eps=1e-6)
        self.projection = nn.Parameter(torch.zeros(in_dim, out_dim))

    def check_grid(self, height: int, width: int) -> None:
        if not self.pad:
            check_divisible('Connector "gemma3"', height, width, self.factor)

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(tiled(height, width, self.factor))

    def forward(self, features: Tensor) -> Tensor:
        pooled = F.avg_pool2d(features.permute(0, 3, 1, 2), self.factor, ceil_mode=True).flatten(2).transpose(1, 2)
        return self.norm(pooled) @ self.projection
