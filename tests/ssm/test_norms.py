"""The norms against their formulas, written with autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.ssm import GatedRMSNorm, RMSNorm


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def assert_same_with_gradients(ours: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, expected)
    weights = normal(*ours.shape, seed=9).detach()
    for gradient, theirs in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, theirs)


@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 6), (700, 6)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    norm, x = RMSNorm(6).double(), normal(*shape)
    norm.weight.data = normal(6, seed=1).detach()
    assert_same_with_gradients(norm(x), F.rms_norm(x, (6,), norm.weight, norm.eps), [x, norm.weight])


@pytest.mark.parametrize("group_size", [None, 2, 3])
@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (30_000, 6)])
def test_gated_rms_norm(group_size: int | None, norm_before_gate: bool, shape: tuple[int, ...]) -> None:
    norm = GatedRMSNorm(6, group_size=group_size, norm_before_gate=norm_before_gate).double()
    norm.weight.data = normal(6, seed=1).detach()
    x, z = normal(*shape), normal(*shape, seed=2)
    gated = x if norm_before_gate else x * F.silu(z)
    groups = gated.unflatten(-1, (-1, group_size or 6))
    normed = F.rms_norm(groups, groups.shape[-1:], eps=norm.eps).flatten(-2) * norm.weight
    expected = normed * F.silu(z) if norm_before_gate else normed
    assert_same_with_gradients(norm(x, z), expected, [x, z, norm.weight])
    with torch.no_grad():  # another path if there are few rows
        torch.testing.assert_close(norm(x, z), expected)


def test_lower_precision_goes_in_and_out_but_not_through() -> None:
    norm = GatedRMSNorm(8)
    x, z = normal(5, 8, dtype=torch.bfloat16), normal(5, 8, seed=1, dtype=torch.bfloat16)
    out = norm(x, z)
    assert out.dtype == torch.bfloat16
    expected = norm(x.float(), z.float())
    assert torch.equal(out, expected.bfloat16())
    with torch.no_grad():
        assert torch.equal(norm(x, z), out)
    out.sum().backward()
    assert x.grad.dtype == z.grad.dtype == torch.bfloat16
    assert norm.weight.grad.dtype == torch.float32


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="group_size is 4, expected a divisor of dim 6"):
        GatedRMSNorm(6, group_size=4)
    with pytest.raises(ValueError, match=r"its gate \(2, 5\)"):
        GatedRMSNorm(6)(torch.zeros(2, 6), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"weight \(6,\)"):
        RMSNorm(6)(torch.zeros(2, 5))
