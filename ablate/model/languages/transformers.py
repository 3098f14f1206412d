"""Any causal language model of the package transformers, from a folder on disk.

What a model of another package can do is not known from its name, so it is tried: padding and packing on a few tokens
when a batch first needs them, and what its head does to the logits when it is loaded.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ablate.core.errors import UserError
from ablate.model.languages.base import LanguageModel, register
from ablate.ssm.mixer import take
from ablate.ssm.precision import connected_zero

# What a model's forward calls its cache, newest first.
_CACHE_NAMES = ("cache", "past_key_values", "cache_params")


class TransformersState(NamedTuple):
    """cache: transformers' own. mask (b, l) bool: which of the tokens in it are real. lengths (b,): how many are.
    padded: whether any may not be, which is asked at every step.
    """

    cache: Any
    mask: Tensor
    lengths: Tensor
    padded: bool = False


@register("transformers")
class TransformersLanguageModel(LanguageModel):
    """Any `AutoModelForCausalLM` folder, which `language.pretrained` names and `hf download NAME --local-dir FOLDER`
    makes. Sizes are the folder's. Weights are read from safetensors alone, and no code of the folder's is run.

    Args:
        attention: transformers' implementation of attention; auto for the one that it takes for this model.

    Raises:
        UserError: transformers is not installed, no folder, files missing or damaged, a model of no known kind, weights
            that do not fit, or a head whose logits are more than a product with its weights.
    """

    sizes = ()
    model: Any

    def __init__(
        self, config: Any, *, attention: Literal["auto", "eager", "flash_attention_2", "sdpa"] = "auto"
    ) -> None:
        super().__init__()
        self.model = _load(Path(config.pretrained), attention)
        self._checkpointing = False
        names = inspect.signature(self.model.base_model.forward).parameters
        self.padded_vocab_size = self.model.get_output_embeddings().weight.shape[0]
        rows, self.d_model = self.model.get_input_embeddings().weight.shape
        self.vocab_size = min(self.padded_vocab_size, rows)
        cache_names = [name for name in _CACHE_NAMES if name in names]
        if not cache_names:
            raise UserError(f"{self._name()} keeps no cache that can be used here.")
        self._cache_name, self._takes_positions = cache_names[0], "position_ids" in names
        self._check_logits()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype = torch.float32, **fields: Any
    ) -> TransformersLanguageModel:
        return cls(SimpleNamespace(pretrained=folder), **fields).to(dtype)

    @property
    def gradient_checkpointing(self) -> bool:
        return self._checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        if value and not self.model.supports_gradient_checkpointing:
            raise UserError(f"{self._name()} has no gradient checkpointing: set language.gradient_checkpointing=false.")
        if value:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        elif self._checkpointing:
            self.model.gradient_checkpointing_disable()
        self._checkpointing = value

    @functools.cached_property
    def supports_padding(self) -> bool:  # type: ignore[override]
        """Whether padding on either side changes nothing for the real tokens and the one that follows."""
        ids = self._trial_ids(6)
        following = self.embed(ids[:, -1])
        with _trying(self.model):
            alone, state = self._read(self.embed(ids[:, :-1]), None, None, None, True)
            expected = torch.cat([alone[0], self._advance(following, state)[0]])
            for left in (2, 0):
                padded = F.pad(self.embed(ids[:, :-1]), (0, 0, left, 2 - left), value=0.1)
                mask = torch.zeros(padded.shape[:2], dtype=torch.bool, device=ids.device)
                mask[:, left : left + ids.shape[1] - 1] = True
                hidden, state = self._read(padded, mask, None, None, True)
                if not _same(torch.cat([hidden[mask], self._advance(following, state)[0]]), expected):
                    return False
        return True

    @functools.cached_property
    def supports_packing(self) -> bool:  # type: ignore[override]
        """Whether documents packed in one row give what they give alone."""
        if not self._takes_positions or self._is_stateful():
            return False
        ids = self._trial_ids(9)
        parts = ids[:, :5], ids[:, 5:]
        seq_idx = torch.tensor([[0] * 5 + [1] * 4], device=ids.device)
        with _trying(self.model):
            packed = self._read(self.embed(ids), None, seq_idx, None, False)
            apart = [self._read(self.embed(part), None, None, None, False) for part in parts]
        return _same(packed, torch.cat(apart, dim=1))

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        return head(hidden.to(head.weight.dtype))  # some keep what enters the head in float32

    def hidden(
        self,
        inputs_embeds: Tensor,
        *,
        mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        state: TransformersState | None = None,
        return_state: bool = False,
        max_length: int | None = None,
    ) -> Any:
        if not len(inputs_embeds):  # transformers' models cannot
            width = self.model.get_output_embeddings().weight.shape[1]
            hidden = inputs_embeds.new_zeros(*inputs_embeds.shape[:2], width) + connected_zero(*self.parameters())
            return (hidden, self.init_state(0) if state is None else state) if return_state else hidden
        self.refuse_unsupported(mask, seq_idx)
        if seq_idx is not None and (return_state or state is not None):
            raise UserError(f"{self._name()} does not support a state together with packing.")
        if state is None:
            return self._read(inputs_embeds, mask, seq_idx, None, return_state)
        state = self._copy(state)
        stateful = self._is_stateful()
        if (stateful or any(state.cache.is_sliding)) and mask is not None and not bool(mask.all()):
            raise UserError(f"{self._name()} cannot continue from a state with padded rows.")
        if not stateful:
            return self._read(inputs_embeds, mask, None, state, return_state)
        outs = []
        for embedding in inputs_embeds.unbind(1):  # recurrent models continue from a state by single tokens only
            hidden, state = self._advance(embedding, state)
            outs.append(hidden)
        hidden = torch.stack(outs, dim=1)
        return (hidden, state) if return_state else hidden

    def step(
        self, embedding: Tensor, state: TransformersState, *, inplace: bool = False
    ) -> tuple[Tensor, TransformersState]:
        if not len(embedding):
            return self.hidden(embedding[:, None])[:, 0], state
        return self._advance(embedding, state if inplace else self._copy(state))

    def init_state(self, batch: int, max_length: int = 0) -> TransformersState:
        from transformers import DynamicCache

        device = self.model.get_input_embeddings().weight.device
        return TransformersState(
            DynamicCache(config=self.model.config),
            torch.zeros(batch, 0, dtype=torch.bool, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def select_rows(self, state: TransformersState, rows: Sequence[int]) -> TransformersState:
        cache = copy.deepcopy(state.cache)
        index = torch.tensor(rows, dtype=torch.int64, device=state.mask.device)
        if state.mask.shape[1]:
            cache.reorder_cache(index)
        return TransformersState(cache, state.mask[index], state.lengths[index], state.padded)

    def state_bytes(self, state: TransformersState) -> int:
        parts = [*tree_leaves([vars(layer) for layer in state.cache.layers]), state.mask, state.lengths]
        return sum(part.nbytes for part in parts if isinstance(part, Tensor))

    # -- The model ----------------------------------------------------------------------------------------------------

    def _read(
        self,
        inputs_embeds: Tensor,
        mask: Tensor | None,
        seq_idx: Tensor | None,
        state: TransformersState | None,
        return_state: bool,
    ) -> Any:
        """`hidden`, without looking whether the model can do it; writes into the cache of `state`."""
        batch, length, _ = inputs_embeds.shape
        real = torch.ones(batch, length, dtype=torch.bool, device=inputs_embeds.device) if mask is None else mask
        order = None
        padded = mask is not None and not bool(mask.all())
        if padded and seq_idx is None:
            # All padding to the left: behind the text it would fade a recurrent state, and fill a sliding window.
            order = torch.argsort(real.int(), dim=1, stable=True)
            inputs_embeds, real = take(inputs_embeds, order), real.gather(1, order)
        before = torch.zeros(batch, dtype=torch.int64, device=real.device) if state is None else state.lengths
        positions = before[:, None] + real.cumsum(1) - real.long()
        every = real if state is None else torch.cat([state.mask, real], dim=1)
        arguments: dict[str, Any] = {"inputs_embeds": inputs_embeds, "use_cache": return_state or state is not None}
        if seq_idx is not None:
            # transformers finds packed documents by positions that restart, if there is neither mask nor cache. Padding
            # counts as documents of its own.
            document = torch.where(real, seq_idx, -1)
            begins = F.pad(document[:, 1:] != document[:, :-1], (1, 0), value=True)
            places = torch.arange(length, device=real.device).expand(batch, -1)
            positions = places - torch.where(begins, places, 0).cummax(1).values
        elif padded or (state is not None and state.padded):
            arguments["attention_mask"] = every.long()
        if state is not None:
            arguments[self._cache_name] = state.cache
            if not _attends(state.cache):
                arguments.pop("attention_mask", None)
        if self._takes_positions:
            arguments["position_ids"] = positions
        output = self.model.base_model(**arguments)
        hidden = output[0] if order is None else take(output[0], order.argsort(dim=1))
        if not return_state:
            return hidden
        padded = padded or (state is not None and state.padded)
        return hidden, TransformersState(getattr(output, self._cache_name), every, before + real.sum(1), padded)

    def _advance(self, embedding: Tensor, state: TransformersState) -> tuple[Tensor, TransformersState]:
        hidden, state = self._read(embedding[:, None], None, None, state, True)
        return hidden[:, 0], state

    def _copy(self, state: TransformersState) -> TransformersState:
        return state._replace(cache=copy.deepcopy(state.cache))

    def _is_stateful(self) -> bool:
        return bool(getattr(self.model, "_is_stateful", False))

    def _name(self) -> str:
        return f"transformers' {type(self.model).__name__}"

    # -- Trials -------------------------------------------------------------------------------------------------------

    def _check_logits(self) -> None:
        """Refuse models that scale or cap their logits, or read token ids otherwise than by their embeddings."""
        ids = self._trial_ids(3)
        with _trying(self.model):
            expected = self.model(input_ids=ids).logits
            got = self.logits(self._read(self.embed(ids), None, None, None, False))
        if not _same(got, expected):
            raise UserError(
                f"{self._name()} computes its logits by more than its embeddings, hidden states and head (such as a "
                "scale or a cap of the logits): it cannot be used here. Llama, Qwen, Mistral and SmolLM models can."
            )

    def _trial_ids(self, count: int) -> Tensor:
        weight = self.model.get_input_embeddings().weight
        return (torch.arange(count, device=weight.device) * 7 % weight.shape[0])[None]


@contextmanager
def _trying(model: nn.Module) -> Iterator[None]:
    """No autograd, no autocast and no dropout; modes are put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


def _load(folder: Path, attention: str) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            'The language model "transformers" needs the package transformers: pip install "ablate[transformers]"'
        ) from error
    if not folder.is_dir():
        raise UserError(f"No language model at {folder}: expected a folder, as `hf download` makes it.")
    try:
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=None if attention == "auto" else attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"transformers cannot load {folder}: {str(error).strip()}") from error
    # Weights that a file lacks would silently be random.
    wrong = [str(name) for kind in ("missing_keys", "mismatched_keys") for name in loading[kind]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"The weights in {folder} do not fit its config.json: {', '.join(wrong[:3])}{more}.")
    return model


def _same(got: Tensor, expected: Tensor) -> bool:
    error = (got.float() - expected.float()).norm() / expected.float().norm()
    return bool(error < (1e-4 if got.dtype == torch.float32 else 5e-2))


def _attends(cache: Any) -> bool:
    """Whether any layer keeps keys and values, for which padding has to be masked."""
    return any(hasattr(layer, "keys") for layer in cache.layers)
