"""No rows and no tokens: outputs of the right shape, gradients of zero, in every form of every operation."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ablate.errors import UserError
from ablate.ssm import GatedRMSNorm, Mamba2Mixer, RMSNorm, causal_conv1d, ssd, ssd_step

SIZES = st.tuples(st.integers(0, 3), st.integers(0, 3))  # batch, length
ANY = settings(max_examples=25, deadline=None)


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.rand(shape, dtype=torch.float64).requires_grad_() for shape in shapes]


def assert_gradients_of_zero(output: Tensor, inputs: list[Tensor]) -> None:
    for gradient, tensor in zip(torch.autograd.grad(output.sum(), inputs), inputs, strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


@pytest.mark.parametrize("backend", ["auto", "recurrent", "torch", "mamba_ssm"])
@ANY
@given(SIZES, st.integers(1, 2), st.integers(1, 2), st.booleans(), st.booleans(), st.booleans())
def test_scan(backend, sizes, groups, per_group, skip, with_state, packed):
    batch, length = sizes
    heads = groups * per_group
    assume(batch * length == 0 or backend != "mamba_ssm")
    read = (batch, length, groups, 2)
    x, dt, A, B, C = inputs = leaves((batch, length, heads, 3), (batch, length, heads), (heads,), read, read)
    D, state = leaves((heads,), (batch, heads, 3, 2))
    inputs += [D] * skip + [state] * with_state
    y, final = ssd(
        x, dt, -A, B, C, D if skip else None,
        seq_idx=torch.zeros(batch, length, dtype=torch.long) if packed else None,
        initial_state=state if with_state else None,
        return_final_state=True,
        backend=backend,
    )  # fmt: skip
    assert y.shape == x.shape
    assert final.shape == (batch, heads, 3, 2)
    if batch * length == 0:
        assert torch.equal(final, state if with_state else torch.zeros_like(state))
        assert_gradients_of_zero(y, inputs)
        if with_state:  # passes through, to the bit and with its gradient
            assert torch.equal(torch.autograd.grad(final.sum(), state)[0], torch.ones_like(state))


def test_step_of_no_rows():
    x, dt, A, B, C, state = leaves((0, 4, 3), (0, 4), (4,), (0, 2, 5), (0, 2, 5), (0, 4, 3, 5))
    y, after = ssd_step(x, dt, -A, B, C, state=state)
    assert y.shape == (0, 4, 3)
    assert after.shape == (0, 4, 3, 5)
    assert_gradients_of_zero(y, [x, dt, A, B, C, state])


@pytest.mark.parametrize("activation", ["identity", "silu"])
@ANY
@given(SIZES, st.integers(1, 4), st.booleans(), st.booleans(), st.booleans())
def test_convolution(activation, sizes, width, bias, packed, with_state):
    x, weight, b, state = leaves((*sizes, 3), (3, width), (3,), (sizes[0], 3, width - 1))
    inputs = [x, weight, *([b] * bias), *([state] * (with_state and state.numel() > 0))]
    y = causal_conv1d(
        x, weight, b if bias else None,
        seq_idx=torch.zeros(sizes, dtype=torch.long) if packed else None,
        initial_state=state if with_state else None,
        activation=activation,
    )  # fmt: skip
    assert y.shape == x.shape
    if x.numel() == 0:
        assert_gradients_of_zero(y, inputs)


@pytest.mark.parametrize("norm", [RMSNorm(6), GatedRMSNorm(6), GatedRMSNorm(6, group_size=2, norm_before_gate=True)])
@pytest.mark.parametrize("shape", [(0, 6), (0, 4, 6), (4, 0, 6), (0, 0, 6)])
def test_norms(norm: nn.Module, shape: tuple[int, ...]):
    gate = (torch.rand(shape),) if isinstance(norm, GatedRMSNorm) else ()
    x = torch.rand(shape, requires_grad=True)
    y = norm(x, *gate)
    assert y.shape == shape
    assert_gradients_of_zero(y, [x, norm.weight])
    with torch.no_grad():
        assert norm(x, *gate).shape == shape


@pytest.mark.parametrize("fields", [{}, {"ngroups": 2, "D_has_hdim": True, "bias": True}, {"rmsnorm": False}])
@ANY
@given(SIZES, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_mixer(fields, sizes, masked, packed, go_on, real):
    batch, length = sizes
    mixer = Mamba2Mixer(8, d_state=4, headdim=4, **fields)
    hidden = torch.rand(*sizes, 8, requires_grad=True)
    out, state = mixer(
        hidden,
        mask=torch.full(sizes, real) if masked else None,  # all real, or rows of nothing but padding
        seq_idx=torch.zeros(sizes, dtype=torch.long) if packed else None,
        state=mixer.init_state(batch) if go_on else None,
        return_state=True,
    )
    assert out.shape == hidden.shape
    assert out.isfinite().all()
    before = mixer.init_state(batch)
    assert (state.conv.shape, state.ssm.shape) == (before.conv.shape, before.ssm.shape)
    if length == 0 or (masked and not real):
        assert not state.ssm.any()
        assert not state.conv.any()
    if hidden.numel() == 0:
        assert_gradients_of_zero(out, [hidden, *mixer.parameters()])
    out, after = mixer.step(torch.rand(batch, 8), state)
    assert out.shape == (batch, 8)
    assert after.ssm.shape == before.ssm.shape


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"chunk_size": -1}, "chunk_size is -1"),
        ({"headdim": 0}, "headdim is 0"),
        ({"ngroups": 0}, "ngroups is 0"),
        ({"d_state": 0}, "d_state is 0"),
        ({"expand": 0}, "expand is 0"),
        ({"d_model": 0}, "d_model is 0"),
        ({"headdim": 5}, "inner width 16 .* headdim 5"),
        ({"ngroups": 3}, "4 heads .* 3 groups"),
        ({"dt_min": 0.0}, "dt_min 0.0"),
        ({"dt_limit": (1.0, 0.5)}, "dt_limit"),
        ({"backend": "triton"}, "scan backend"),
    ],
)
def test_impossible_sizes_are_the_users_error(fields, said):
    with pytest.raises(UserError, match=said):
        Mamba2Mixer(**{"d_model": 8, "d_state": 4, "headdim": 4} | fields)


def test_tokens_of_another_width_are_the_users_error():
    mixer = Mamba2Mixer(8, d_state=4, headdim=4)
    for hidden in (torch.zeros(2, 3, 7), torch.zeros(2, 8)):
        with pytest.raises(UserError, match="hidden has shape"):
            mixer(hidden)
    with pytest.raises(UserError, match="seq_idx has shape"):
        mixer(torch.zeros(2, 3, 8), seq_idx=torch.zeros(2, 4))
