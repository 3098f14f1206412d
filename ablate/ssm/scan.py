"""The state-space scan of Mamba-2 ("Transformers are SSMs", Dao & Gu 2024, arXiv 2405.21060).

For every batch row and head, with a scalar decay per token:

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        (headdim, state)
    y_t = h_t C_t + D x_t                             (headdim,)

Three forms which must agree: `recurrent` (the definition, token by token), `torch` (the chunked matrix form of the
paper's section 6, on any device) and `mamba_ssm` (the Triton kernels of the package mamba-ssm, on CUDA).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.core.errors import UserError, unknown_name
from ablate.ssm.chunked import chunked_scan
from ablate.ssm.isolation import isolate_documents
from ablate.ssm.kernels import kernel_scan, why_no_kernels
from ablate.ssm.precision import accumulation_dtype, at_least_float32, connected_zero


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    chunk_size: int | None = None,
    seq_idx: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    backend: str = "auto",
) -> Any:
    """Run the state-space scan over a batch of sequences. Differentiable (once) in every floating-point argument.

    A batch of no rows, or rows of no tokens, give an output of no elements and gradients of zero, in every backend.
    With `seq_idx`, what is not finite in one document (NaN, inf) reaches no other one, forward or backward: from that
    token on the heads that read it are NaN to the end of their document.

    Args:
        x: (batch, length, heads, headdim), the input.
        dt: (batch, length, heads), step sizes >= 0 (softplus already applied). 0 leaves the state untouched: padding.
        A: (heads,), negative decay rates.
        B: (batch, length, groups, state), input matrix; each group serves heads // groups neighbouring heads.
        C: (batch, length, groups, state), output matrix.
        D: (heads,) or (heads, headdim), skip weight, or None for no skip.
        chunk_size: longest chunk of the chunked forms, by default what is fast on the device. It does not
            change the result.
        seq_idx: (batch, length) integers; where a token's value differs from the previous token's, a new document
            begins and the state restarts at zero.
        initial_state: (batch, heads, headdim, state), the state before the first token (of the first document).
        return_final_state: also return the state after the last token.
        backend: "recurrent", "torch", "mamba_ssm", or "auto" (mamba_ssm for CUDA tensors if installed, else torch).

    Returns:
        y (batch, length, heads, headdim) in the dtype of x, and if asked the final state (batch, heads, headdim, state)
        in float32. If x is float64, all is computed and returned in float64.

    Raises:
        UserError: shapes that do not fit together, an unknown backend, or tensors the backend cannot take.
        ImportError: backend "mamba_ssm" without the package.
    """
    _check(x, dt, A, B, C, D, seq_idx, initial_state)
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size is {chunk_size}, expected at least 1")
    scan = _scan_of(backend, x)
    if chunk_size is None:
        chunk_size = 128 if x.device.type == "cpu" else 256
    dtype = accumulation_dtype(x)
    dt, A = dt.to(dtype), A.to(dtype)
    D, initial_state = (None if t is None else t.to(dtype) for t in (D, initial_state))
    if x.numel() == 0:
        y, state = _scan_of_nothing(x, dt, A, B, C, D, initial_state)
        return (y, state) if return_final_state else y
    document = None if seq_idx is None else _document_index(seq_idx)
    spoiled = None
    if document is not None and scan is not _recurrent_scan:
        x, dt, B, C, initial_state, spoiled = isolate_documents(x, dt, B, C, initial_state, document)
    with no_autocast(x):
        y, final_state = scan(
            x,
            dt,
            A,
            B,
            C,
            D,
            chunk_size=chunk_size,
            document=document,
            initial_state=initial_state,
            final_state=return_final_state,
        )
    y = y.to(x.dtype)
    if spoiled is not None:
        y = y.masked_fill(spoiled.output[..., None], torch.nan)
        if final_state is not None:
            final_state = final_state.masked_fill(spoiled.state[..., None, None], torch.nan)
    return (y, final_state) if return_final_state else y


def _scan_of_nothing(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y and the final state where there is no row or no token: the state that was given, or zeros."""
    zero = connected_zero(x, dt, A, B, C, D, initial_state)
    batch, _, heads, headdim = x.shape
    if initial_state is None:
        initial_state = x.new_zeros(batch, heads, headdim, B.shape[-1], dtype=accumulation_dtype(x))
    return x + zero.to(x.dtype), initial_state + zero.to(initial_state.dtype)


