"""The state-space scan of Mamba-2 ("Transformers are SSMs", Dao & Gu 2024, arXiv 2405.21060).

For every batch row and head, with a scalar decay per token:

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        (headdim, state)
    y_t = h_t C_t + D x_t                             (headdim,)

Three forms which must agree: `recurrent` (the definition, token by token), `torch` (the chunked matrix form of the
paper's section 6, on any device) and `mamba_ssm` (the Triton kernels of the package mamba-ssm, on CUDA).

Shape suffixes: b batch, l length, c chunk, q place in its chunk, h head, g group, r head in its group, p headdim, n state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.ssm.chunked import chunked_scan

BACKENDS = ("recurrent", "torch", "mamba_ssm")


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    chunk_size: int = 64,
    seq_idx: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the state-space scan over a batch of sequences.

    Args:
        x: (batch, length, heads, headdim), the input.
        dt: (batch, length, heads), step sizes >= 0 (softplus already applied). 0 leaves the state untouched: padding.
        A: (heads,), negative decay rates.
        B: (batch, length, groups, state), input matrix; each group serves heads // groups neighbouring heads.
        C: (batch, length, groups, state), output matrix.
        D: (heads,) or (heads, headdim), skip weight, or None for no skip.
        chunk_size: longest chunk of the chunked forms (memory grows with it); changes speed, not the result.
        seq_idx: (batch, length) integers; wherever a token's differs from that of the token before it a new document
            begins and the state restarts at zero.
        initial_state: (batch, heads, headdim, state), the state before the first token (of the first document).
        return_final_state: also return the state after the last token.
        backend: "recurrent", "torch", "mamba_ssm", or "auto" (mamba_ssm for CUDA tensors if installed, else torch).

    Returns:
        y (batch, length, heads, headdim) in the dtype of x, and if asked the final state (batch, heads, headdim, state)
        in float32. If x is float64, all is computed and returned in float64.

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend.
        ImportError: backend "mamba_ssm" without the package.
    """
    _check(x, dt, A, B, C, D, seq_idx, initial_state, chunk_size)
    run = {"recurrent": _recurrent, "torch": chunked_scan}[_choose_backend(backend, x)]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    # dt A and the states need float32: under autocast einsum and matmul would round them to bfloat16.
    with torch.autocast(x.device.type, enabled=False):
        y, final_state = run(
            *(None if t is None else t.to(dtype) for t in (x, dt, A, B, C, D)),
            chunk_size=chunk_size,
            document=None if seq_idx is None else _document_index(seq_idx),
            initial_state=None if initial_state is None else initial_state.to(dtype),
        )
    y = y.to(x.dtype)
    return (y, final_state) if return_final_state else y


def ssd_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of `ssd`: the same arguments without the length axis.

    Args:
        x: (batch, heads, headdim). dt: (batch, heads). A: (heads,). B, C: (batch, groups, state).
        D: (heads,) or (heads, headdim) or None. state: (batch, heads, headdim, state).

    Returns:
        y (batch, heads, headdim) in the dtype of x, and the new state in float32 (float64 if x is).
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        new_state = _advance(state.to(dtype), x.to(dtype), dt.to(dtype), A.to(dtype), B.to(dtype))
        y = _read(new_state, C.to(dtype))
        if D is not None:
            y = y + (D if D.ndim == 2 else D[:, None]).to(dtype) * x
    return y.to(x.dtype), new_state


def _choose_backend(backend: str, x: Tensor) -> str:
    if backend == "auto":
        return "torch"
    if backend not in BACKENDS:
        raise ValueError(f"unknown scan backend {backend!r}: expected 'auto' or one of {', '.join(BACKENDS)}")
    return backend


def _check(x, dt, A, B, C, D, seq_idx, initial_state, chunk_size) -> None:
    def expect(name: str, tensor: Tensor, shape: tuple[int, ...], axes: str) -> None:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected ({axes}) = {shape}")

    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (batch, length, heads, headdim)")
    batch, length, heads, headdim = x.shape
    if B.ndim != 4:
        raise ValueError(f"B has shape {tuple(B.shape)}, expected (batch, length, groups, state)")
    groups, state = B.shape[2:]
    if groups == 0 or heads % groups:
        raise ValueError(f"{heads} heads cannot be shared among {groups} groups: heads must be a multiple of groups")
    if length == 0:
        raise ValueError("the sequence is empty: expected length >= 1")
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}, expected >= 1")
    expect("dt", dt, (batch, length, heads), "batch, length, heads")
    expect("A", A, (heads,), "heads")
    expect("B", B, (batch, length, groups, state), "batch, length, groups, state")
    expect("C", C, (batch, length, groups, state), "batch, length, groups, state")
    if D is not None and tuple(D.shape) not in ((heads,), (heads, headdim)):
        raise ValueError(f"D has shape {tuple(D.shape)}, expected (heads,) = {(heads,)} or {(heads, headdim)}")
    if seq_idx is not None:
        expect("seq_idx", seq_idx, (batch, length), "batch, length")
    if initial_state is not None:
        expect("initial_state", initial_state, (batch, heads, headdim, state), "batch, heads, headdim, state")


def _document_index(seq_idx: Tensor) -> Tensor:
    """(b, l) any integers -> (b, l) number of documents begun since the first token: 0, 0, 1, 1, 1, 2, ..."""
    begins = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
    return begins.cumsum(dim=1)


def _advance(state_bhpn: Tensor, x_bhp: Tensor, dt_bh: Tensor, A_h: Tensor, B_bgn: Tensor) -> Tensor:
    heads_per_group = x_bhp.shape[1] // B_bgn.shape[1]
    decay_bh = torch.exp(dt_bh * A_h)
    update = (dt_bh[..., None] * x_bhp).unflatten(1, (-1, heads_per_group))[..., None] * B_bgn[:, :, None, None, :]
    return decay_bh[..., None, None] * state_bhpn + update.flatten(1, 2)


def _read(state_bhpn: Tensor, C_bgn: Tensor) -> Tensor:
    state = state_bhpn.unflatten(1, (C_bgn.shape[1], -1))  # (b, g, r, p, n)
    return (state @ C_bgn[:, :, None, :, None]).squeeze(-1).flatten(1, 2)


def _recurrent(x, dt, A, B, C, D, *, chunk_size, document, initial_state):
    """The definition, one token at a time."""
    batch, length, heads, headdim = x.shape
    state = x.new_zeros(batch, heads, headdim, B.shape[-1]) if initial_state is None else initial_state
    ys = []
    for t in range(length):
        if document is not None and t > 0:
            goes_on = document[:, t] == document[:, t - 1]
            state = torch.where(goes_on[:, None, None, None], state, 0)
        state = _advance(state, x[:, t], dt[:, t], A, B[:, t])
        ys.append(_read(state, C[:, t]))
    y = torch.stack(ys, dim=1)
    if D is not None:
        y = y + (D if D.ndim == 2 else D[:, None]) * x
    return y, state
