"""The selective scan of Mamba-1 ("Mamba: Linear-Time Sequence Modeling with Selective State Spaces", Gu & Dao 2023,
arXiv 2312.00752, equations 1a and 1b, algorithm 2).

For every batch row and channel, with a decay per token and entry of the state:

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t          (state,)
    y_t = h_t C_t + D x_t                             (scalar)

Three forms which must agree: `recurrent` (the definition, token by token), `torch` (chunks, in each of which all tokens
are computed at once) and `mamba_ssm` (the kernel of the package mamba-ssm, on CUDA).

Within a chunk the states follow from a parallel scan (Blelloch 1990; Brent & Kung 1982): about 2 log2 q operations on
whole tensors for q tokens, whose work adds up to that of three passes over the states. Only products of decays occur,
none above 1, so nothing overflows however fast the decay. The states of a chunk, q times as large as one state, are
computed again in the backward pass instead of being kept.

Shape suffixes: b batch, l length, q place in the chunk, d channel, n state.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ablate.core.errors import UserError, unknown_name
from ablate.ssm.isolation import isolate_documents
from ablate.ssm.kernels import MissingKernelsError, selective_kernel
from ablate.ssm.precision import accumulation_dtype, connected_zero
from ablate.ssm.scan import no_autocast

_BACKENDS = ("auto", "mamba_ssm", "recurrent", "torch")


def selective_scan(
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
    """Run the selective scan over a batch of sequences. Differentiable (once) in every floating-point argument.

    Empty batches, and what is not finite in packed documents, are treated as by `ablate.ssm.ssd`.

    Args:
        x: (batch, length, channels), the input.
        dt: (batch, length, channels), step sizes >= 0 (softplus already applied). 0 leaves the state as it is:
            padding.
        A: (channels, state), negative decay rates.
        B: (batch, length, state), input matrix.
        C: (batch, length, state), output matrix.
        D: (channels,), skip weight, or None for no skip.
        chunk_size: longest chunk of the `torch` form, by default what is fast on the device; changes nothing but
            rounding.
        seq_idx: (batch, length) integers; where a token's value differs from the previous token's, a new document
            begins and the state restarts at zero.
        initial_state: (batch, channels, state), the state before the first token (of the first document).
        return_final_state: also return the state after the last token.
        backend: "recurrent", "torch", "mamba_ssm", or "auto" (mamba_ssm for CUDA tensors if its kernel is installed and
            there is neither seq_idx nor an initial state, which it does not take; else torch).

    Returns:
        y (batch, length, channels) in the dtype of x, and if asked the final state (batch, channels, state) in float32.
        If x is float64, all is computed and returned in float64.

    Raises:
        UserError: shapes that do not fit together, an unknown backend, or arguments the backend cannot take.
        MissingKernelsError: backend "mamba_ssm" without its kernel.
    """
    _check(x, A, chunk_size, dt=dt, B=B, C=C, D=D, seq_idx=seq_idx, initial_state=initial_state)
    check_backend(backend)
    plain = seq_idx is None and initial_state is None and x.is_cuda and x.dtype != torch.float64
    if backend == "mamba_ssm" and not plain:
        raise UserError(
            'The scan backend "mamba_ssm" needs CUDA tensors below float64, and takes neither packed documents nor a '
            'state: use backend="torch".'
        )
    if backend == "auto":
        backend = "mamba_ssm" if plain and selective_kernel()[0] else "torch"
    dtype = accumulation_dtype(x)
    dt, A, B, C = (t.to(dtype) for t in (dt, A, B, C))
    D = None if D is None else D.to(dtype)
    state = x.new_zeros(x.shape[0], *A.shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    if x.numel() == 0:
        zero = connected_zero(x, dt, A, B, C, D, state)
        y, state = x + zero.to(x.dtype), state + zero.to(dtype)
        return (y, state) if return_final_state else y
    begins = spoiled = None
    wide = x.to(dtype)
    if seq_idx is not None:
        begins = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
        if backend != "recurrent":
            heads, dt, B, C, states, spoiled = isolate_documents(
                wide[..., None], dt, B[:, :, None], C[:, :, None], state[:, :, None], begins.cumsum(1)
            )  # a head for each channel
            assert states is not None
            wide, B, C, state = heads[..., 0], B[:, :, 0], C[:, :, 0], states[:, :, 0]
    with no_autocast(x):
        if backend == "mamba_ssm":
            y, state = _kernel_scan(wide, dt, A, B, C)
        elif backend == "recurrent":
            y, state = _recurrent(wide, dt, A, B, C, begins, state)
        else:
            # On a CPU the states of a chunk stay in the cache; a GPU wants few kernels.
            most = 2**20 if x.device.type == "cpu" else 2**26
            size = min(64, max(8, most // state.numel())) if chunk_size is None else chunk_size
            y, state = _chunked(wide, dt, A, B, C, begins, state, size)
    y = (y if D is None else y + D * wide).to(x.dtype)
    if spoiled is not None:
        y, state = y.masked_fill(spoiled.output, torch.nan), state.masked_fill(spoiled.state[..., None], torch.nan)
    return (y, state) if return_final_state else y


def check_backend(name: str) -> None:
    """Raise a UserError, with the nearest names and all choices, unless the scan has a backend of this name."""
    if name not in _BACKENDS:
        raise unknown_name("scan backend", name, _BACKENDS)


def selective_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor, *, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """One token of `selective_scan`: x, dt (b, d), B, C (b, n), state (b, d, n) -> y (b, d) and the new state.

    Shapes are not checked. inplace: write the new state over the old one, if that has the dtype of the new one.
    """
    dtype = accumulation_dtype(x)
    with no_autocast(x):
        wide, dt, state = x.to(dtype), dt.to(dtype), state.to(dtype)
        decay = torch.exp(dt[..., None] * A.to(dtype))
        state = state.mul_(decay) if inplace else state * decay
        state = state.addcmul_((dt * wide)[..., None], B.to(dtype)[:, None])
        y = torch.bmm(state, C.to(dtype)[..., None]).squeeze(-1)
        y = y if D is None else torch.addcmul(y, wide, D.to(dtype))
    return y.to(x.dtype), state


def _recurrent(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, begins: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition. Takes and returns what `_chunked` does; the state is (b, d, n)."""
    ys = []
    for t in range(x.shape[1]):
        if begins is not None:
            state = torch.where(begins[:, t, None, None], 0.0, state)
        decay = torch.exp(dt[:, t, :, None] * A)
        state = decay * state + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        ys.append((state * C[:, t, None]).sum(-1))
    return torch.stack(ys, dim=1), state


