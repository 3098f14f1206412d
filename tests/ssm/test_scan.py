"""The scan: its forms against each other, and against the formula written out as one sum."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ablate.ssm import ssd, ssd_step

F64 = torch.float64


def make_inputs(
    *, batch=2, length=13, heads=4, headdim=3, groups=2, state=5, D_shape="heads", initial=True, dtype=F64, seed=0
) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=F64).to(dtype)

    inputs = {
        "x": normal(batch, length, heads, headdim),
        "dt": normal(batch, length, heads).exp() * 0.5,
        "A": -normal(heads).exp(),
        "B": normal(batch, length, groups, state),
        "C": normal(batch, length, groups, state),
    }
    if D_shape is not None:
        inputs["D"] = normal(heads) if D_shape == "heads" else normal(heads, headdim)
    if initial:
        inputs["initial_state"] = normal(batch, heads, headdim, state)
    return inputs


def outputs_and_gradients(inputs: dict[str, Tensor], *, final: bool = True, **options) -> dict[str, Tensor]:
    """y and, if asked, the final state, with the gradients of a random sum of them."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    outputs = ssd(**leaves, return_final_state=final, **options)
    named = {"y": outputs[0], "final": outputs[1]} if final else {"y": outputs}
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=random, dtype=F64) for t in named.values()]
    loss = sum((t * weight).sum() for t, weight in zip(named.values(), weights, strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return named | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}


def assert_agree(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    for name, expected in theirs.items():
        torch.testing.assert_close(
            ours[name], expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "length": st.integers(1, 40),
        "headdim": st.integers(1, 4),
        "state": st.integers(1, 6),
        "D_shape": st.sampled_from([None, "heads", "heads, headdim"]),
        "initial": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 3), st.integers(1, 3), st.integers(1, 50), st.booleans(), st.booleans(), st.data())
def test_chunked_form_is_the_recurrence(shape, groups, heads_per_group, chunk_size, packed, final, data) -> None:
    inputs = make_inputs(**shape, groups=groups, heads=groups * heads_per_group)
    batch, length = inputs["x"].shape[:2]
    seq_idx = None
    if packed:
        rows = st.lists(st.integers(-1, 2), min_size=length, max_size=length)
        seq_idx = torch.tensor(data.draw(st.lists(rows, min_size=batch, max_size=batch)))
    inputs["dt"][torch.rand(inputs["dt"].shape[:2], generator=torch.Generator().manual_seed(2)) < 0.2] = 0  # padding
    expected = outputs_and_gradients(inputs, final=final, seq_idx=seq_idx, backend="recurrent")
    chunked = outputs_and_gradients(inputs, final=final, seq_idx=seq_idx, chunk_size=chunk_size, backend="torch")
    assert_agree(chunked, expected, 1e-10)


@pytest.mark.parametrize("backend", ["recurrent", "torch"])
def test_the_formula_as_one_sum(backend: str) -> None:
    """y_i = sum over j <= i of (C_i . B_j) exp(sum of dt A over j+1..i) dt_j x_j, + D x_i; every head by itself."""
    inputs = make_inputs(initial=False)
    x, dt, A, B, C, D = inputs.values()
    expected = torch.zeros_like(x)
    for h in range(x.shape[2]):
        g = h // 2
        for i in range(x.shape[1]):
            for j in range(i + 1):
                decay = torch.exp((dt[:, j + 1 : i + 1, h] * A[h]).sum(1))
                weight = (C[:, i, g] * B[:, j, g]).sum(-1) * decay * dt[:, j, h]
                expected[:, i, h] += weight[:, None] * x[:, j, h]
    expected += D[:, None] * x
    torch.testing.assert_close(ssd(**inputs, chunk_size=4, backend=backend), expected)


@pytest.mark.parametrize("backend", ["recurrent", "torch"])
def test_documents_are_scanned_as_if_alone(backend: str) -> None:
    inputs = make_inputs(length=20)
    cut = 7
    seq_idx = (torch.arange(20) >= cut).expand(2, -1).int()
    packed, final = ssd(**inputs, seq_idx=seq_idx, chunk_size=5, return_final_state=True, backend=backend)
    per_token = {"x", "dt", "B", "C"}
    first = {name: t[:, :cut] if name in per_token else t for name, t in inputs.items()}
    second = {name: t[:, cut:] if name in per_token else t for name, t in inputs.items() if name != "initial_state"}
    y_first = ssd(**first, backend="recurrent")
    y_second, final_second = ssd(**second, return_final_state=True, backend="recurrent")
    torch.testing.assert_close(packed, torch.cat([y_first, y_second], 1))
    torch.testing.assert_close(final, final_second)


@pytest.mark.parametrize("backend", ["recurrent", "torch"])
def test_a_scan_can_go_on_where_another_ended(backend: str) -> None:
    inputs = make_inputs(length=17)
    whole, final = ssd(**inputs, return_final_state=True, backend=backend)
    per_token = {"x", "dt", "B", "C"}
    first = {name: t[:, :9] if name in per_token else t for name, t in inputs.items()}
    second = {name: t[:, 9:] if name in per_token else t for name, t in inputs.items()}
    y_first, state = ssd(**first, chunk_size=4, return_final_state=True, backend=backend)
    second["initial_state"] = state
    y_second, final_second = ssd(**second, chunk_size=4, return_final_state=True, backend=backend)
    torch.testing.assert_close(torch.cat([y_first, y_second], 1), whole)
    torch.testing.assert_close(final_second, final)


@pytest.mark.parametrize("D_shape", [None, "heads", "heads, headdim"])
def test_steps_are_the_scan(D_shape: str | None) -> None:
    inputs = make_inputs(D_shape=D_shape)
    y, final = ssd(**inputs, chunk_size=4, return_final_state=True)
    state = inputs.pop("initial_state")
    per_token = {"x", "dt", "B", "C"}
    for t in range(y.shape[1]):
        token = {name: tensor[:, t] if name in per_token else tensor for name, tensor in inputs.items()}
        kept = state.clone()
        y_t, new_state = ssd_step(**token, state=state)
        assert torch.equal(state, kept)  # not written to
        torch.testing.assert_close(y_t, y[:, t])
        state = new_state
    torch.testing.assert_close(state, final)


def test_tokens_with_dt_zero_leave_no_trace() -> None:
    inputs = make_inputs(length=12)
    inputs["dt"][0, 5:8] = 0
    expected = outputs_and_gradients(inputs, chunk_size=4)
    inputs["x"][0, 5:8] = 1e3
    inputs["B"][0, 5:8] = -1e3
    disturbed = outputs_and_gradients(inputs, chunk_size=4)
    real = torch.ones(2, 12, dtype=torch.bool)
    real[0, 5:8] = False
    torch.testing.assert_close(disturbed["y"][real], expected["y"][real])
    torch.testing.assert_close(disturbed["final"], expected["final"])
    torch.testing.assert_close(disturbed["dx"][real], expected["dx"][real])


def test_rows_of_the_batch_do_not_meet() -> None:
    inputs = make_inputs(batch=3)
    y = ssd(**inputs, chunk_size=4)
    for name in ("x", "dt", "B", "C", "initial_state"):
        inputs[name][1:] = inputs[name][1:].flip(0)
    assert torch.equal(ssd(**inputs, chunk_size=4)[0], y[0])


@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck(packed: bool) -> None:
    inputs = make_inputs(batch=1, length=5, heads=2, headdim=2, groups=1, state=2)
    names = list(inputs)
    seq_idx = torch.tensor([[0, 0, 1, 1, 1]]) if packed else None

    def scan(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, tensors, strict=True))
        return ssd(**named, seq_idx=seq_idx, chunk_size=2, return_final_state=True, backend="torch")

    assert torch.autograd.gradcheck(scan, [t.requires_grad_() for t in inputs.values()])