def ssd_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of `ssd`: the same arguments without the length axis.

    Args:
        x: (batch, heads, headdim).
        dt: (batch, heads).
        A: (heads,).
        B, C: (batch, groups, state).
        D: (heads,) or (heads, headdim) or None.
        state: (batch, heads, headdim, state), the state before the token; left as it is.

    Returns:
        y (batch, heads, headdim) in the dtype of x, and the new state in float32 (float64 if x is).

    Raises:
        UserError: shapes that do not fit together.
    """
    _check(x.unsqueeze(1), dt.unsqueeze(1), A, B.unsqueeze(1), C.unsqueeze(1), D, None, state)
    return unchecked_step(x, dt, A, B, C, D, state)


def unchecked_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor, *, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """`ssd_step` for callers whose shapes fit by construction: looking at them takes a tenth of a step.

    inplace: write the new state over the old one, if that has the dtype of the new one.
    """
    dtype = accumulation_dtype(x)
    with no_autocast(x):
        state = _advance(state.to(dtype), x.to(dtype), dt.to(dtype), A.to(dtype), B.to(dtype), inplace)
        y = _read(state, x.to(dtype), C.to(dtype), None if D is None else D.to(dtype))
    return y.to(x.dtype), state


def _recurrent_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    *,
    chunk_size: int,
    document: Tensor | None,
    initial_state: Tensor | None,
    final_state: bool = True,
) -> tuple[Tensor, Tensor]:
    """The definition. Takes and returns what `chunked_scan` does; has no use for `chunk_size` and `final_state`."""
    x, B, C = at_least_float32(x), at_least_float32(B), at_least_float32(C)
    batch, length, heads, headdim = x.shape
    state = x.new_zeros(batch, heads, headdim, B.shape[-1]) if initial_state is None else initial_state
    ys = []
    for t in range(length):
        if document is not None and t > 0:
            same = document[:, t] == document[:, t - 1]
            state = torch.where(same[:, None, None, None], state, 0.0)
        state = _advance(state, x[:, t], dt[:, t], A, B[:, t])
        ys.append(_read(state, x[:, t], C[:, t], D))
    return torch.stack(ys, dim=1), state


_SCANS: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "recurrent": _recurrent_scan,
    "torch": chunked_scan,
    "mamba_ssm": kernel_scan,
}


def check_backend(name: str) -> None:
    """Raise a UserError, with the nearest names and all choices, unless `name` is "auto" or a backend of the scan."""
    if name not in ("auto", *_SCANS):
        raise unknown_name("scan backend", name, ("auto", *_SCANS))


def _scan_of(backend: str, x: Tensor) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if backend == "auto":
        on_kernels = x.is_cuda and x.dtype != torch.float64 and not why_no_kernels()
        backend = "mamba_ssm" if on_kernels else "torch"
    check_backend(backend)
    return _SCANS[backend]


def _advance(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, inplace: bool = False) -> Tensor:
    """exp(dt A) h + dt x B^T: state (b, h, p, n), x (b, h, p), dt (b, h), A (h,), B (b, g, n) -> (b, h, p, n)."""
    if B.shape[1] > 1:
        B = B.repeat_interleave(state.shape[1] // B.shape[1], dim=1)  # (b, h, n); one group broadcasts
    decay = torch.exp(dt * A)[..., None, None]
    decayed = state.mul_(decay) if inplace else state * decay
    # `decayed` is ours in either case. Under autograd nothing needs its value again.
    return decayed.addcmul_((dt[..., None] * x)[..., None], B[:, :, None, :])


def _read(state: Tensor, x: Tensor, C: Tensor, D: Tensor | None) -> Tensor:
    """h C + D x: state (b, h, p, n), x (b, h, p), C (b, g, n), D (h,) or (h, p) -> (b, h, p)."""
    batch, groups, n = C.shape
    # one product for the heads of a group; bmm, because `@` takes longer to see that it is one than to do it
    rows = x.shape[1] // groups * x.shape[2]
    y = torch.bmm(state.reshape(batch * groups, rows, n), C.reshape(batch * groups, n, 1)).view(x.shape)
    return y if D is None else torch.addcmul(y, x, D if D.ndim == 2 else D[:, None])


def no_autocast(x: Tensor) -> AbstractContextManager:
    """Matrix products of dt A or of the states must not run in bfloat16 because of an autocast around the model."""
    # Entered only where there is one: it is a quarter of the time of a single step.
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def _document_index(seq_idx: Tensor) -> Tensor:
    """(b, l) any integers -> (b, l) the number of documents begun since the first token: 0, 0, 1, 1, 1, 2, ..."""
    begins = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
    return begins.cumsum(dim=1)


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    seq_idx: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    if x.ndim != 4 or B.ndim != 4:
        raise UserError(
            f"x has shape {tuple(x.shape)} and B {tuple(B.shape)}, "
            "expected (batch, length, heads, headdim) and (batch, length, groups, state)"
        )
    batch, length, heads, headdim = x.shape
    groups, state = B.shape[2:]
    if 0 in (heads, headdim, state):
        raise UserError(
            f"x has shape {tuple(x.shape)} and B {tuple(B.shape)}: expected at least one head, channel and state"
        )
    if groups == 0 or heads % groups:
        raise UserError(f"{heads} heads cannot be shared among {groups} groups: expected a divisor of the heads")
    for name, tensor, axes, *shapes in (
        ("dt", dt, "batch, length, heads", (batch, length, heads)),
        ("A", A, "heads,", (heads,)),
        ("B", B, "batch, length, groups, state", (batch, length, groups, state)),
        ("C", C, "batch, length, groups, state", (batch, length, groups, state)),
        ("D", D, "heads,) or (heads, headdim", (heads,), (heads, headdim)),
        ("seq_idx", seq_idx, "batch, length", (batch, length)),
        ("initial state", initial_state, "batch, heads, headdim, state", (batch, heads, headdim, state)),
    ):
        if tensor is not None and tensor.shape not in shapes:
            expected = " or ".join(map(str, shapes))
            raise UserError(f"{name} has shape {tuple(tensor.shape)}, expected ({axes}) = {expected}")
