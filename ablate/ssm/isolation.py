"""Documents packed in one row stay apart even where one of them is not finite.

The chunked form and mamba-ssm's kernels keep documents apart with factors of zero in matrix products, and zero times
NaN is NaN: one document whose activations have overflowed would make the whole row NaN. So what is not finite is
replaced by zeros before the scan, and everything that has read it is set to NaN after the scan.

Shape suffixes: b batch, l length, h head, g group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Spoiled(NamedTuple):
    """What has read something that is not finite: output (b, l, h) and final state (b, h), both bool."""

    output: Tensor
    state: Tensor


def isolate_documents(
    x: Tensor, dt: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None, document: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Spoiled | None]:
    """The arguments of `ablate.ssm.ssd` without what is not finite, and what has read it (None if nothing is there).

    `document` (b, l) counts up from 0. On a CPU two passes over the inputs find that all is finite; on other devices
    the answer would have to be waited for, so the replacements are always made.
    """
    given = (x, dt, B, C, initial_state)
    if x.device.type == "cpu" and all(bool(t.detach().sum().isfinite()) for t in given if t is not None):
        return *given, None
    bad_x, bad_B, bad_C = _not_finite(x), _not_finite(B), _not_finite(C)
    bad_dt = ~dt.isfinite()
    per_group = x.shape[2] // B.shape[2]
    enters = bad_x | bad_dt | bad_B.repeat_interleave(per_group, dim=2)  # (b, l, h)
    latest = torch.where(enters, document[..., None], -1).cummax(dim=1).values
    read = latest == document[..., None]
    if initial_state is not None:
        bad_state = _not_finite(initial_state.flatten(2))  # (b, h), of the first document
        read = read | (bad_state[:, None] & (document == 0)[..., None])
        initial_state = initial_state.masked_fill(bad_state[..., None, None], 0)
    return (
        x.masked_fill(bad_x[..., None], 0),
        dt.masked_fill(bad_dt, 0),
        B.masked_fill(bad_B[..., None], 0),
        C.masked_fill(bad_C[..., None], 0),
        initial_state,
        Spoiled(read | bad_C.repeat_interleave(per_group, dim=2), read[:, -1]),
    )


def _not_finite(x: Tensor) -> Tensor:
    """(..., d) -> (...) bool. The largest magnitude is one pass without intermediate values, and keeps NaN."""
    return ~torch.linalg.vector_norm(x.detach(), torch.inf, dim=-1).isfinite()
