"""Qwen-VL's resampler (Bai et al. 2023, arXiv 2308.12966, Sec. 2.1), also MiniCPM-V's and Monkey's."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ablate.core.fields import Size
from connectors.attention import attend
from connectors.contract import Connector, register
from connectors.grids import check_heads, sincos_positions


@register("qwen_resampler")
class QwenResampler(Connector):
    """One cross-attention from learned queries, fixed 2-D positions added to queries and keys.

    Args:
        side: the queries are a square of this side: 256 tokens of 16 x 16.
        heads: of the attention; None for out_dim / 128.
    """

    test_fields: ClassVar[Mapping[str, Any]] = {"side": 3, "heads": 2}

    def __init__(self, in_dim: int, out_dim: int, *, side: Size = 16, heads: Size | None = None) -> None:
        super().__init__(in_dim, out_dim)
        self.heads = max(1, out_dim // 128) if heads is None else heads
        check_heads('Connector "qwen_resampler"', out_dim, self.heads)
        check_heads('Connector "qwen_resampler" (positions)', out_dim, 4)
        self.side = side
        self.queries = nn.Parameter(torch.empty(side * side, out_dim))
        nn.init.normal_(self.queries, std=0.02)
        self.projection = nn.Linear(in_dim, out_dim, bias=False)
        self.norm_patches, self.norm_queries = nn.LayerNorm(out_dim, eps=1e-6), nn.LayerNorm(out_dim, eps=1e-6)
        self.query, self.key = nn.Linear(out_dim, out_dim), nn.Linear(out_dim, out_dim)
        self.value, self.out = nn.Linear(out_dim, out_dim), nn.Linear(out_dim, out_dim)
        self.post = nn.Sequential(nn.LayerNorm(out_dim, eps=1e-6), nn.Linear(out_dim, out_dim, bias=False))

    def num_tokens(self, height: int, width: int) -> int:
        return self.side**2

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[1:3]
        patches = self.norm_patches(self.projection(features.flatten(1, 2)))
        places = sincos_positions(self.side, self.side, self.out_dim, patches)
        keys = patches + sincos_positions(height, width, self.out_dim, patches)
        queries = (self.norm_queries(self.queries) + places).expand(len(features), -1, -1)
        return self.post(self.out(attend(self.query(queries), self.key(keys), self.value(patches), self.heads)))