def _chunked(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, begins: Tensor | None, state: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """y (b, l, d) without the skip, and the state after the last token."""
    ys, A, state = [], A.t().contiguous(), state.transpose(1, 2)  # channels last, as in x
    for start in range(0, x.shape[1], size):
        span = slice(start, start + size)
        parts = (x[:, span], dt[:, span], A, B[:, span], C[:, span], None if begins is None else begins[:, span], state)
        if torch.is_grad_enabled():
            y, state = checkpoint(_chunk, *parts, use_reentrant=False, preserve_rng_state=False)
        else:
            y, state = _chunk(*parts)
        ys.append(y)
    return torch.cat(ys, dim=1), state.transpose(1, 2).contiguous()


def _chunk(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, begins: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    log_decay = dt[:, :, None] * A  # (b, q, n, d)
    decay = torch.exp(log_decay.clamp(min=-60.0))  # decays below are 0 to any precision, but underflow is slow
    if begins is not None:
        decay = decay.masked_fill(begins[..., None, None], 0)
    states = _AllStates.apply(decay, (dt * x)[:, :, None] * B[..., None], state)
    return torch.matmul(C[:, :, None], states).squeeze(2), states[:, -1]


class _AllStates(torch.autograd.Function):
    """decay, added (b, q, n, d) and the state before (b, n, d) -> h (b, q, n, d), h_t = decay_t h_{t-1} + added_t.

    The gradient is the same recurrence from the end: g_t = dh_t + decay_{t+1} g_{t+1}.
    """

    @staticmethod
    def forward(ctx, decay, added, state):
        states = added.clone(memory_format=torch.contiguous_format)
        states[:, 0].addcmul_(decay[:, 0], state)
        _accumulate(decay, states)
        ctx.save_for_backward(decay, states, state)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, dstates):
        decay, states, state = ctx.saved_tensors
        gradient = dstates.flip(1)  # a copy
        _accumulate(torch.cat([decay[:, :1], decay[:, 1:].flip(1)], dim=1), gradient)  # the first decay is not read
        gradient = gradient.flip(1)  # with respect to `added`
        ddecay = torch.empty_like(gradient)
        torch.mul(gradient[:, 0], state, out=ddecay[:, 0])
        torch.mul(gradient[:, 1:], states[:, :-1], out=ddecay[:, 1:])
        return ddecay, gradient, gradient[:, 0] * decay[:, 0]


def _accumulate(decay: Tensor, states: Tensor) -> None:
    """In place, along the second axis: states_t += decay_t states_{t-1}, one t after the other.

    First each odd position adds the even one before it. Then the odd positions are scanned among themselves, with the
    products of each pair's decays. Then each even position adds the odd one before it.
    """
    if states.shape[1] < 2:
        return
    pairs = states.shape[1] // 2
    even, odd = states[:, : 2 * pairs : 2], states[:, 1::2]
    odd.addcmul_(decay[:, 1::2], even)
    _accumulate(decay[:, 1::2] * decay[:, : 2 * pairs : 2], odd)
    states[:, 2::2].addcmul_(decay[:, 2::2], odd[:, : (states.shape[1] - 1) // 2])


def _kernel_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    kernel, reason = selective_kernel()
    if kernel is None:
        raise MissingKernelsError(reason)
    x, dt, B, C = (tensor.transpose(1, 2).contiguous() for tensor in (x, dt, B, C))
    with torch.cuda.device(x.device):
        y, state = kernel(x, dt, A, B, C, return_last_state=True)
    return y.transpose(1, 2), state


def _check(x: Tensor, A: Tensor, chunk_size: int | None, **others: Tensor | None) -> None:
    if x.ndim != 3 or A.ndim != 2 or x.shape[2] != A.shape[0]:
        raise UserError(
            f"x has shape {tuple(x.shape)} and A {tuple(A.shape)}, expected (batch, length, channels) and "
            "(channels, state)"
        )
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size is {chunk_size}, expected at least 1")
    (batch, length, channels), n = x.shape, A.shape[1]
    expected = {"dt": (batch, length, channels), "D": (channels,), "seq_idx": (batch, length)}
    expected |= {"B": (batch, length, n), "C": (batch, length, n), "initial_state": (batch, channels, n)}
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != expected[name]:
            raise UserError(f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]}")
