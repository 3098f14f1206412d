"""Molmo's attention pooling (Deitke et al. 2024, arXiv 2409.17146, `attention_meanq`).

Published with two layers of the encoder side by side (name it twice, `encoder.layer=[-2, -9]`), without a stage of the
connector alone, and with other learning rates for its parts (`train.fields.rates`).
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ablate.core.fields import Size
from connectors.attention import CrossAttention, GatedMLP
from connectors.contract import Connector, register
from connectors.grids import check_heads, pad_to_multiple, tiled, windows


@register("molmo_pool")
class MolmoPool(Connector):
    """Each 2 x 2 patches become one token: their mean attends to them; then SwiGLU. Odd grids are padded with zeros.

    Args:
        width: of the attention; None for half of in_dim, which is one layer's.
        heads: of the attention.
        hidden: width of the SwiGLU; None for 4 out_dim.
    """

    test_fields: ClassVar[Mapping[str, Any]] = {"width": 8, "heads": 2}

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        width: Size | None = None,
        heads: Size = 16,
        hidden: Size | None = None,
    ) -> None:
        super().__init__(in_dim, out_dim)
        width = max(1, in_dim // 2) if width is None else width
        check_heads('Connector "molmo_pool"', width, heads)
        self.attention = CrossAttention(in_dim, in_dim, width=width, heads=heads, out_dim=width)
        self.mlp = GatedMLP(width, 4 * out_dim if hidden is None else hidden, out_dim)

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(tiled(height, width, 2))

    def forward(self, features: Tensor) -> Tensor:
        squares = windows(pad_to_multiple(features, 2), 2).flatten(1, 2)  # (n, tokens, 4, c)
        pooled = self.attention(squares.mean(dim=2, keepdim=True), squares)
        return self.mlp(pooled.squeeze(2))