@pytest.mark.parametrize("A", [-1e-4, -30.0, -1e4])
def test_slow_and_fast_decays_stay_finite_and_right_in_float32(A: float) -> None:
    """A fast decay overflows exp on the wrong side of the diagonal and underflows on the right one."""
    inputs = make_inputs(length=100, dtype=torch.float32)
    inputs["A"][:] = A
    ours = outputs_and_gradients(inputs, chunk_size=64, backend="torch")
    exact = outputs_and_gradients({name: t.double() for name, t in inputs.items()}, backend="recurrent")
    for name, expected in exact.items():
        assert torch.isfinite(ours[name]).all(), name
        if name != "dA":  # vanishes with a fast decay
            # Sums of dt A reach thousands here: their differences hold 1e-4 in float32.
            assert (ours[name] - expected).abs().max() <= 2e-4 * expected.abs().max() + 1e-20, name


@pytest.mark.parametrize("backend", ["recurrent", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(dtype=dtype)
    y, final = ssd(**inputs, chunk_size=4, return_final_state=True, backend=backend)
    assert y.dtype == dtype
    assert final.dtype == (F64 if dtype == F64 else torch.float32)
    y, state = ssd_step(
        *(inputs[n][:, 0] for n in ("x", "dt")), inputs["A"], inputs["B"][:, 0], inputs["C"][:, 0], state=final
    )
    assert y.dtype == dtype
    assert state.dtype == final.dtype


@pytest.mark.parametrize("backend", ["recurrent", "torch"])
def test_autocast_changes_nothing(backend: str) -> None:
    inputs = make_inputs(dtype=torch.float32)
    plain = ssd(**inputs, return_final_state=True, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ssd(**inputs, return_final_state=True, backend=backend)
    assert torch.equal(plain[0], cast[0])
    assert torch.equal(plain[1], cast[1])


def test_only_the_gradients_asked_for() -> None:
    inputs = make_inputs()
    inputs["x"].requires_grad_()
    _, final = ssd(**inputs, return_final_state=True, backend="torch")
    (gradient,) = torch.autograd.grad(final.sum(), inputs["x"])  # y has no gradient at all
    assert gradient.abs().sum() > 0
    assert inputs["dt"].grad is None


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (2, 13, 12), r"x has shape \(2, 13, 12\)"),
        ("x", (2, 13, 4, 0), "at least one head, channel and state"),
        ("dt", (2, 13), r"dt has shape \(2, 13\), expected \(batch, length, heads\) = \(2, 13, 4\)"),
        ("A", (4, 1), r"A has shape \(4, 1\)"),
        ("B", (2, 13, 3, 5), "4 heads cannot be shared among 3 groups"),
        ("C", (2, 13, 2, 6), r"C has shape \(2, 13, 2, 6\)"),
        ("D", (3,), r"D has shape \(3,\), expected .* \(4,\) or \(4, 3\)"),
        ("initial_state", (2, 4, 5, 3), r"initial state has shape \(2, 4, 5, 3\)"),
        ("seq_idx", (13,), r"seq_idx has shape \(13,\)"),
    ],
)
def test_wrong_shapes_are_named(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ssd(**make_inputs() | {name: torch.zeros(shape)})


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="chunk_size is 0"):
        ssd(**make_inputs(), chunk_size=0)
    with pytest.raises(ValueError, match="recurrent"):
        ssd(**make_inputs(), backend="recurent")


