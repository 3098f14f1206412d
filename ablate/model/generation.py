"""Text from a language model: the prompt is read once, then one step per token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Required, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.core.errors import UserError
from ablate.model.languages import LanguageModel


class Decoding(TypedDict, total=False):
    """How tokens are chosen, and how many: the keyword arguments of `generate_steps`, which explains them."""

    max_new_tokens: Required[int]
    eos_id: Required[int]
    temperature: float
    top_p: float
    generator: torch.Generator | None


def generate(
    language: LanguageModel, inputs_embeds: Tensor, mask: Tensor | None = None, **decoding: Unpack[Decoding]
) -> list[list[int]]:
    """`generate_steps` to the end: b lists of token ids."""
    answers: list[list[int]] = [[] for _ in inputs_embeds]
    for step in generate_steps(language, inputs_embeds, mask, **decoding):
        for row, token in step:
            answers[row].append(token)
    return answers


@torch.inference_mode()
def generate_steps(
    language: LanguageModel,
    inputs_embeds: Tensor,
    mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    eos_id: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Continue each row of a batch of prompts until its end token, one token of every unfinished row at a time.

    Args:
        inputs_embeds: (b, l, d_model), the embedded prompts, padded on either side.
        mask: (b, l) bool, True at real tokens.
        max_new_tokens: most tokens per row.
        eos_id: the token that ends a row; it is not returned.
        temperature: 0 takes the most likely token; otherwise tokens are drawn from softmax(logits / temperature).
        top_p: draw among the most likely tokens that together have this probability (Holtzman et al. 2020).
        generator: source of the draws. Rows share it, so that sampled text depends on the whole batch; greedy does not.

    Yields:
        for each step, (row, token id) of the rows that have not ended.

    Raises:
        UserError: a negative count or temperature, top_p outside (0, 1], or a prompt without any token.
    """
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens is {max_new_tokens}: expected 0 or more.")
    if temperature < 0 or not 0 < top_p <= 1:
        raise UserError(f"temperature {temperature} and top_p {top_p}: expected temperature >= 0 and 0 < top_p <= 1.")
    rows = list(range(len(inputs_embeds)))  # those still to be continued
    if not rows or not max_new_tokens:
        return
    max_length = inputs_embeds.shape[1] + max_new_tokens
    hidden, state = language.hidden(inputs_embeds, mask=mask, return_state=True, max_length=max_length)
    hidden = last_real(hidden, mask)
    for left in reversed(range(max_new_tokens)):
        chosen = choose(language.next_token_logits(hidden), temperature=temperature, top_p=top_p, generator=generator)
        tokens = chosen.tolist()
        going_on = [place for place, token in enumerate(tokens) if token != eos_id]
        yield [(rows[place], tokens[place]) for place in going_on]
        if not going_on or not left:
            break
        if len(going_on) < len(rows):
            # Finished rows leave the batch: they cost nothing from here on.
            rows = [rows[place] for place in going_on]
            chosen, state = chosen[going_on], language.select_rows(state, going_on)
        hidden, state = language.step(language.embed(chosen), state, inplace=True)


def choose(
    logits: Tensor, *, temperature: float = 0.0, top_p: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """The next tokens (b,) from logits (b, vocabulary); the arguments are those of `generate`."""
    if temperature == 0:
        return likeliest(logits)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p == 1:
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # so that the token which crosses top_p is still among them
    ordered = ordered.masked_fill(before >= top_p, 0)
    ordered[..., 0].clamp_(min=torch.finfo(ordered.dtype).tiny)
    drawn = torch.multinomial(ordered, 1, generator=generator)
    return order.gather(-1, drawn).squeeze(-1)


def likeliest(logits: Tensor) -> Tensor:
    """(b, vocabulary) -> (b,). On a CPU nearly three times as fast as `argmax`: tests/bench/bench_generation.py."""
    return logits.max(dim=-1).indices


def last_real(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """(b, l, d) -> (b, d) at each row's last real token. Raises UserError for rows that have none."""
    batch, length = hidden.shape[:2]
    if mask is None:
        mask = torch.ones(batch, length, dtype=torch.bool, device=hidden.device)
    places = torch.arange(1, length + 1, device=mask.device)
    last = F.pad(mask * places, (1, 0)).amax(dim=1) - 1
    if empty := (last < 0).nonzero().flatten().tolist():
        raise UserError(
            f"{len(empty)} of {batch} prompts have no token (row {', '.join(map(str, empty[:5]))}): there is nothing "
            "to continue. Give each at least one."
        )
    return hidden[torch.arange(batch, device=hidden.device), last]
