"""The contract of a language model as tests, for ours and for those of other packages:

    from ablate.testing.languages import check_language_model

    def test_my_model():
        check_language_model(lambda: MyModel(LanguageSizes(d_model=32, n_layer=2, vocab_size=50)))

`CHECKS` has the single tests. Each takes a function that makes a small model, in float32 on the CPU, from PyTorch's
global generator. What the model declares not to support has to be refused with a UserError.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ablate.core.errors import UserError
from ablate.model.generation import generate
from ablate.model.languages.base import LanguageModel, LanguageSizes, registry

Make = Callable[[], LanguageModel]

LENGTHS = (9, 2, 5)
TOLERANCE = 1e-4  # of hidden states, whose size is about 1


CHECKS: list[Callable[[Make], None]] = []


def _check_with_gradients(check: Callable[[Make], None]) -> Callable[[Make], None]:
    CHECKS.append(check)
    return check


def _check(check: Callable[[Make], None]) -> Callable[[Make], None]:
    return _check_with_gradients(torch.no_grad()(check))


def subjects(name: str) -> dict[str, Make]:
    """A small model of the member called `name`; one that needs the folder of a checkpoint has none."""
    member = registry.get(name)
    sizes = LanguageSizes(d_model=32, n_layer=2, vocab_size=50)
    return {"": lambda: member(sizes)} if member.sizes else {}


def check_language_model(make: Make) -> None:
    """Run all checks; the first that fails raises AssertionError."""
    for check in CHECKS:
        check(make)


@_check
def shapes_are_as_declared(make: Make) -> None:
    model = _model(make)
    embedded = model.embed(_ids(model, 2, 7))
    assert embedded.shape == (2, 7, model.d_model)
    assert model.embed(_ids(model, 3, 1)[:, 0]).shape == (3, model.d_model)
    hidden = model.hidden(embedded)
    assert hidden.shape == (2, 7, model.d_model)
    logits = model.logits(hidden)
    assert logits.shape == (2, 7, model.padded_vocab_size)
    assert model.padded_vocab_size >= model.vocab_size
    for rows in (1, 2, 8):  # however few or many
        last = hidden[:1, -1].expand(rows, -1)
        _assert_same(model.next_token_logits(last), model.logits(last)[:, : model.vocab_size], "next_token_logits")


@_check
def the_seed_decides_the_weights(make: Make) -> None:
    weights, draws = [], []
    for seed in (0, 0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights.append(make().state_dict())
            draws.append(float(torch.rand(())))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items()), "same seed, other weights"
    assert draws[0] != draws[2], "the model seeds PyTorch's generator"
    if make().sizes:  # else the weights are those of a folder
        assert any(not torch.equal(tensor, weights[2][name]) for name, tensor in weights[0].items()), "seed not used"


@_check
def no_token_sees_a_later_one(make: Make) -> None:
    model = _model(make)
    ids = _ids(model, 1, 8)
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 1) % model.vocab_size
    first, second = model.hidden(model.embed(ids)), model.hidden(model.embed(other))
    _assert_same(first[:, :5], second[:, :5], "tokens before a change")
    assert (first[:, 5:] - second[:, 5:]).abs().max() > 1e-3, "a token does not change its own hidden state"


@_check
def padding_changes_nothing(make: Make) -> None:
    model = _model(make)
    for side in ("right", "left"):
        embedded, mask, rows = _padded(model, side)
        if not model.supports_padding:
            _assert_refused(functools.partial(model.hidden, embedded, mask=mask), "padding")
            continue
        hidden, state = model.hidden(embedded, mask=mask, return_state=True)
        alone = [model.hidden(row, return_state=True) for row in rows]
        _assert_same(hidden[mask], torch.cat([out[0] for out, _ in alone]), f"padding on the {side}")
        following = model.embed(_ids(model, len(rows), 1, seed=5)[:, 0])
        together = model.step(following, state)[0]
        apart = torch.cat([model.step(following[i : i + 1], own)[0] for i, (_, own) in enumerate(alone)])
        _assert_same(together, apart, f"the token after padding on the {side}")


@_check
def packed_documents_do_not_meet(make: Make) -> None:
    model = _model(make)
    documents = [model.embed(_ids(model, 1, length, seed=length)) for length in (4, 1, 6, 3)]
    embedded = torch.cat(documents, dim=1)
    seq_idx = torch.tensor([[1] * 4 + [2] + [1] * 6 + [0] * 3])  # a number that comes again is another document
    if not model.supports_packing:
        return _assert_refused(lambda: model.hidden(embedded, seq_idx=seq_idx), "packing")
    alone = torch.cat([model.hidden(document) for document in documents], dim=1)
    _assert_same(model.hidden(embedded, seq_idx=seq_idx), alone, "packed documents")
    mask = torch.ones_like(seq_idx, dtype=torch.bool)
    mask[:, -3:] = False  # padding follows the last document of a row
    for number in (0, 1):  # of a number of its own or not
        padded = torch.where(mask, seq_idx, number)
        hidden = model.hidden(embedded, seq_idx=padded, mask=mask)
        _assert_same(hidden[mask], alone[mask], "packed documents before padding")
    return None


@_check
def a_state_after_packing_is_that_of_the_last_document(make: Make) -> None:
    model = _model(make)
    first, second = (model.embed(_ids(model, 2, length, seed=length)) for length in (6, 4))
    seq_idx = torch.tensor([[0] * 6 + [1] * 4] * 2)
    try:
        _, state = model.hidden(torch.cat([first, second], dim=1), seq_idx=seq_idx, return_state=True)
    except UserError:
        return
    _, expected = model.hidden(second, return_state=True)
    following = model.embed(_ids(model, 2, 1, seed=9)[:, 0])
    _assert_same(model.step(following, state)[0], model.step(following, expected)[0], "the token after packing")


@_check
def steps_give_what_the_whole_gives(make: Make) -> None:
    model = _model(make)
    embedded = model.embed(_ids(model, 2, 12))
    whole = model.hidden(embedded)
    for prefill, max_length in ((0, 0), (0, 12), (1, None), (7, None), (7, 12), (7, 40)):
        outs = []
        if prefill:
            out, state = model.hidden(embedded[:, :prefill], return_state=True, max_length=max_length)
            outs = list(out.unbind(1))
        else:
            state = model.init_state(2, max_length or 0)
        for place in range(prefill, 12):
            out, state = model.step(embedded[:, place], state, inplace=place % 2 == 0)
            outs.append(out)
        _assert_same(torch.stack(outs, dim=1), whole, f"{prefill} tokens at once and the others by steps")


@_check
def a_text_can_be_read_in_parts(make: Make) -> None:
    model = _model(make)
    embedded = model.embed(_ids(model, 2, 13))
    whole = model.hidden(embedded)
    for cuts in ((0, 5, 13), (0, 1, 8, 13)):
        state, outs = model.init_state(2), []
        for start, stop in itertools.pairwise(cuts):
            out, state = model.hidden(embedded[:, start:stop], state=state, return_state=True)
            outs.append(out)
        _assert_same(torch.cat(outs, dim=1), whole, f"parts from {cuts}")


@_check
def padded_parts_go_on_from_a_state(make: Make) -> None:
    model = _model(make)
    if not model.supports_padding:
        return
    before = model.embed(_ids(model, len(LENGTHS), 4, seed=3))
    for side in ("right", "left"):
        embedded, mask, rows = _padded(model, side)
        _, state = model.hidden(before, return_state=True)
        try:
            hidden, after = model.hidden(embedded, mask=mask, state=state, return_state=True)
        except UserError:
            return
        following = model.embed(_ids(model, len(rows), 1, seed=5)[:, 0])
        whole = [torch.cat([before[i : i + 1], row, following[i : i + 1, None]], dim=1) for i, row in enumerate(rows)]
        alone = [model.hidden(row)[0, 4:] for row in whole]
        _assert_same(hidden[mask], torch.cat([row[:-1] for row in alone]), f"padding on the {side} after a state")
        step = model.step(following, after)[0]
        _assert_same(step, torch.stack([row[-1] for row in alone]), "the token after a padded part")


@_check
def states_are_left_as_they_are(make: Make) -> None:
    model = _model(make)
    embedded = model.embed(_ids(model, 2, 12))
    _, state = model.hidden(embedded[:, :8], return_state=True)
    expected = model.step(embedded[:, 8], state)
    for _ in range(2):
        model.hidden(embedded[:, 8:], state=state, return_state=True)
        _assert_same(
            model.step(embedded[:, 9], state)[0], model.step(embedded[:, 9], copy.deepcopy(state))[0], "a step"
        )
    _assert_same(model.step(embedded[:, 8], state)[0], expected[0], "a state that was used before")


@_check
def rows_of_a_state_can_be_chosen(make: Make) -> None:
    model = _model(make)
    embedded = model.embed(_ids(model, 4, 9))
    _, state = model.hidden(embedded[:, :8], return_state=True)
    whole, _ = model.step(embedded[:, 8], state)
    for rows in ([2], [3, 0], [0, 1, 2, 3], [1, 1]):
        chosen, _ = model.step(embedded[rows, 8], model.select_rows(state, rows))
        _assert_same(chosen, whole[rows], f"rows {rows}")
    _assert_same(model.step(embedded[:, 8], state)[0], whole, "a state after rows were chosen from it")


@_check
def the_bytes_of_a_state_follow_the_batch(make: Make) -> None:
    model = _model(make)
    sizes = []
    for batch in (1, 2, 4):
        _, state = model.hidden(model.embed(_ids(model, batch, 8)), return_state=True)
        sizes.append(model.state_bytes(state))
    assert 0 < sizes[0] * 4 == sizes[1] * 2 == sizes[2], f"{sizes} bytes for 1, 2 and 4 rows"
    assert model.state_bytes(model.select_rows(state, [0])) == sizes[0]


@_check_with_gradients
def gradients_reach_every_parameter(make: Make) -> None:
    model = _model(make).train()
    _learn(model, _ids(model, 2, 10))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    missing = [name for name, _ in model.named_parameters() if name not in gradients]
    assert not missing, f"no gradient: {missing}"
    bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    assert not bad, f"gradient not finite: {bad}"
    assert any(bool(gradient.any()) for gradient in gradients.values())


@_check_with_gradients
def padding_changes_no_gradient(make: Make) -> None:
    model = _model(make)
    if not model.supports_padding:
        return
    embedded, mask, rows = _padded(model, "right")
    gradients = []
    for hidden in ([model.hidden(embedded, mask=mask)[mask]], [model.hidden(row)[0] for row in rows]):
        model.zero_grad()
        model.logits(torch.cat(hidden)).square().mean().backward(retain_graph=True)
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[1].items():
        scale = max(1.0, float(gradient.abs().max()))
        _assert_same(gradients[0][name] / scale, gradient / scale, f"the gradient of {name}")


@_check_with_gradients
def gradient_checkpointing_changes_no_gradient(make: Make) -> None:
    model = _model(make).train()
    try:
        model.gradient_checkpointing = True
    except UserError:
        return
    gradients = []
    for value in (False, True):
        model.gradient_checkpointing = value
        model.zero_grad()
        _learn(model, _ids(model, 2, 10))
        named = model.named_parameters()
        gradients.append({name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=f"the gradient of {name}")


@_check
def bfloat16_works(make: Make) -> None:
    model = _model(make)
    ids = _ids(model, 2, 9)
    expected = model(ids).detach()
    half = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        embedded = half.embed(ids)
        hidden, state = half.hidden(embedded[:, :8], return_state=True)
        last, _ = half.step(embedded[:, 8], state)
        logits = half.logits(torch.cat([hidden, last[:, None]], dim=1))
        assert logits.dtype == torch.bfloat16
        _assert_near(logits.float(), expected, "bfloat16 weights")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        embedded = model.embed(ids)
        hidden, state = model.hidden(embedded[:, :8], return_state=True)
        last, _ = model.step(embedded[:, 8], state)
        _assert_near(model.logits(torch.cat([hidden, last[:, None]], dim=1)).float(), expected, "autocast")


@_check
def a_batch_may_be_empty(make: Make) -> None:
    model = _model(make)
    empty = model.embed(_ids(model, 2, 6)[:0])
    hidden, state = model.hidden(empty, mask=torch.ones(0, 6, dtype=torch.bool), return_state=True)
    assert hidden.shape == (0, 6, model.d_model)
    assert model.logits(hidden).shape == (0, 6, model.padded_vocab_size)
    assert model.step(empty[:, 0], state)[0].shape == (0, model.d_model)


@_check
def generation_does_not_depend_on_the_batch(make: Make) -> None:
    model = _model(make)
    new = 12
    _, _, rows = _padded(model, "right")
    alone = [generate(model, row.detach(), max_new_tokens=new, eos_id=-1)[0] for row in rows]
    for row, text in zip(rows, alone, strict=True):
        assert text == _greedy(model, row, new), "cached generation differs from reading everything again"
    if model.supports_padding:
        eos = alone[0][new // 2]  # so that rows end at different places
        expected = [text[: text.index(eos)] if eos in text else text for text in alone]
        for side in ("right", "left"):
            embedded, mask, _ = _padded(model, side)
            got = generate(model, embedded.detach(), mask, max_new_tokens=new, eos_id=eos)
            assert got == expected, f"generation with padding on the {side}"


@_check
def weights_can_be_saved_and_loaded(make: Make) -> None:
    model, other = _model(make), make().eval()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    ids = _ids(model, 1, 6)
    assert torch.equal(model(ids), other(ids)), "the state_dict is not all of the model"


def _model(make: Make) -> LanguageModel:
    """A model whose tokens matter: as initialised, many have hidden states that hardly depend on other tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and not name.endswith("A_log"):
                parameter.normal_(0, 1 / math.sqrt(parameter.shape[1]), generator=generator)
    return model


