"""Causal attention with rotary positions (Su et al. 2021, arXiv 2104.09864), grouped queries (Ainslie et al. 2023,
arXiv 2305.13245) and a preallocated cache; and the SwiGLU MLP (Shazeer 2020, arXiv 2002.05202).

Positions count the real tokens of a document from 0, so that padding and packing change nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.ssm.mixer import attention_heads, check_tokens, seq_idx_of_real_tokens


class KVCache(NamedTuple):
    """Rotated keys and values of the real tokens so far; the token at position p of its document is in slot p.

    keys, values: (batch, kv_heads, capacity, head_dim).
    lengths: (batch,) int64, tokens per row. What is in the slots beyond has no meaning.
    longest: no row has more tokens.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    longest: int


class Attention(nn.Module):
    """Causal self-attention; the same interface as the mixers of `ablate.ssm`.

    Args:
        d_model: width of the tokens.
        heads: query heads.
        kv_heads: heads of keys and values, a divisor of `heads`; each serves heads / kv_heads neighbouring query heads.
        head_dim: channels per head, even; None for d_model / heads.
        rope_theta: base of the wavelengths of the rotary positions.
        bias: whether the projections of queries, keys and values have biases.

    Raises:
        UserError: widths that do not divide.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        rope_theta: float = 10000.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        kv_heads, head_dim = attention_heads(d_model, heads, kv_heads, head_dim)
        if head_dim < 2 or head_dim % 2:
            raise UserError(f"head_dim is {head_dim}: rotary positions need an even number of channels per head")
        self.heads, self.kv_heads, self.head_dim, self.rope_theta = heads, kv_heads, head_dim, rope_theta
        self.q_proj = nn.Linear(d_model, heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(d_model, kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(d_model, kv_heads * head_dim, bias=bias)
        self.out_proj = nn.Linear(heads * head_dim, d_model, bias=False)

    def forward(
        self,
        hidden: Tensor,
        *,
        mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        state: KVCache | None = None,
        return_state: bool = False,
        max_length: int | None = None,
    ) -> Tensor | tuple[Tensor, KVCache]:
        """All tokens at once; arguments as of `LanguageModel.hidden`, with the layer's input (batch, length, d_model).

        Raises:
            UserError: a mask that is not (batch, length) bool, or shapes that do not fit together.
        """
        check_tokens(hidden, self.q_proj.in_features, mask, seq_idx)
        if mask is not None:
            hidden = hidden.masked_fill(~mask[..., None], 0)
        document = _documents(hidden, mask, seq_idx)
        positions = _positions(hidden, mask, document, state)
        q, k, v = self._project(hidden, positions)
        if mask is None and document is None and state is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        else:
            keys, values, visible = _with_cache(k, v, _visible(hidden, mask, document), document, state)
            y = self._attend(q, keys, values, visible)
        out = self.out_proj(y.transpose(1, 2).flatten(2))
        if not return_state:
            return out
        room = max(max_length or 0, 0 if state is None else state.keys.shape[2])
        return out, _new_cache(k, v, mask, document, positions, state, room)

    def step(self, hidden: Tensor, state: KVCache, *, inplace: bool = False) -> tuple[Tensor, KVCache]:
        """One token (batch, d_model) -> (batch, d_model) and the cache with it.

        inplace: write into the given cache, if it has room. Not under autograd.
        """
        q, k, v = self._project(hidden[:, None], state.lengths[:, None])
        keys, values, lengths, longest = state
        if longest == keys.shape[2]:  # full: twice the room, so that growing stays cheap on average
            keys, values = (F.pad(kept, (0, 0, 0, max(longest, 16))) for kept in (keys, values))
        elif not inplace:
            keys, values = keys.clone(), values.clone()
        rows = torch.arange(len(hidden), device=hidden.device)
        keys[rows, :, lengths] = k[:, :, 0].to(keys.dtype)
        values[rows, :, lengths] = v[:, :, 0].to(values.dtype)
        longest += 1
        visible = torch.arange(longest, device=hidden.device) <= lengths[:, None]  # (b, longest)
        y = self._attend(q, keys[:, :, :longest], values[:, :, :longest], visible[:, None])
        return self.out_proj(y[:, :, 0].flatten(1)), KVCache(keys, values, lengths + 1, longest)

    def init_state(self, batch: int, max_length: int = 0) -> KVCache:
        """The cache before any token."""
        empty = self.k_proj.weight.new_zeros(batch, self.kv_heads, max_length, self.head_dim)
        lengths = torch.zeros(batch, dtype=torch.int64, device=empty.device)
        return KVCache(empty, empty.clone(), lengths, 0)

    def _project(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, l, d_model) -> queries (b, heads, l, head_dim), keys and values (b, kv_heads, l, head_dim), rotated."""
        q, k, v = (
            projection(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        exponents = torch.arange(0, self.head_dim, 2, device=hidden.device, dtype=torch.float32) / self.head_dim
        angles = positions[:, None, :, None].float() / self.rope_theta**exponents  # (b, 1, l, head_dim / 2)
        cos, sin = (torch.cat([part, part], dim=-1).to(q.dtype) for part in (angles.cos(), angles.sin()))
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        """visible (b, queries, keys) bool -> (b, heads, queries, head_dim)."""
        # Repeated here: with a mask PyTorch's fast kernels take no grouped queries, and the slow one repeats as well.
        group = self.heads // self.kv_heads
        keys, values = (kept.to(q.dtype).repeat_interleave(group, dim=1) for kept in (keys, values))
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=visible[:, None])


class SwiGLU(nn.Module):
    """fc2(x silu(gate)), with x and the gate from one projection; names and order as mamba-ssm's `GatedMLP`."""

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(x * F.silu(gate))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (b, heads, l, head_dim): channel i and i + head_dim / 2 are the two coordinates of a point."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _documents(hidden: Tensor, mask: Tensor | None, seq_idx: Tensor | None) -> Tensor | None:
    """(b, l): documents begun before each token; padding belongs to the document of the real token before it."""
    if seq_idx is None:
        return None
    if mask is not None:
        seq_idx = seq_idx_of_real_tokens(seq_idx, mask)
    return F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0)).cumsum(1)


