"""The contract of a language model, and the registry of language models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.core.fields import Range, Size
from ablate.core.registry import Registry


@dataclass
class LanguageSizes:
    """What every language model is given; the names are those of the released `config.json`.

    d_model: width of the embeddings and hidden states.
    n_layer: number of layers.
    vocab_size: the tokenizer's; the embedding is padded to a multiple of `pad_vocab_size_multiple` rows.
    residual_in_fp32: the residual stream stays float32 when the weights are not.
    pad_vocab_size_multiple: see vocab_size.
    tie_embeddings: the head shares the embedding's weights.
    """

    d_model: Size = 768
    n_layer: Annotated[int, Range(1, 10_000)] = 24
    vocab_size: Size = 50277
    residual_in_fp32: bool = True
    pad_vocab_size_multiple: Size = 16
    tie_embeddings: bool = True

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple


class LanguageModel(nn.Module):
    """Continues a sequence of embeddings. Base class of all language models.

    A subclass takes `config` and then keyword-only fields; their annotations and defaults are what `describe` shows and
    `create` checks. It draws its initial weights from PyTorch's global generator and never seeds it, so that the seed
    of a run decides them. It implements `embed`, `hidden`, `logits`, `step` and `init_state`. A state is made of
    tensors that have the batch as their first axis, in tuples, lists or named tuples; a member with other states
    overrides `select_rows` and `state_bytes` as well.

    Shapes: b batch, l length, d d_model, v padded_vocab_size.

    Attributes:
        d_model: width of embeddings and hidden states.
        vocab_size: tokens that can be generated.
        padded_vocab_size: rows of the embedding and entries of the logits, at least `vocab_size`.
        gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
        supports_padding: rows with padding on either side give what they give alone.
        supports_packing: documents packed in one row (`seq_idx`) give what they give alone.
        sizes: the fields of `LanguageConfig` that the member reads. One that it does not read must keep its default.
    """

    d_model: int
    vocab_size: int
    padded_vocab_size: int
    gradient_checkpointing: bool = False
    supports_padding: bool = True
    supports_packing: bool = True
    sizes: tuple[str, ...] = ("d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple", "tie_embeddings")

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32, **fields: Any) -> LanguageModel:
        """The checkpoint in `folder`, whose own sizes count; `fields` are checked already.

        Raises:
            UserError: files missing or damaged, or of another model; or this language model has no checkpoints.
        """
        raise UserError(f"{cls.__name__} cannot be loaded from a folder: leave language.pretrained empty.")

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (b, l) or (b,) -> embeddings (b, l, d) or (b, d)."""
        raise NotImplementedError(f"{type(self).__name__} has no embed")

    def hidden(
        self,
        inputs_embeds: Tensor,
        *,
        mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        state: Any = None,
        return_state: bool = False,
        max_length: int | None = None,
    ) -> Any:
        """All tokens at once.

        Args:
            inputs_embeds: (b, l, d).
            mask: (b, l) bool, True at real tokens; padding changes nothing for them.
            seq_idx: (b, l) integers; a document begins where they change, and documents do not see each other.
            state: what an earlier call returned, to continue from there; it is left as it is.
            return_state: also return the state after each row's last real token, of that token's document.
            max_length: tokens per row for which the returned state shall have room, those read here included; a state
                without room grows, which costs a copy.

        Returns:
            the hidden states (b, l, d) after the last norm, and the state if requested.

        Raises:
            UserError: padding or packing that the member does not support.
        """
        raise NotImplementedError(f"{type(self).__name__} has no hidden")

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., v)."""
        raise NotImplementedError(f"{type(self).__name__} has no logits")

    def step(self, embedding: Tensor, state: Any, *, inplace: bool = False) -> tuple[Tensor, Any]:
        """One token: (b, d) and the state before it -> its hidden state (b, d) and the state after it.

        inplace: the old state may be overwritten, which saves a copy of it. Not under autograd.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def init_state(self, batch: int, max_length: int = 0) -> Any:
        """The state before any token, on the parameters' device, for up to `max_length` tokens per row."""
        raise NotImplementedError(f"{type(self).__name__} has no init_state")

    def forward(self, input_ids: Tensor, *, mask: Tensor | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """input_ids (b, l) -> logits (b, l, v) at every position."""
        return self.logits(self.hidden(self.embed(input_ids), mask=mask, seq_idx=seq_idx))

    def next_token_logits(self, hidden: Tensor) -> Tensor:
        """(b, d) -> (b, vocab_size), without the entries that pad the vocabulary: no text belongs to them."""
        return self.logits(hidden)[:, : self.vocab_size]

    def select_rows(self, state: Any, rows: Sequence[int]) -> Any:
        """The state of these rows of the batch, in this order."""
        if isinstance(state, Tensor):
            return state[rows]
        if not isinstance(state, tuple | list):
            return state
        parts = [self.select_rows(part, rows) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)

    def state_bytes(self, state: Any) -> int:
        """Bytes that the state's tensors take."""
        if isinstance(state, Tensor):
            return state.nbytes
        return sum(map(self.state_bytes, state)) if isinstance(state, tuple | list) else 0

    def refuse_unsupported(self, mask: Tensor | None, seq_idx: Tensor | None) -> None:
        """Raise UserError for padding or packing that this member does not support."""
        if seq_idx is not None:
            self.require_packing()
        if mask is not None and not self.supports_padding and not bool(mask.all()):
            raise UserError(
                f"{self._name()} does not support padding, and the rows of this batch have different lengths: set "
                "data.micro_batch=1 for training and evaluation.batch_size=1."
            )

    def require_packing(self) -> None:
        """Raise UserError if documents packed in one row would see each other."""
        if not self.supports_packing:
            raise UserError(f"{self._name()} does not support packing: set data.packing=0.")

    def _name(self) -> str:
        return f"The language model {type(self).__name__}"


registry: Registry[type[LanguageModel]] = Registry(
    "language model",
    base=LanguageModel,
    given=("config",),
    package=__package__,
    entry_points="ablate.languages",
)
register = registry.register
