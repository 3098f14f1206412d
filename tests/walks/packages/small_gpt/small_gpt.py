"""A Transformer language model: pre-norm attention and MLP blocks with sinusoidal positions and a growing cache."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ablate.core.errors import UserError
from ablate.model.languages import LanguageModel, LanguageSizes, register


class Cache(NamedTuple):
    """keys, values: (b, heads, l, channels of a head). mask: (b, l), which of the tokens are real."""

    keys: Tensor
    values: Tensor
    mask: Tensor


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, cache: Cache, mask: Tensor) -> tuple[Tensor, Cache]:
        queries, keys, values = (
            self.qkv(self.norms[0](hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        keys = torch.cat([cache.keys.to(keys.dtype), keys], dim=2)
        values = torch.cat([cache.values.to(values.dtype), values], dim=2)
        seen = torch.cat([cache.mask, mask], dim=1)
        before, length = cache.mask.shape[1], mask.shape[1]
        place = torch.arange(before + length, device=mask.device)
        own = place == place[before:, None]  # (l, before + l)
        causal = place <= place[before:, None]
        allowed = (seen[:, None, None] & causal) | own  # padding reads itself alone
        read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed)
        hidden = hidden + self.out(read.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.norms[1](hidden)), Cache(keys, values, seen)


@register("small_gpt")
class SmallGPT(LanguageModel):
    """A decoder-only Transformer (Radford et al. 2019).

    Args:
        heads: of the attention.
    """

    supports_packing = False

    def __init__(self, config: LanguageSizes, *, heads: int = 4) -> None:
        super().__init__()
        if config.d_model % (2 * heads):
            raise UserError(f"d_model is {config.d_model}, expected a multiple of 2 x {heads} heads.")
        self.d_model, self.vocab_size = config.d_model, config.vocab_size
        self.padded_vocab_size, self.heads = config.padded_vocab_size, heads
        self.words = nn.Embedding(self.padded_vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config.d_model, heads) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.d_model)

    def embed(self, ids):
        return self.words(ids)

    def hidden(self, inputs_embeds, *, mask=None, seq_idx=None, state=None, return_state=False, max_length=None):
        self.refuse_unsupported(mask, seq_idx)
        if mask is None:
            mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        state = self.init_state(len(inputs_embeds)) if state is None else state
        positions = state[0].mask.sum(dim=1)[:, None] + mask.cumsum(dim=1)
        hidden, after = inputs_embeds + self._encode(positions).to(inputs_embeds.dtype), []
        for block, cache in zip(self.blocks, state, strict=True):
            if self.gradient_checkpointing and self.training:
                hidden, cache = checkpoint(block, hidden, cache, mask, use_reentrant=False)
            else:
                hidden, cache = block(hidden, cache, mask)
            after.append(cache)
        hidden = self.norm(hidden)
        return (hidden, tuple(after)) if return_state else hidden

    def logits(self, hidden):
        return F.linear(hidden, self.words.weight)

    def step(self, embedding, state, *, inplace=False):
        hidden, state = self.hidden(embedding[:, None], state=state, return_state=True)
        return hidden[:, 0], state

    def init_state(self, batch, max_length=0):
        none = self.words.weight.new_zeros(batch, self.heads, 0, self.d_model // self.heads)
        mask = torch.zeros(batch, 0, dtype=torch.bool, device=none.device)
        return tuple(Cache(none, none, mask) for _ in self.blocks)

    def _encode(self, positions: Tensor) -> Tensor:
        """Sinusoids (b, l, d_model) of positions (b, l) (Vaswani et al. 2017, section 3.5)."""
        steps = torch.arange(0, self.d_model, 2, device=positions.device)
        angles = positions[..., None] * torch.exp(steps * (-math.log(10_000) / self.d_model))
        return torch.cat([angles.sin(), angles.cos()], dim=-1)
