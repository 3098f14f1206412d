"""Root-mean-square norms (Zhang & Sennrich 2019, arXiv 1910.07467), plain and gated as in Mamba-2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ablate.core.errors import UserError
from ablate.ssm.precision import accumulation_dtype, at_least_float32

# Elements worth a block: small enough for the cache, large enough that threads start seldom.
_BLOCK = 2**19


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis: (..., dim) in any float dtype, computed in float32 at least."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return _rms_norm(x, None, self.weight, self.eps, x.shape[-1], norm_before_gate=False)


class GatedRMSNorm(nn.Module):
    """RMS norm of x gated by silu(z): norm(x silu(z)), or norm(x) silu(z) with `norm_before_gate`.

    Args:
        dim: width of the last axis.
        eps: added to the mean square.
        group_size: the mean square is taken over groups of this many neighbouring channels (default: all of them).

    Raises:
        UserError: dim is not a multiple of group_size.
    """

    def __init__(
        self, dim: int, eps: float = 1e-5, *, group_size: int | None = None, norm_before_gate: bool = False
    ) -> None:
        super().__init__()
        if group_size is not None and (group_size < 1 or dim % group_size):
            raise UserError(f"group_size is {group_size}, expected a divisor of dim {dim}")
        self.eps = eps
        self.group_size = dim if group_size is None else group_size
        self.norm_before_gate = norm_before_gate
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x, z: (..., dim) -> (..., dim) in the dtype of x."""
        return _rms_norm(x, z, self.weight, self.eps, self.group_size, self.norm_before_gate)


def _rms_norm(
    x: Tensor, z: Tensor | None, weight: Tensor, eps: float, group_size: int, norm_before_gate: bool
) -> Tensor:
    if (z is not None and z.shape != x.shape) or weight.shape != x.shape[-1:]:
        raise UserError(
            f"x has shape {tuple(x.shape)}, its gate {None if z is None else tuple(z.shape)}, "
            f"the norm's weight {tuple(weight.shape)}: expected (..., dim), the same, and (dim,)"
        )
    if not torch.is_grad_enabled():
        return plain_rms_norm(x, z, weight, eps, group_size, norm_before_gate)
    flat = _RMSNorm.apply(
        x.reshape(-1, x.shape[-1]),
        None if z is None else z.reshape(-1, x.shape[-1]),
        weight,
        eps,
        group_size,
        norm_before_gate,
    )
    return flat.view(x.shape)


def plain_rms_norm(
    x: Tensor, z: Tensor | None, weight: Tensor, eps: float, group_size: int, norm_before_gate: bool
) -> Tensor:
    """The norm operation by operation: the definition, and the forward pass."""
    value = at_least_float32(x)
    gate = None if z is None else F.silu(at_least_float32(z))
    if gate is not None and not norm_before_gate:
        value = value * gate
    weight = weight.to(value.dtype)
    if group_size == x.shape[-1]:
        y = F.rms_norm(value, (group_size,), weight, eps)
    else:
        groups = x.shape[-1] // group_size
        y = F.rms_norm(value.view(*x.shape[:-1], groups, group_size), (group_size,), None, eps).view(x.shape) * weight
    return (y * gate if gate is not None and norm_before_gate else y).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """Keeps only its inputs: the backward pass computes the gate and the norm of (t, dim) again, in blocks of rows that
    stay in the cache. tests/bench/bench_norms.py has what that saves in memory and time."""

    @staticmethod
    def forward(ctx, x, z, weight, eps, group_size, norm_before_gate):
        ctx.save_for_backward(x, z, weight)
        ctx.eps, ctx.group_size, ctx.norm_before_gate = eps, group_size, norm_before_gate
        return plain_rms_norm(x, z, weight, eps, group_size, norm_before_gate)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        x, z, weight = ctx.saved_tensors
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dz = None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
        dweight = torch.zeros_like(weight, dtype=accumulation_dtype(x))
        for rows in _blocks(x):
            value, dnormed = at_least_float32(x[rows]), at_least_float32(dout[rows])
            if z is not None:
                z_rows = at_least_float32(z[rows])
                gate = F.silu(z_rows)
            if z is not None and not ctx.norm_before_gate:
                normed = value * gate
            else:
                normed = value.clone()
            scale = _inverse_rms(normed, ctx.eps, ctx.group_size)
            normed *= scale
            if z is not None and ctx.norm_before_gate:
                dgate = dnormed * normed * weight
                dnormed = dnormed * gate
            dweight += (dnormed * normed).sum(0)
            dvalue = dnormed * weight
            normed *= _group_means(dvalue * normed, ctx.group_size)
            dvalue -= normed
            dvalue *= scale
            if z is not None and not ctx.norm_before_gate:
                dgate = dvalue * value
                dvalue *= gate
            dx[rows] = dvalue
            if z is not None:
                dz[rows] = torch.ops.aten.silu_backward(dgate, z_rows)
        return dx, dz, dweight.to(weight.dtype), None, None, None


def _blocks(x: Tensor) -> list[slice]:
    """Slices of rows of x (t, dim) with about `_BLOCK` elements each; on other devices than CPU all rows at once."""
    count = x.shape[0] if x.device.type != "cpu" else max(1, _BLOCK // x.shape[1])
    return [slice(start, start + count) for start in range(0, x.shape[0], max(count, 1))]


def _inverse_rms(x: Tensor, eps: float, group_size: int) -> Tensor:
    """1 / sqrt(mean square + eps) of every group of channels, one per row if there is one group, else per element."""
    return torch.rsqrt(_group_means(x * x, group_size).add_(eps))


def _group_means(x: Tensor, group_size: int) -> Tensor:
    """(t, dim) -> (t, 1), or for more than one group (t, dim) with every channel holding its group's mean."""
    if group_size == x.shape[1]:
        return x.mean(1, keepdim=True)
    means = x.unflatten(1, (-1, group_size)).mean(2, keepdim=True)
    return means.expand(-1, -1, group_size).flatten(1)
