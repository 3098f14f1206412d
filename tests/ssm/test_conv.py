"""The causal convolution against torch's, and against its own definition where torch has none."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ablate.ssm import causal_conv1d


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None = None) -> Tensor:
    channels, width = weight.shape
    x = x.transpose(1, 2)
    x = F.pad(x, (width - 1, 0)) if state is None else torch.cat([state, x], dim=2)
    return F.conv1d(x, weight[:, None], bias, groups=channels).transpose(1, 2)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_torch_convolution(sizes: tuple[int, ...], with_bias: bool, with_state: bool, silu: bool) -> None:
    batch, length, channels, width = sizes
    x, weight = normal(batch, length, channels), normal(channels, width, seed=1)
    bias = normal(channels, seed=2) if with_bias else None
    state = normal(batch, channels, width - 1, seed=3) if with_state else None
    ours = causal_conv1d(x, weight, bias, initial_state=state, activation="silu" if silu else "identity")
    expected = reference(x, weight, bias, state)
    expected = F.silu(expected) if silu else expected
    torch.testing.assert_close(ours, expected)
    inputs = [t for t in (x, weight, bias, state) if t is not None and t.numel()]
    weights = normal(*ours.shape, seed=4).detach()
    for gradient, theirs in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_inputs_in_lower_precision(dtype: torch.dtype) -> None:
    """More than one block of the weight's gradient; a view with a stride, as the mixer passes."""
    x = normal(2, 700, 300, dtype=dtype).detach()[..., 20:148].requires_grad_()
    weight, bias = normal(128, 4, seed=1, dtype=dtype), normal(128, seed=2, dtype=dtype)
    ours = causal_conv1d(x, weight, bias)
    assert ours.dtype == dtype
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = reference(*exact)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    pairs = [(ours, expected)]
    weights = normal(*ours.shape, seed=3).detach()
    pairs += zip(
        torch.autograd.grad((ours * weights).sum(), (x, weight, bias)),
        torch.autograd.grad((expected * weights).sum(), exact),
        strict=True,
    )
    for ours_i, expected_i in pairs:
        assert (ours_i - expected_i).abs().max() <= tolerance * expected_i.abs().max()


@pytest.mark.parametrize("activation", ["identity", "silu"])
def test_documents_do_not_see_each_other(activation: str) -> None:
    x, weight, bias, state = normal(2, 9, 3), normal(3, 4, seed=1), normal(3, seed=2), normal(2, 3, 3, seed=3)
    seq_idx = torch.tensor([[0, 0, 5, 5, 5, 5, 5, 0, 0], [0, 0, 5, 5, 5, 5, 5, 0, 0]])
    ours = causal_conv1d(x, weight, bias, seq_idx=seq_idx, initial_state=state, activation=activation)
    documents = x.split([2, 5, 2], dim=1)
    expected = [
        causal_conv1d(document, weight, bias, initial_state=state if i == 0 else None, activation=activation)
        for i, document in enumerate(documents)
    ]
    expected = torch.cat(expected, 1)
    torch.testing.assert_close(ours, expected)
    inputs = (x, weight, bias, state)
    for gradient, theirs in zip(
        torch.autograd.grad(ours.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"x has shape \(2, 3\)"),
        ({"weight": torch.zeros(4, 4)}, r"weight has shape \(4, 4\), expected \(channels, width\) = \(3, 4\)"),
        ({"bias": torch.zeros(4)}, "bias has shape"),
        ({"seq_idx": torch.zeros(2, 4)}, "seq_idx has shape"),
        ({"initial_state": torch.zeros(2, 3, 4)}, r"initial_state has shape .* = \(2, 3, 3\)"),
        ({"activation": "gelu"}, "silu"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        causal_conv1d(**{"x": torch.zeros(2, 5, 3), "weight": torch.zeros(3, 4)} | change)
