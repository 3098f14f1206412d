"""Root-mean-square norms (Zhang & Sennrich 2019, arXiv 1910.07467), plain and gated as in Mamba-2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis; (..., dim) in any float dtype, computed in float32 at least."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class GatedRMSNorm(nn.Module):
    """RMS norm of x gated by silu(z): norm(x silu(z)), or norm(x) silu(z) with `norm_before_gate`.

    Args:
        dim: width of the last axis.
        group_size: the mean square is taken over groups of this many neighbouring channels (default: all of them).
    """

    def __init__(
        self, dim: int, eps: float = 1e-5, *, group_size: int | None = None, norm_before_gate: bool = False
    ) -> None:
        super().__init__()
        if group_size is not None and (group_size < 1 or dim % group_size):
            raise ValueError(f"group_size is {group_size}, expected a divisor of dim {dim}")
        self.eps = eps
        self.group_size = dim if group_size is None else group_size
        self.norm_before_gate = norm_before_gate
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x, z: (..., dim) -> (..., dim) in the dtype of x."""
        dtype = x.dtype
        x, gate = _at_least_float32(x), F.silu(_at_least_float32(z))
        if self.norm_before_gate:
            return (rms_norm(x, self.weight, self.eps, self.group_size) * gate).to(dtype)
        return rms_norm(x * gate, self.weight, self.eps, self.group_size).to(dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, group_size: int | None = None) -> Tensor:
    """x (..., dim) over the root mean square of its last axis (or of its groups of `group_size`), times weight (dim,)."""
    dtype = x.dtype
    x = _at_least_float32(x)
    grouped = x if group_size is None else x.unflatten(-1, (-1, group_size))
    normed = grouped * torch.rsqrt(grouped.square().mean(dim=-1, keepdim=True) + eps)
    return (normed.reshape(x.shape) * weight).to(dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