@pytest.mark.parametrize("initial", [False, True])
def test_gradients_arrive_in_any_memory_layout(initial) -> None:
    """As those of a state that was transposed, or of an output whose heads were."""
    inputs = make_inputs(initial=initial)

    def gradients(backend: str) -> tuple[Tensor, ...]:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        y, final = ssd(**leaves, chunk_size=4, return_final_state=True, backend=backend)
        y, final = y.transpose(1, 2), final.transpose(-1, -2)
        loss = (y * torch.arange(y.numel(), dtype=F64).view(y.shape).cos()).sum()
        loss = loss + (final * torch.arange(final.numel(), dtype=F64).view(final.shape).sin()).sum()
        return torch.autograd.grad(loss, list(leaves.values()))

    for ours, expected in zip(gradients("torch"), gradients("recurrent"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [5, 12])
@pytest.mark.parametrize("with_initial_state", [False, True])
def test_the_final_state_costs_nothing_in_precision_whether_asked_for_or_not(length, with_initial_state):
    """Without it the chunked form leaves out the state after the last chunk, and a zero state before the first."""
    torch.manual_seed(0)
    shapes = [(2, length, 4, 3), (2, length, 4), (4,), (2, length, 2, 5), (2, length, 2, 5)]
    x, dt, A, B, C = leaves = [torch.rand(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    state = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True) if with_initial_state else None
    leaves += [state] if with_initial_state else []

    def run(backend, **options):
        y = ssd(x, dt, -A, B, C, chunk_size=5, initial_state=state, backend=backend, **options)
        y = y[0] if options else y
        return y, *torch.autograd.grad(y.square().sum(), leaves)

    expected = run("recurrent")
    for options in ({}, {"return_final_state": True}):
        for mine, theirs in zip(run("torch", **options), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
