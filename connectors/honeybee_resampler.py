"""The resampler of Honeybee's comparison and mPLUG-Owl2's abstractor (Cha et al. 2023, arXiv 2312.06742; Ye et al.
2023, arXiv 2311.04257)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ablate.core.fields import Count, Size
from connectors.attention import CrossAttention, GatedMLP
from connectors.contract import Connector, register
from connectors.grids import check_heads, sincos_positions


class AbstractorLayer(nn.Module):
    """Latents attend to latents and patches, then SwiGLU. As released, the residual carries the normed latents.

    (n, q, width) -> (n, q, width).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_latents, self.norm_patches, self.norm_mlp = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.attention = CrossAttention(width, width, width=width, heads=heads)
        self.mlp = GatedMLP(width, 4 * width, width, norm=True, bias=True)

    def forward(self, latents: Tensor, patches: Tensor, places: Tensor, grid: Tensor) -> Tensor:
        latents, patches = self.norm_latents(latents), self.norm_patches(patches)
        seen = torch.cat([latents, patches], dim=1)
        at = torch.cat([places, grid])
        latents = latents + self.attention(latents + places, seen + at, seen)
        return latents + self.mlp(self.norm_mlp(latents))


@register("honeybee_resampler")
class HoneybeeResampler(Connector):
    """Latents that start from zeros attend to the patches in several layers, positions added to queries and keys.

    Args:
        side: the latents are a square of this side: 64 tokens of 8 x 8.
        depth: layers.
        width: of the layers; a multiple of 4.
        heads: of the attention.
    """

    test_fields: ClassVar[Mapping[str, Any]] = {"side": 3, "depth": 2, "width": 16, "heads": 2}

    def __init__(
        self, in_dim: int, out_dim: int, *, side: Size = 8, depth: Count = 6, width: Size = 1024, heads: Size = 16
    ) -> None:
        super().__init__(in_dim, out_dim)
        check_heads('Connector "honeybee_resampler"', width, heads)
        check_heads('Connector "honeybee_resampler" (positions)', width, 4)
        self.side = side
        self.projection = nn.Linear(in_dim, width)
        self.latents = nn.Parameter(torch.zeros(side * side, width))
        self.layers = nn.ModuleList(AbstractorLayer(width, heads) for _ in range(depth))
        self.out = nn.Linear(width, out_dim)

    def num_tokens(self, height: int, width: int) -> int:
        return self.side**2

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[1:3]
        patches = self.projection(features.flatten(1, 2))
        places = sincos_positions(self.side, self.side, patches.shape[-1], patches)
        grid = sincos_positions(height, width, patches.shape[-1], patches)
        latents = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(latents, patches, places, grid)
        return self.out(latents)