def _positions(hidden: Tensor, mask: Tensor | None, document: Tensor | None, state: KVCache | None) -> Tensor:
    """(b, l) int64: real tokens of the same document before each token, those in the state included."""
    batch, length, _ = hidden.shape
    real = torch.ones(batch, length, dtype=torch.int64, device=hidden.device) if mask is None else mask.long()
    before = real.cumsum(1) - real
    if state is not None:
        before = before + state.lengths[:, None]
    if document is not None:
        begins = F.pad(document[:, 1:] != document[:, :-1], (1, 0))  # what came before counts no more
        before = before - torch.where(begins, before, 0).cummax(1).values
    return before


def _visible(hidden: Tensor, mask: Tensor | None, document: Tensor | None) -> Tensor:
    """(b, l, l) bool: which of the new tokens (last axis) each token sees."""
    batch, length, _ = hidden.shape
    visible = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril().expand(batch, -1, -1)
    if mask is not None:
        visible = visible & mask[:, None]
    if document is not None:
        visible = visible & (document[:, :, None] == document[:, None])
    # Every token sees itself, padding too: a softmax over nothing is not a number.
    return visible | torch.eye(length, dtype=torch.bool, device=hidden.device)


def _with_cache(
    k: Tensor, v: Tensor, visible: Tensor, document: Tensor | None, state: KVCache | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of the cache before the new ones, and which of them each new token sees."""
    if state is None or not state.longest:
        return k, v, visible
    cached = torch.arange(state.longest, device=k.device) < state.lengths[:, None]  # (b, longest)
    cached = cached[:, None].expand(-1, visible.shape[1], -1)
    if document is not None:
        cached = cached & (document == 0)[..., None]  # the state's document is the first one's
    keys = torch.cat([state.keys[:, :, : state.longest].to(k.dtype), k], dim=2)
    values = torch.cat([state.values[:, :, : state.longest].to(v.dtype), v], dim=2)
    return keys, values, torch.cat([cached, visible], dim=2)


def _new_cache(
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    document: Tensor | None,
    positions: Tensor,
    state: KVCache | None,
    room: int,
) -> KVCache:
    """The cache after these tokens: the last real token's document, each token in the slot of its position."""
    batch, heads, length, width = k.shape
    kept = torch.ones(batch, length, dtype=torch.bool, device=k.device) if mask is None else mask
    before = 0 if state is None else state.longest
    lengths = kept.sum(1) + (0 if state is None else state.lengths)
    if document is not None:
        # Padding after the last real token has that token's document.
        kept = kept & (document == document[:, -1:])
        lengths = kept.sum(1) + (0 if state is None else torch.where(document[:, -1] == 0, state.lengths, 0))
    longest = before + length
    room = max(room, longest)
    # Dropped tokens go into a slot of their own, which is then cut off.
    slots = torch.where(kept, positions, room)[:, None, :, None].expand(-1, heads, -1, width)
    caches = []
    for new, old in ((k, None if state is None else state.keys), (v, None if state is None else state.values)):
        cache = new.new_zeros(batch, heads, room + 1, width)
        if old is not None:
            cache[:, :, :before] = old[:, :, :before]
        caches.append(cache.scatter(2, slots, new)[:, :, :-1])
    keys, values = caches
    return KVCache(keys, values, lengths, longest)
