"""Honeybee's D-Abstractor (Cha et al. 2023, arXiv 2312.06742, Sec. 3.3), on deformable attention (Zhu et al. 2020,
arXiv 2010.04159, Eq. 2).

Bilinear sampling is written as a product with the weights of all patches, which gives the same bits each time on every
device; PyTorch's `grid_sample` does not on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.fields import Count, Size
from connectors.attention import CrossAttention
from connectors.contract import Connector, register
from connectors.grids import average_to, check_heads


class DeformableAttention(nn.Module):
    """Each query reads the grid at a few points around its own.

    Queries (n, q, width) and grid (n, h, w, width) -> (n, q, width).

    Args:
        points: that each head reads.
    """

    ways: Tensor

    def __init__(self, width: int, heads: int, points: int) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.offsets, self.weights = nn.Linear(width, heads * points * 2), nn.Linear(width, heads * points)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        angle = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
        ways = torch.stack([angle.cos(), angle.sin()], dim=1)
        ways = ways / ways.abs().amax(dim=1, keepdim=True)
        steps = torch.arange(1, points + 1, dtype=torch.float32)
        # At first each head reads in a direction of its own, 1, 2, ... patches away. (The bias of the offsets, there.)
        self.register_buffer("ways", ways[:, None] * steps[None, :, None], persistent=False)

    def forward(self, queries: Tensor, grid: Tensor, references: Tensor) -> Tensor:
        """references (q, 2): x and y of each query's point, in 0 ... 1 of the grid's sides."""
        height, width = grid.shape[1:3]
        shape = (self.heads, self.points)
        offsets = self.offsets(queries).unflatten(-1, (*shape, 2)) + self.ways  # in patches
        weights = self.weights(queries).unflatten(-1, shape).softmax(dim=-1)  # (n, q, heads, points)
        place = references[:, None, None] * references.new_tensor([width, height]) - 0.5 + offsets
        columns = _hat(place[..., 0], width) * weights[..., None]  # (n, q, heads, points, w)
        rows = _hat(place[..., 1], height)  # (n, q, heads, points, h)
        read = torch.einsum("nqkph,nqkpw->nqkhw", rows, columns).flatten(3)  # of every patch, how much
        values = self.value(grid).flatten(1, 2).unflatten(-1, (self.heads, -1))  # (n, h w, heads, c)
        return self.out(torch.einsum("nqkl,nlkc->nqkc", read, values).flatten(2))


def _hat(place: Tensor, size: int) -> Tensor:
    """Weights of linear interpolation at `place`, zero outside: (...) -> (..., size)."""
    return F.relu(1 - (place[..., None] - torch.arange(size, device=place.device, dtype=place.dtype)).abs())


class DeformableLayer(nn.Module):
    """Queries attend to each other and read the grid, then an MLP; LayerNorm after each. (n, q, width) -> same."""

    def __init__(self, width: int, heads: int, points: int) -> None:
        super().__init__()
        self.attention = CrossAttention(width, width, width=width, heads=heads)
        self.read = DeformableAttention(width, heads, points)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, queries: Tensor, places: Tensor, grid: Tensor, references: Tensor) -> Tensor:
        asked = queries + places
        queries = self.norms[0](queries + self.attention(asked, asked, queries))
        queries = self.norms[1](queries + self.read(queries + places, grid, references))
        return self.norms[2](queries + self.mlp(queries))


@register("d_abstractor")
class DAbstractor(Connector):
    """Queries that begin as pooled patches read the grid around learned points by deformable attention.

    Args:
        side: the queries are a square of this side: 144 tokens of 12 x 12.
        depth: layers.
        width: of the layers.
        heads: of the attention.
        points: that each head reads.
    """

    # A point reads its neighbours alone.
    reads_every_patch = False
    test_fields: ClassVar[Mapping[str, Any]] = {"side": 3, "depth": 2, "width": 16, "heads": 2, "points": 2}

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        side: Size = 12,
        depth: Count = 6,
        width: Size = 1024,
        heads: Size = 16,
        points: Size = 4,
    ) -> None:
        super().__init__(in_dim, out_dim)
        check_heads('Connector "d_abstractor"', width, heads)
        self.side = side
        self.projection = nn.Linear(in_dim, width)
        middle = (torch.arange(side, dtype=torch.float32) + 0.5) / side
        self.references = nn.Parameter(torch.stack([middle.repeat(side), middle.repeat_interleave(side)], dim=1))
        self.places = nn.Parameter(0.02 * torch.randn(side * side, width))
        self.layers = nn.ModuleList(DeformableLayer(width, heads, points) for _ in range(depth))
        self.out = nn.Linear(width, out_dim)

    def num_tokens(self, height: int, width: int) -> int:
        return self.side**2

    def forward(self, features: Tensor) -> Tensor:
        grid = self.projection(features)
        queries = average_to(grid, self.side, self.side).flatten(1, 2)
        for layer in self.layers:
            queries = layer(queries, self.places, grid, self.references)
        return self.out(queries)
