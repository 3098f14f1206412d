"""Idefics2's connector (Laurencon et al. 2024, arXiv 2405.02246, Sec. 3.2)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ablate.core.fields import Count, Size
from ablate.ssm import RMSNorm
from connectors.attention import GatedMLP, attend
from connectors.contract import Connector, register
from connectors.grids import check_heads


class ResamplerLayer(nn.Module):
    """Latents attend to patches and latents with grouped queries, then SwiGLU; RMS norms. (n, q, dim) -> same."""

    def __init__(self, dim: int, heads: int, groups: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_latents, self.norm_patches, self.norm_mlp = (RMSNorm(dim, eps=1e-6) for _ in range(3))
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key = nn.Linear(dim, groups * head_dim, bias=False)
        self.value = nn.Linear(dim, groups * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim, bias=False)
        self.mlp = GatedMLP(dim, 4 * dim, dim)

    def forward(self, latents: Tensor, patches: Tensor) -> Tensor:
        normed = self.norm_latents(latents)
        seen = torch.cat([self.norm_patches(patches), normed], dim=1)
        latents = latents + self.out(attend(self.query(normed), self.key(seen), self.value(seen), self.heads))
        return latents + self.mlp(self.norm_mlp(latents))


@register("idefics2")
class Idefics2(Connector):
    """SwiGLU to the language model's width, then latents that start from ones attend to the patches.

    All latents are equal at the start, and so are the tokens: only the language model's order tells them apart.

    Args:
        latents: their number, the visual tokens of an image.
        depth: layers.
        heads: of the queries.
        groups: heads of the keys and values, which serve the queries' in turn; must divide `heads`.
        head_dim: channels of a head.
        hidden: width of the SwiGLU before the layers; None for 4 out_dim.
    """

    test_fields: ClassVar[Mapping[str, Any]] = {"latents": 6, "depth": 2, "heads": 4, "groups": 2, "head_dim": 8}

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        latents: Size = 64,
        depth: Count = 3,
        heads: Size = 16,
        groups: Size = 4,
        head_dim: Size = 96,
        hidden: Size | None = None,
    ) -> None:
        super().__init__(in_dim, out_dim)
        check_heads('Connector "idefics2" (groups of heads)', heads, groups)
        self.projection = GatedMLP(in_dim, 4 * out_dim if hidden is None else hidden, out_dim)
        self.latents = nn.Parameter(torch.ones(latents, out_dim))
        self.layers = nn.ModuleList(ResamplerLayer(out_dim, heads, groups, head_dim) for _ in range(depth))
        self.norm = RMSNorm(out_dim, eps=1e-6)

    def num_tokens(self, height: int, width: int) -> int:
        return len(self.latents)

    def forward(self, features: Tensor) -> Tensor:
        patches = self.projection(features.flatten(1, 2))
        latents = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(latents, patches)
        return self.norm(latents)
