"""Cambrian-1's spatial vision aggregator (Tong et al. 2024, arXiv 2406.16860, Sec. 4), before the language model.

Cambrian also lets it see again within the language model's layers; that is out of a connector's scope.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ablate.core.fields import Count, Size
from connectors.attention import attend
from connectors.contract import Connector, Features, register
from connectors.grids import check_heads, pad_to_multiple, tiled, windows
from connectors.mlp2x_gelu import two_layer_mlp


class AggregatorLayer(nn.Module):
    """A query attends to its window of every tower: queries (n, q, width) -> same.

    The query is read with the mean of its window of the first tower at its side; a LayerNorm after the attention and a
    residual around all.
    """

    def __init__(self, width: int, heads: int, towers: int) -> None:
        super().__init__()
        self.heads = heads
        self.context = nn.Linear(2 * width, width, bias=False)
        self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
        self.keys = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False)) for _ in range(towers)
        )
        self.values = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False)) for _ in range(towers)
        )
        self.attended = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Sequential(nn.Linear(width, width, bias=False), nn.GELU(), nn.Linear(width, width, bias=False))

    def forward(self, queries: Tensor, views: list[Tensor], mask: Tensor) -> Tensor:
        """views: (n, q, window, width) of each tower; mask (n, q, all windows) bool, which patches show the image."""
        first = mask[..., : views[0].shape[2], None]
        mean = (views[0] * first).sum(dim=2) / first.sum(dim=2).clamp(min=1)
        asked = self.context(torch.cat([queries, mean], dim=-1))
        keys = torch.cat([key(view) for key, view in zip(self.keys, views, strict=True)], dim=2)
        values = torch.cat([value(view) for value, view in zip(self.values, views, strict=True)], dim=2)
        seen = attend(self.query(asked).unsqueeze(2), keys, values, self.heads, mask).squeeze(2)
        return queries + self.out(self.norm(asked + self.attended(seen)))


@register("sva")
class SVA(Connector):
    """One learned query, repeated over a grid: each copy attends to its window of every tower.

    Args:
        factor: side of a window in patches.
        depth: layers.
        width: of the layers.
        heads: of the attention.
    """

    reads_towers = True
    test_fields: ClassVar[Mapping[str, Any]] = {"width": 16, "heads": 2, "depth": 2}

    def __init__(
        self,
        in_dim: tuple[int, ...],
        out_dim: int,
        *,
        factor: Size = 1,
        depth: Count = 3,
        width: Size = 1024,
        heads: Size = 16,
    ) -> None:
        super().__init__(in_dim, out_dim)
        check_heads('Connector "sva"', width, heads)
        self.factor = factor
        self.read = nn.ModuleList(
            nn.Sequential(two_layer_mlp(channels, width), nn.LayerNorm(width)) for channels in in_dim
        )
        self.query = nn.Parameter(torch.randn(width) / width**0.5)
        self.layers = nn.ModuleList(AggregatorLayer(width, heads, len(in_dim)) for _ in range(depth))
        self.mlp = two_layer_mlp(width, out_dim)

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(tiled(height, width, self.factor))

    def forward(self, features: Features) -> Tensor:  # type: ignore[override]  # reads_towers
        views, masks = [], []
        for read, part in zip(self.read, features.maps, strict=True):
            there = torch.ones_like(part.values[..., 0], dtype=torch.bool) if part.mask is None else part.mask
            views.append(self._windows(read(part.values)))
            masks.append(self._windows(there[..., None].to(part.values.dtype)).squeeze(-1) > 0)
        mask = torch.cat(masks, dim=2)
        mask = mask | ~mask.any(dim=2, keepdim=True)  # a window without any of the image sees its zeros
        queries = self.query.expand(*views[0].shape[:2], -1)
        for layer in self.layers:
            queries = layer(queries, views, mask)
        return self.mlp(queries)

    def _windows(self, values: Tensor) -> Tensor:
        """(n, h, w, c) -> (n, queries, factor * factor, c)."""
        return windows(pad_to_multiple(values, self.factor), self.factor).flatten(1, 2)
