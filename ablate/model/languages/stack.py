"""A stack of residual layers between an embedding and a head: what mamba1, mamba2 and decoder have in common.

The parameter names are those of mamba-ssm's `MambaLMHeadModel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ablate.core.errors import UserError
from ablate.model.languages.attention import Attention
from ablate.model.languages.base import LanguageModel, LanguageSizes
from ablate.ssm import RMSNorm

# One entry per layer, as its mixer makes it.
LanguageState = tuple[Any, ...]


class Block(nn.Module):
    """Pre-norm residual block around one mixer, and perhaps another around an MLP (mamba-ssm's `norm2` and `mlp`).

    A mixer is a module like `Mamba2Mixer`: forward(hidden, mask, seq_idx, state, return_state), step, init_state.
    """

    mixer: Any
    mlp: Any

    def __init__(self, d_model: int, mixer: nn.Module, mlp: nn.Module | None = None, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model, norm_eps)
        self.mixer = mixer
        if mlp is not None:
            self.norm2 = RMSNorm(d_model, norm_eps)
        self.mlp = mlp

    def outputs(self) -> list[nn.Linear]:
        """The projections onto the residual stream."""
        return [self.mixer.out_proj, *([] if self.mlp is None else [self.mlp.fc2])]

    def normed(self, residual: Tensor) -> Tensor:
        """The mixer's input: the norm reads the residual in its own precision, the result is in the weights' dtype."""
        return self.norm(residual).to(self.norm.weight.dtype)

    def add(self, residual: Tensor, mixed: Tensor) -> Tensor:
        """The residual stream after the block, given the mixer's output."""
        residual = residual + mixed
        return residual if self.mlp is None else residual + self.mlp(self.norm2(residual).to(self.norm2.weight.dtype))


class Backbone(nn.Module):
    """All but the head: embeddings (b, l, d_model) -> hidden states after the last norm (b, l, d_model).

    gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: LanguageSizes, layers: Iterable[Block], norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.layers: Any = nn.ModuleList(layers)  # of Block
        self.norm_f = RMSNorm(config.d_model, norm_eps)
        self.residual_in_fp32 = config.residual_in_fp32
        self.gradient_checkpointing = False

    def forward(
        self,
        inputs_embeds: Tensor,
        *,
        mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        state: LanguageState | None = None,
        return_state: bool = False,
        max_length: int | None = None,
    ) -> Tensor | tuple[Tensor, LanguageState]:
        """As `LanguageModel.hidden`."""
        residual = self._residual(inputs_embeds)
        states = []
        for layer, before in zip(self.layers, state or [None] * len(self.layers), strict=True):
            kwargs: dict[str, Any] = {"mask": mask, "seq_idx": seq_idx, "state": before}
            if return_state:
                if isinstance(layer.mixer, Attention):  # the only state whose size depends on the tokens
                    kwargs["max_length"] = max_length
                out, after = layer.mixer(layer.normed(residual), return_state=True, **kwargs)
                residual = layer.add(residual, out)
                states.append(after)
            elif self.gradient_checkpointing and torch.is_grad_enabled():
                residual = checkpoint(_apply, layer, residual, kwargs, use_reentrant=False)
            else:
                residual = _apply(layer, residual, kwargs)
        hidden = self.norm_f(residual).to(self.norm_f.weight.dtype)
        return (hidden, tuple(states)) if return_state else hidden

    def step(self, embedding: Tensor, state: LanguageState, *, inplace: bool = False) -> tuple[Tensor, LanguageState]:
        """As `LanguageModel.step`."""
        residual = self._residual(embedding)
        states = []
        for layer, before in zip(self.layers, state, strict=True):
            out, after = layer.mixer.step(layer.normed(residual), before, inplace=inplace)
            residual = layer.add(residual, out)
            states.append(after)
        return self.norm_f(residual).to(self.norm_f.weight.dtype), tuple(states)

    def init_state(self, batch: int, max_length: int = 0) -> LanguageState:
        """As `LanguageModel.init_state`."""
        return tuple(
            layer.mixer.init_state(batch, max_length)
            if isinstance(layer.mixer, Attention)
            else layer.mixer.init_state(batch)
            for layer in self.layers
        )

    def _residual(self, embeddings: Tensor) -> Tensor:
        half = embeddings.dtype in (torch.float16, torch.bfloat16)
        return embeddings.float() if self.residual_in_fp32 and half else embeddings


def _apply(layer: Block, residual: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    return layer.add(residual, layer.mixer(layer.normed(residual), **kwargs))


class StackedLanguageModel(LanguageModel):
    """Embedding, backbone and head.

    Args:
        config: the sizes.
        layers: makes the layers, once the sizes have been checked.
        norm_eps: added to the mean square of the last norm.

    Raises:
        UserError: sizes which do not fit together.
    """

    def __init__(self, config: LanguageSizes, layers: Callable[[], Iterable[Block]], norm_eps: float = 1e-5) -> None:
        super().__init__()
        for name in ("d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple"):
            if getattr(config, name) < 1:
                raise UserError(f"language.{name} is {getattr(config, name)}: expected at least 1.")
        self.config = config
        self.d_model, self.vocab_size = config.d_model, config.vocab_size
        self.padded_vocab_size = config.padded_vocab_size
        try:
            self.backbone = Backbone(config, layers(), norm_eps)
        except ValueError as error:
            raise UserError(f"language: {str(error).removesuffix('.')}.") from error
        self.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
        self._initialise()
        self.tie_weights()

    @property
    def gradient_checkpointing(self) -> bool:
        return self.backbone.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.backbone.gradient_checkpointing = value

    def tie_weights(self) -> None:
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def embed(self, ids: Tensor) -> Tensor:
        return self.backbone.embedding(ids)

    def hidden(self, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        return self.backbone(inputs_embeds, **kwargs)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)

    def next_token_logits(self, hidden: Tensor) -> Tensor:
        if hidden.device.type == "cpu" and 4 <= len(hidden) <= 16:
            # The same product the other way round: for a few tokens and a long vocabulary MKL is then a third faster.
            return (self.lm_head.weight @ hidden.T)[: self.vocab_size].T
        return super().next_token_logits(hidden)

    def step(self, embedding: Tensor, state: LanguageState, *, inplace: bool = False) -> tuple[Tensor, LanguageState]:
        return self.backbone.step(embedding, state, inplace=inplace)

    def init_state(self, batch: int, max_length: int = 0) -> LanguageState:
        return self.backbone.init_state(batch, max_length)

    def _initialise(self) -> None:
        """As mamba-ssm's `_init_weights`; what is not named here keeps the initialisation of its own module."""
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        layers = self.backbone.layers
        # GPT-2: the residual stream is a sum over branches, so that its variance must not grow with their number.
        branches = sum(len(layer.outputs()) for layer in layers)
        for layer in layers:
            for linear in (module for module in layer.modules() if isinstance(module, nn.Linear)):
                if linear.bias is not None and not getattr(linear.bias, "_no_reinit", False):
                    nn.init.zeros_(linear.bias)
            for output in layer.outputs():
                nn.init.kaiming_uniform_(output.weight, a=math.sqrt(5))
                with torch.no_grad():
                    output.weight /= math.sqrt(branches)
