"""Attention for the connectors that ask the patches with queries. Shapes: n images, q queries, k keys."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of several heads, whose channels stand one after another.

    Plain products, which give the same bits each time on every device. With fewer heads in the keys than in the
    queries, neighbouring heads share them (grouped queries, Ainslie et al. 2023, arXiv 2305.13245).

    Args:
        query: (..., q, heads * p). key: (..., k, groups * p). value: (..., k, groups * p).
        mask: (..., k) bool, the keys that are there; a row needs at least one. None for all.

    Returns:
        (..., q, heads * p).
    """
    p = query.shape[-1] // heads
    groups = key.shape[-1] // p
    query = query.unflatten(-1, (groups, heads // groups, p)).movedim(-4, -2)  # (..., g, heads / g, q, p)
    key = key.unflatten(-1, (groups, p)).movedim(-3, -2).unsqueeze(-3)  # (..., g, 1, k, p)
    value = value.unflatten(-1, (groups, p)).movedim(-3, -2).unsqueeze(-3)
    scores = query @ key.transpose(-1, -2) / math.sqrt(p)
    if mask is not None:
        scores = scores.masked_fill(~mask[..., None, None, None, :], -torch.inf)
    weights = scores.float().softmax(dim=-1).to(value.dtype) if scores.dtype != torch.float64 else scores.softmax(-1)
    return (weights @ value).movedim(-2, -4).flatten(-3)


class CrossAttention(nn.Module):
    """Queries (..., q, query_dim) attend to keys (..., k, key_dim): -> (..., q, out_dim).

    Args:
        width: of all heads together.
        out_dim: None for query_dim.
        bias: of the four projections.
    """

    def __init__(
        self, query_dim: int, key_dim: int, *, width: int, heads: int, out_dim: int | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(query_dim, width, bias=bias)
        self.key = nn.Linear(key_dim, width, bias=bias)
        self.value = nn.Linear(key_dim, width, bias=bias)
        self.out = nn.Linear(width, query_dim if out_dim is None else out_dim, bias=bias)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        values = keys if values is None else values
        return self.out(attend(self.query(queries), self.key(keys), self.value(values), self.heads, mask))


class GatedMLP(nn.Module):
    """SwiGLU without biases (Shazeer 2020, arXiv 2002.05202): (..., in_dim) -> (..., out_dim).

    Args:
        norm: a LayerNorm of the hidden channels, as in EVA-02 (arXiv 2303.11331).
    """

    def __init__(self, in_dim: int, hidden: int, out_dim: int, *, norm: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(in_dim, hidden, bias=bias)
        self.value = nn.Linear(in_dim, hidden, bias=bias)
        self.norm = nn.LayerNorm(hidden) if norm else nn.Identity()
        self.out = nn.Linear(hidden, out_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(F.silu(self.gate(x)) * self.value(x)))
