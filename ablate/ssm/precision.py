"""What is always computed in at least float32, and a zero that stands in for unused parameters."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def at_least_float32(x: Tensor) -> Tensor:
    """x itself if it is float32 or float64, else x in float32."""
    return x.to(accumulation_dtype(x))


def connected_zero(*tensors: Tensor | None) -> Tensor:
    """A scalar zero that passes a gradient of zero to each of the tensors, for any values (0 * inf would be NaN)."""
    return sum((at_least_float32(t).flatten()[:0].sum() for t in tensors if t is not None), torch.tensor(0.0))