def _ids(model: LanguageModel, batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * length + seed)
    return torch.randint(0, model.vocab_size, (batch, length), generator=generator)


def _padded(model: LanguageModel, side: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Embeddings (b, l, d) of rows of `LENGTHS`, padded with noise, their mask, and each row (1, length, d) alone."""
    longest = max(LENGTHS)
    embedded = model.embed(_ids(model, len(LENGTHS), longest))
    mask = torch.arange(longest) < torch.tensor(LENGTHS)[:, None]
    rows = [embedded[row : row + 1, :length] for row, length in enumerate(LENGTHS)]
    if side == "left":
        shifts = [longest - length for length in LENGTHS]
        embedded, mask = (
            torch.stack([row.roll(shift, 0) for row, shift in zip(tensor, shifts, strict=True)])
            for tensor in (embedded, mask)
        )
    return embedded, mask, rows


def _learn(model: LanguageModel, ids: Tensor) -> None:
    logits = model(ids)[:, :-1].float()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()


def _greedy(model: LanguageModel, embedded: Tensor, new: int) -> list[int]:
    """Text by reading the whole sequence again for every token."""
    text: list[int] = []
    with torch.no_grad():
        for _ in range(new):
            token = model.next_token_logits(model.hidden(embedded)[:, -1]).argmax(dim=-1)
            text.append(int(token))
            embedded = torch.cat([embedded, model.embed(token)[:, None]], dim=1)
    return text


def _assert_same(got: Tensor, expected: Tensor, what: str) -> None:
    error = float((got - expected).abs().max()) if got.numel() else 0.0
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert error <= TOLERANCE, f"{what}: differs by {error:.2g}"


def _assert_near(got: Tensor, expected: Tensor, what: str) -> None:
    error = float((got - expected).norm() / expected.norm())
    assert error < 0.05, f"{what}: differs from float32 by {error:.1%}"


def _assert_refused(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except UserError:
        return
    raise AssertionError(f"{what} is declared not to be supported, but is not refused with a UserError")
