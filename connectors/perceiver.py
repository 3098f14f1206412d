"""Flamingo's perceiver resampler (Alayrac et al. 2022, arXiv 2204.14198, Sec. 2.1), as TinyLLaVA has it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ablate.core.fields import Count, Size
from connectors.attention import CrossAttention
from connectors.contract import Connector, register


class PerceiverLayer(nn.Module):
    """Latents attend to the patches and to themselves, then an MLP; no biases. (n, q, dim) -> (n, q, dim)."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm_patches, self.norm_latents = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = CrossAttention(dim, dim, width=heads * head_dim, heads=heads, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False)
        )

    def forward(self, latents: Tensor, patches: Tensor) -> Tensor:
        normed = self.norm_latents(latents)
        latents = latents + self.attention(normed, torch.cat([self.norm_patches(patches), normed], dim=1))
        return latents + self.mlp(latents)


@register("perceiver")
class Perceiver(Connector):
    """Learned latents attend to all patches in several layers. The order of the patches does not matter.

    Args:
        latents: their number, the visual tokens of an image.
        depth: layers.
        heads: of the attention.
        head_dim: channels of a head.
    """

    test_fields: ClassVar[Mapping[str, Any]] = {"latents": 6, "depth": 2, "heads": 2, "head_dim": 8}

    def __init__(
        self, in_dim: int, out_dim: int, *, latents: Size = 64, depth: Count = 6, heads: Size = 8, head_dim: Size = 64
    ) -> None:
        super().__init__(in_dim, out_dim)
        self.projection = nn.Linear(in_dim, out_dim)
        self.latents = nn.Parameter(torch.randn(latents, out_dim))
        self.layers = nn.ModuleList(PerceiverLayer(out_dim, heads, head_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(out_dim)

    def num_tokens(self, height: int, width: int) -> int:
        return len(self.latents)

    def forward(self, features: Tensor) -> Tensor:
        patches = self.projection(features.flatten(1, 2))
        latents = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(latents, patches)
        return self.norm(latents)
