"""Baselines for whatever reduces tokens: keep some patches, whatever they show, and one linear layer.

A connector that does no better at the same number of tokens has learned nothing about which patches matter.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ablate.core.fields import CountOrZero, Size
from connectors.contract import Connector, register


class TokenChoice(Connector):
    """One linear layer on the patches that `_choose` names; all of them where the grid has no more."""

    reads_every_patch = False
    test_fields: ClassVar[Mapping[str, Any]] = {"tokens": 4}

    def __init__(self, in_dim: int, out_dim: int, *, tokens: Size = 64) -> None:
        super().__init__(in_dim, out_dim)
        self.tokens = tokens
        self.projection = nn.Linear(in_dim, out_dim)

    def num_tokens(self, height: int, width: int) -> int:
        return min(self.tokens, height * width)

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[1:3]
        chosen = self._choose(self.num_tokens(height, width), height * width)
        kept = torch.from_numpy(np.ascontiguousarray(chosen)).to(features.device)
        return self.projection(features.flatten(1, 2)[:, kept])

    def _choose(self, tokens: int, patches: int) -> np.ndarray:
        """The numbers of the patches that stay: int64 (tokens,), in reading order."""
        raise NotImplementedError


@register("first_tokens")
class FirstTokens(TokenChoice):
    """The first patches in reading order, the top of the image.

    Args:
        tokens: how many.
    """

    def _choose(self, tokens: int, patches: int) -> np.ndarray:
        return np.arange(tokens)


@register("uniform_tokens")
class UniformTokens(TokenChoice):
    """Patches at equal distances in reading order.

    Args:
        tokens: how many.
    """

    def _choose(self, tokens: int, patches: int) -> np.ndarray:
        return (2 * np.arange(tokens) + 1) * patches // (2 * tokens)


@register("random_tokens")
class RandomTokens(TokenChoice):
    """Patches chosen by lot, once for each grid: the same ones in every image and run.

    Args:
        tokens: how many.
        draw: another number chooses others.
    """

    def __init__(self, in_dim: int, out_dim: int, *, tokens: Size = 64, draw: CountOrZero = 0) -> None:
        super().__init__(in_dim, out_dim, tokens=tokens)
        self.draw = draw

    def _choose(self, tokens: int, patches: int) -> np.ndarray:
        return np.sort(np.random.default_rng(self.draw).permutation(patches)[:tokens])
