"""The Matryoshka Query Transformer (Hu et al. 2024, arXiv 2405.19315)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.core.fields import Size
from connectors.attention import attend
from connectors.contract import Connector, register
from connectors.grids import check_heads, sincos_positions


@register("mqt")
class MQT(Connector):
    """One cross-attention from learned queries, trained with the first m of them, an even m drawn at every step.

    As released, the keys are positions alone: the attention does not depend on the image. Queries do not see each
    other, so the first m tokens are the same however many are asked for.

    Args:
        queries: their number, even: the largest number of visual tokens.
        heads: of the attention; None for out_dim / 128.
    """

    trained_sizes = "sampled"
    test_fields: ClassVar[Mapping[str, Any]] = {"queries": 6, "heads": 2}

    def __init__(self, in_dim: int, out_dim: int, *, queries: Size = 256, heads: Size | None = None) -> None:
        super().__init__(in_dim, out_dim)
        if queries % 2:
            raise UserError(f"queries is {queries}, expected an even number.")
        self.heads = max(1, out_dim // 128) if heads is None else heads
        check_heads('Connector "mqt"', out_dim, self.heads)
        check_heads('Connector "mqt" (positions)', out_dim, 4)
        self.sizes = tuple(range(2, queries + 1, 2))
        self.queries = nn.Parameter(torch.empty(queries, out_dim))
        nn.init.normal_(self.queries, std=0.02)
        self.projection = nn.Linear(in_dim, out_dim, bias=False)
        self.norm_patches, self.norm_queries, self.norm_positions = (nn.LayerNorm(out_dim, eps=1e-6) for _ in range(3))
        self.query, self.key = nn.Linear(out_dim, out_dim), nn.Linear(out_dim, out_dim)
        self.value, self.out = nn.Linear(out_dim, out_dim), nn.Linear(out_dim, out_dim)
        self.post = nn.Linear(out_dim, out_dim, bias=False)

    def num_tokens(self, height: int, width: int, size: int | None = None) -> int:
        return len(self.queries) if size is None else size

    def forward(self, features: Tensor, *, size: int | None = None) -> Tensor:
        height, width = features.shape[1:3]
        patches = self.norm_patches(self.projection(features.flatten(1, 2)))
        keys = self.norm_positions(sincos_positions(height, width, self.out_dim, patches))
        queries = self.norm_queries(self.queries[:size])
        mixed = attend(self.query(queries), self.key(keys), self.value(patches), self.heads)
        return self.post(self.out(mixed))
