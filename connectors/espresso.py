"""CREMA's espresso fusion (Yu et al. 2024, arXiv 2402.05889, Sec. 3.3): tokens do not grow with the towers.

CREMA has a Q-Former for each modality; here each tower has a perceiver, and the fusion follows the paper's text: the
queries of the other towers are put together by a linear layer, gated by themselves, and added to the first tower's.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ablate.core.fields import Count, Size
from connectors.contract import Connector, Features, register
from connectors.perceiver import Perceiver


@register("espresso")
class Espresso(Connector):
    """A perceiver for each tower; those of all but the first are fused to one set of tokens, gated and added.

    Args:
        latents: visual tokens of an image, whatever the number of towers.
        depth: layers of each perceiver.
        heads: of the attention.
        head_dim: channels of a head.
    """

    reads_towers = True
    test_fields: ClassVar[Mapping[str, Any]] = {"latents": 6, "depth": 2, "heads": 2, "head_dim": 8}

    def __init__(
        self,
        in_dim: tuple[int, ...],
        out_dim: int,
        *,
        latents: Size = 32,
        depth: Count = 2,
        heads: Size = 8,
        head_dim: Size = 64,
    ) -> None:
        super().__init__(in_dim, out_dim)
        self.latents = latents
        self.read = nn.ModuleList(
            Perceiver(channels, out_dim, latents=latents, depth=depth, heads=heads, head_dim=head_dim)
            for channels in in_dim
        )
        others = len(in_dim) - 1
        self.fuse = nn.Linear(others * out_dim, out_dim) if others else None
        self.gate = nn.Linear(out_dim, out_dim) if others else None

    def num_tokens(self, height: int, width: int) -> int:
        return self.latents

    def forward(self, features: Features) -> Tensor:  # type: ignore[override]  # reads_towers
        first, *others = (read(part.values) for read, part in zip(self.read, features.maps, strict=True))
        if self.fuse is None or self.gate is None:
            return first
        fused = self.fuse(torch.cat(others, dim=-1))
        return first + torch.sigmoid(self.gate(fused)) * fused
