"""NaN and inf in one packed document reach no other, forward or backward, in the chunked form and around it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ablate.ssm import Mamba2Mixer, causal_conv1d, ssd
from ablate.ssm.isolation import isolate_documents

LENGTHS = [5, 9, 1, 6]
LENGTH = sum(LENGTHS)
PER_TOKEN = ("x", "dt", "B", "C")


def make_inputs(seed: int = 0, initial: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (2, LENGTH, 4, 3), "dt": (2, LENGTH, 4), "A": (4,), "B": (2, LENGTH, 2, 5), "C": (2, LENGTH, 2, 5)}
    shapes |= {"D": (4,)} | ({"initial_state": (2, 4, 3, 5)} if initial else {})
    inputs = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return inputs | {"dt": inputs["dt"].exp() * 0.3, "A": -inputs["A"].exp()}


def seq_idx() -> Tensor:
    return torch.repeat_interleave(torch.tensor([3, 1, 3, 0]), torch.tensor(LENGTHS)).expand(2, -1)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from([*PER_TOKEN, "initial_state"]),
    row=st.integers(0, 1),
    place=st.integers(0, LENGTH - 1),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    chunk_size=st.integers(1, 25),
    seed=st.integers(0, 99),
)
def test_other_documents_are_as_if_it_were_finite(name, row, place, value, chunk_size, seed):
    initial = name == "initial_state"
    clean = make_inputs(seed, initial)
    bad = {key: tensor.clone() for key, tensor in clean.items()}
    if initial:
        bad[name][row, 1, 2, 0] = value
        place = 0
    else:
        bad[name][(row, place) + (0,) * (bad[name].ndim - 2)] = value
    document = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    others = torch.ones(2, LENGTH, dtype=torch.bool)
    others[row] = document != document[place]

    def run(inputs: dict[str, Tensor], backend: str = "torch") -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        leaves = {key: tensor.clone().requires_grad_() for key, tensor in inputs.items()}
        y, final = ssd(**leaves, seq_idx=seq_idx(), chunk_size=chunk_size, return_final_state=True, backend=backend)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        (y[others] * weights[others]).sum().backward()
        return y.detach(), final.detach(), {key: leaf.grad for key, leaf in leaves.items()}

    y, final, gradients = run(bad)
    expected, expected_final, expected_gradients = run(clean)
    torch.testing.assert_close(y[others], expected[others])
    for key in PER_TOKEN:
        torch.testing.assert_close(gradients[key][others], expected_gradients[key][others])
        assert gradients[key].isfinite().all()
    # What the definition makes of it is not finite here either: nothing wrong looks right.
    defined, defined_final, _ = run(bad, "recurrent")
    assert not (y.isfinite() & ~defined.isfinite()).any()
    assert not (final.isfinite() & ~defined_final.isfinite()).any()
    # No other head, no earlier token, and no final state of a later document is lost.
    assert y[row, :place].isfinite().all()
    assert final[1 - row].isfinite().all()
    if document[place] != 3:
        torch.testing.assert_close(final, expected_final)
    groups = {0: [0, 1]} if name in ("B", "C") else {}
    touched = groups.get(0, [1] if initial else [0])
    assert y[:, :, [head for head in range(4) if head not in touched]].isfinite().all()


def test_a_whole_document_of_nan_is_nan_and_the_others_are_as_if_alone():
    inputs = make_inputs()
    for name in PER_TOKEN:
        inputs[name][0, 5:14] = torch.nan
    y = ssd(**inputs, seq_idx=seq_idx(), chunk_size=8, backend="torch")
    assert y[0, 5:14].isnan().all()
    start = 0
    for number, length in enumerate(LENGTHS):
        if number != 1:
            span = slice(start, start + length)
            alone = {name: t[:1, span] if name in PER_TOKEN else t for name, t in inputs.items()}
            torch.testing.assert_close(y[:1, span], ssd(**alone, backend="recurrent"))
        start += length


def test_finite_inputs_are_passed_on_as_they_are():
    inputs = make_inputs()
    given_ = [inputs["x"], inputs["dt"], inputs["B"], inputs["C"], None]
    passed = isolate_documents(*given_, torch.zeros(2, LENGTH, dtype=torch.long))
    assert all(a is b for a, b in zip(passed, [*given_, None], strict=True))


def test_a_sum_that_overflows_is_not_taken_for_a_value_that_did():
    inputs = {name: tensor.float() for name, tensor in make_inputs().items()}
    inputs["C"][0, 2] = 3e38
    inputs["B"][0, :, :, 1:] = 0
    inputs["C"][0, 2, :, 1:] = 3e38
    x, *_, spoiled = isolate_documents(
        inputs["x"], inputs["dt"], inputs["B"], inputs["C"], None, torch.zeros(2, LENGTH, dtype=torch.long)
    )
    assert torch.equal(x, inputs["x"])
    assert not spoiled.output.any()


@pytest.mark.parametrize("activation", ["identity", "silu"])
def test_convolution(activation):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((2, LENGTH, 3), (3, 4), (3,)))
    bad = x.clone()
    bad[0, 5:14] = torch.nan
    bad[1, 13] = torch.inf
    others = torch.ones(2, LENGTH, dtype=torch.bool)
    others[:, 5:14] = False  # the whole document: its earlier tokens get a gradient through it

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        y = causal_conv1d(leaf, weight, bias, seq_idx=seq_idx(), activation=activation)
        return y[others], torch.autograd.grad(y[others].square().sum(), leaf)[0][others]

    for ours, expected in zip(run(bad), run(x), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_mixer_with_padding_and_state(padding):
    torch.manual_seed(0)
    mixer = Mamba2Mixer(8, d_state=4, headdim=4, chunk_size=6, bias=True).double()
    hidden = torch.randn(2, LENGTH, 8, dtype=torch.float64)
    bad = hidden.clone()
    bad[:, 5:14] = torch.nan
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[:, :3] = padding != "left"
    mask[:, -3:] = padding != "right"
    bad[~mask] = torch.inf
    others = mask.clone()
    others[:, 5:14] = False

    def run(hidden: Tensor) -> tuple[Tensor, ...]:
        leaf = hidden.clone().requires_grad_()
        out, state = mixer(leaf, mask=mask, seq_idx=seq_idx(), return_state=True)
        (gradient,) = torch.autograd.grad(out[others].square().sum() + state.ssm.sum() + state.conv.sum(), leaf)
        return out[others], gradient[others], state.ssm, state.conv

    for ours, expected in zip(run(bad), run(hidden), strict=True):
        torch.testing.assert_close(ours, expected)
