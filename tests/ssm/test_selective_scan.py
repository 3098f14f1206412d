"""The selective scan: the chunked form is the definition, in values, states and gradients, for any decay."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.errors import UserError
from ablate.ssm import selective_scan
from ablate.ssm.kernels import selective_kernel
from ablate.ssm.selective_scan import selective_step


def arguments(batch=2, length=13, channels=3, n=4, *, rate=1.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": normal(batch, length, channels),
        "dt": normal(batch, length, channels).abs() * 0.5,
        "A": -normal(channels, n).abs() * rate,
        "B": normal(batch, length, n),
        "C": normal(batch, length, n),
        "D": normal(channels),
    }


def documents(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (batch, length), generator=generator)  # numbers that come again


@given(
    length=st.integers(1, 20),
    chunk=st.integers(1, 24),
    rate=st.sampled_from([1e-3, 1.0, 100.0, 1e5]),
    packed=st.booleans(),
    go_on=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_chunks_are_the_definition(length, chunk, rate, packed, go_on, seed):
    given_ = arguments(length=length, rate=rate, seed=seed)
    options = {
        "seq_idx": documents(2, length, seed) if packed else None,
        "initial_state": torch.randn(2, 3, 4, dtype=torch.float64) if go_on else None,
        "return_final_state": True,
    }
    inputs = [*given_.values(), *([options["initial_state"]] if go_on else [])]
    for tensor in inputs:
        tensor.requires_grad_()
    results = []
    for backend in ("recurrent", "torch"):
        y, state = selective_scan(**given_, **options, chunk_size=chunk, backend=backend)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        gradients = torch.autograd.grad((y * weights).sum() + state.square().sum(), inputs)
        results.append((y, state, *gradients))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected)


def test_float32_is_near_the_definition_over_long_sequences():
    for rate in (1e-3, 1.0, 30.0):
        exact = selective_scan(**arguments(1, 300, rate=rate), backend="recurrent")
        single = selective_scan(**arguments(1, 300, rate=rate, dtype=torch.float32), backend="torch")
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), exact, atol=1e-4, rtol=1e-4)


def test_nothing_overflows_however_fast_the_decay():
    given_ = arguments(dtype=torch.float32, rate=1e6)
    for tensor in given_.values():
        tensor.requires_grad_()
    y = selective_scan(**given_)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(tensor.grad.isfinite().all() for tensor in given_.values())


def test_steps_are_the_scan():
    given_ = arguments()
    y, final = selective_scan(**given_, return_final_state=True)
    state = torch.zeros(2, 3, 4, dtype=torch.float64)
    per_token = [given_[name].unbind(1) for name in ("x", "dt", "B", "C")]
    for t, (x, dt, B, C) in enumerate(zip(*per_token, strict=True)):
        out, state = selective_step(x, dt, given_["A"], B, C, given_["D"], state, inplace=t % 2 == 0)
        torch.testing.assert_close(out, y[:, t])
    torch.testing.assert_close(state, final)


def test_half_precision_accumulates_in_float32():
    given_ = {name: tensor.bfloat16() for name, tensor in arguments().items()}
    y, state = selective_scan(**given_, return_final_state=True)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        again, _ = selective_scan(**given_, return_final_state=True)
    assert torch.equal(y, again)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize("backend", ["recurrent", "torch"])
def test_nothing_is_scanned_to_nothing(shape, backend):
    given_ = arguments(*shape)
    for tensor in given_.values():
        tensor.requires_grad_()
    before = torch.randn(shape[0], 3, 4, dtype=torch.float64)
    y, state = selective_scan(**given_, initial_state=before, return_final_state=True, backend=backend)
    assert y.shape == (*shape, 3)
    assert torch.equal(state, before)
    (y.sum() + state.sum()).backward()
    assert not any(tensor.grad.any() for tensor in given_.values())


@pytest.mark.parametrize("name", ["x", "dt", "B", "C"])
def test_what_is_not_finite_stays_in_its_document(name):
    given_ = arguments()
    seq_idx = torch.tensor([[0] * 4 + [1] * 5 + [0] * 4] * 2)
    expected = selective_scan(**given_, seq_idx=seq_idx)
    given_[name] = given_[name].clone()
    given_[name][:, 6] = torch.nan
    for tensor in given_.values():
        tensor.requires_grad_()
    y = selective_scan(**given_, seq_idx=seq_idx)
    others = torch.cat([y[:, :4], y[:, 9:]], dim=1)
    torch.testing.assert_close(others, torch.cat([expected[:, :4], expected[:, 9:]], dim=1))
    assert y[:, 6].isnan().all()
    others.sum().backward()
    assert given_["x"].grad[:, 9:].isfinite().all()
    assert given_["A"].grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dt": torch.zeros(2, 12, 3)}, "dt has shape"),
        ({"A": torch.zeros(4)}, "A"),
        ({"B": torch.zeros(2, 13, 5)}, "B has shape"),
        ({"D": torch.zeros(4)}, "D has shape"),
        ({"seq_idx": torch.zeros(2, 12)}, "seq_idx has shape"),
        ({"initial_state": torch.zeros(2, 4, 3)}, "initial_state has shape"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"backend": "tirton"}, "Unknown scan backend"),
    ],
)
def test_what_does_not_fit_is_told(change, said):
    with pytest.raises(ValueError, match=said):
        selective_scan(**arguments() | change)


def test_the_kernel_is_not_taken_silently_where_it_cannot_be():
    with pytest.raises(UserError, match="CUDA"):
        selective_scan(**arguments(), backend="mamba_ssm")
    try:
        import mamba_ssm  # noqa: F401
    except ImportError:
        assert "pip install" in selective_kernel()[1]
