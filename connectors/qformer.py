"""The Q-Former of BLIP-2 (Li et al. 2023, arXiv 2301.12597), which reads the question as in InstructBLIP (Dai et al.
2023, arXiv 2305.06500).

BERT's layers with random initial weights, as TinyLLaVA's; BLIP-2 begins from BERT-base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.fields import Count, Size
from connectors.attention import CrossAttention
from connectors.contract import Connector, Text, register
from connectors.grids import check_heads, sincos_positions


class FeedForward(nn.Module):
    """LayerNorm(x + MLP(x)): (..., width) -> (..., width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out, self.norm = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.out(F.gelu(self.hidden(x))))


class QFormerLayer(nn.Module):
    """Queries and question attend to each other, the queries perhaps to the patches; each has an MLP of its own.

    Args:
        sees: width of the patches, None for a layer that does not see them.
        carries_text: whether a later layer reads the question.
    """

    def __init__(self, width: int, heads: int, sees: int | None, carries_text: bool) -> None:
        super().__init__()
        self.attention, self.norm = CrossAttention(width, width, width=width, heads=heads), _norm(width)
        self.cross = None if sees is None else CrossAttention(width, sees, width=width, heads=heads)
        self.cross_norm = None if sees is None else _norm(width)
        self.mlp = FeedForward(width)
        self.text_mlp = FeedForward(width) if carries_text else None

    def forward(
        self, queries: Tensor, patches: Tensor, text: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        count = queries.shape[1]
        both = queries if text is None else torch.cat([queries, text], dim=1)
        asking = both if self.text_mlp is not None else queries
        asking = self.norm(asking + self.attention(asking, both, mask=mask))
        queries, words = asking[:, :count], asking[:, count:]
        if self.cross is not None and self.cross_norm is not None:
            queries = self.cross_norm(queries + self.cross(queries, patches))
        return self.mlp(queries), self.text_mlp(words) if text is not None and self.text_mlp is not None else None


@register("qformer")
class QFormer(Connector):
    """Learned queries attend to the patches in every second layer of a small BERT that also reads the question.

    Args:
        queries: their number, the visual tokens of an image.
        depth: layers.
        width: of the layers; a multiple of 4.
        heads: of the attention.
        read_question: as InstructBLIP; False is BLIP-2, which sees the image alone.
    """

    test_fields: ClassVar[Mapping[str, Any]] = {"queries": 6, "depth": 3, "width": 16, "heads": 2}

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        queries: Size = 32,
        depth: Count = 12,
        width: Size = 768,
        heads: Size = 12,
        read_question: bool = True,
    ) -> None:
        super().__init__(in_dim, out_dim)
        check_heads('Connector "qformer"', width, heads)
        check_heads('Connector "qformer" (positions)', width, 4)
        self.reads_text = read_question  # type: ignore[misc]  # of the instance
        self.norm_patches = nn.LayerNorm(in_dim)
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.norm_queries = _norm(width)
        self.read = nn.Sequential(nn.Linear(out_dim, width), _norm(width)) if read_question else None
        self.layers = nn.ModuleList(
            QFormerLayer(width, heads, in_dim if i % 2 == 0 else None, read_question and i < depth - 1)
            for i in range(depth)
        )
        self.projection = nn.Linear(width, out_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.queries, std=0.02)

    def num_tokens(self, height: int, width: int) -> int:
        return len(self.queries)

    def forward(self, features: Tensor, *, text: Text | None = None) -> Tensor:
        patches = self.norm_patches(features.flatten(1, 2))
        queries = self.norm_queries(self.queries).expand(len(features), -1, -1)
        words, mask = None, None
        if self.read is not None and text is not None:
            place = sincos_positions(1, text.mask.shape[1], queries.shape[-1], queries)
            words = self.read(text.embeddings.to(queries.dtype)) + place
            mask = torch.cat([text.mask.new_ones(queries.shape[:2]), text.mask], dim=1)
        for layer in self.layers:
            queries, words = layer(queries, patches, words, mask)
            mask = mask if words is not None else None
        return self.projection(queries)


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-12)
