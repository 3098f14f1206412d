"""The chunked form of the scan in plain PyTorch: arXiv 2405.21060, section 6, with a backward pass of its own.

Chunk after chunk, with the state carried from one to the next, rather than all chunks at once: what a chunk needs
stays in the processor's cache, and memory beyond inputs and output is one state per chunk. The backward pass walks the
chunks in reverse and computes them again from the saved states.

Within a chunk, with cs the running sum of dt A, u = dt x, and S (p x n) the state which enters the chunk:

    L_ij = exp(cs_i - cs_j) for i >= j, else 0      M = L * (C B^T)
    y    = M u + exp(cs) C S^T
    S'   = exp(cs_end) S + (exp(cs_end - cs) u)^T B

Shape suffixes: b batch, l length, q place in the chunk, h head, g group, r head in its group, p headdim, n state.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ablate.ssm.precision import at_least_float32


def chunked_scan(
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
) -> tuple[Tensor, Tensor | None]:
    """As `ablate.ssm.ssd`, computed in float32 (float64 if x is).

    dt, A, D and initial_state come in that dtype already; `document` (batch, length) counts up from 0. Without
    `final_state` the last chunk makes no state: a sequence of one chunk then has no state at all, at half the cost.
    """
    x, B, C = at_least_float32(x), at_least_float32(B), at_least_float32(C)
    length = x.shape[1]
    chunks = -(-length // chunk_size)
    size = -(-length // chunks)  # chunks of nearly equal size rather than a short last one
    return _ChunkedScan.apply(x, dt, A, B, C, D, initial_state, document, size, final_state)


class _Chunk(NamedTuple):
    """What forward and backward both need of one chunk. B and C meet all heads of their group in one matrix product."""

    x: Tensor  # (b, q, h, p)
    dt: Tensor  # (b, q, h)
    B: Tensor  # (b, g, q, n)
    C: Tensor  # (b, g, q, n)
    u: Tensor  # (b, h, q, p), dt x
    L: Tensor  # (b, g, r, q, q)
    scores: Tensor  # (b, g, q, q), C B^T where it counts, else 0
    counts: Tensor  # (q, q) or (b, 1, q, q) bool, j is not after i and in the same document
    from_start: Tensor  # (b, q, h), exp(cs), zero where the entering state's document is over
    to_end: Tensor  # (b, q, h), exp(cs_end - cs), zero for documents that are over at the end

    def to_state(self) -> Tensor:
        """(b, g, q, r p), exp(cs_end - cs) u."""
        return _scale_heads(self.x, self.dt * self.to_end, self.B.shape[1])


def _chunk(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, document: Tensor | None, start: int, size: int
) -> _Chunk:
    span = slice(start, start + size)
    x, dt, B, C = x[:, span], dt[:, span], B[:, span].transpose(1, 2), C[:, span].transpose(1, 2)
    batch, size, heads, headdim = x.shape
    groups = B.shape[1]
    cs = (dt * A).cumsum(1)
    by_head = cs.transpose(1, 2).contiguous()
    # Above the diagonal the difference is positive and exp of it may be inf: zero it before, mask the scores after.
    L = _exp_of_log_decay((by_head[..., :, None] - by_head[..., None, :]).tril_()).unflatten(1, (groups, -1))
    from_start = _exp_of_log_decay(cs.clone())
    to_end = _exp_of_log_decay(cs[:, -1:] - cs)
    counts = torch.ones(size, size, dtype=torch.bool, device=x.device).tril_()
    if document is not None:
        here = document[:, span]
        before = document[:, max(start - 1, 0), None]  # an initial state belongs to the first document
        counts = counts & (here[:, :, None] == here[:, None, :])[:, None]
        from_start.mul_((here == before)[..., None])
        to_end.mul_((here == here[:, -1:])[..., None])
    scores = (C @ B.transpose(-1, -2)).mul_(counts)
    u = torch.mul(x.transpose(1, 2), dt.transpose(1, 2)[..., None], out=x.new_empty(batch, heads, size, headdim))
    return _Chunk(x, dt, B, C, u, L, scores, counts, from_start, to_end)


class _ChunkedScan(torch.autograd.Function):
    """(x, dt, A, B, C, D, initial_state, document, chunk size, final state wanted) -> y, final state or None."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, initial_state, document, size, final_state):
        batch, length, heads, headdim = x.shape
        groups, n = B.shape[2:]
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        states = x.new_empty(-(-length // size) + 1, batch, heads, headdim, n)
        states[0] = 0 if initial_state is None else initial_state
        for index, start in enumerate(range(0, length, size)):
            k = _chunk(x, dt, A, B, C, document, start, size)
            within = (k.L * k.scores[:, :, None]).flatten(1, 2) @ k.u  # (b, h, q, p)
            y_chunk = y[:, start : start + size]
            if index or initial_state is not None:
                carried = _split_heads(k.C @ _by_group(states[index], groups).transpose(-1, -2), headdim)
                torch.addcmul(within.transpose(1, 2), carried, k.from_start[..., None], out=y_chunk)
            else:
                y_chunk.copy_(within.transpose(1, 2))
            if D is not None:
                y_chunk.addcmul_(k.x, D if D.ndim == 2 else D[:, None])
            if final_state or start + size < length:
                torch.mul(states[index], k.from_start[:, -1, :, None, None], out=states[index + 1])
                _add_product(states[index + 1], k.to_state(), k.B)
        ctx.save_for_backward(x, dt, A, B, C, D, document, states)
        ctx.size, ctx.has_initial_state = size, initial_state is not None
        ctx.set_materialize_grads(False)
        return y, states[-1].clone() if final_state else None

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dstate):
        x, dt, A, B, C, D, document, states = ctx.saved_tensors
        length, headdim = x.shape[1], x.shape[3]
        groups, size = B.shape[2], ctx.size
        dy = torch.zeros_like(x) if dy is None else dy
        # Below it is added to in place through views, which in another memory layout would be copies.
        dstate = None if dstate is None else dstate.contiguous()
        dx, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, B, C))
        ddt, dlog_decay = torch.empty_like(dt), torch.empty_like(dt)
        dD = None if D is None else torch.zeros_like(D)
        for index, start in reversed(list(enumerate(range(0, length, size)))):
            span = slice(start, start + size)
            k = _chunk(x, dt, A, B, C, document, start, size)
            dy_chunk = dy[:, span]

            # y = M u, within the chunk
            dy_heads = dy_chunk.transpose(1, 2).contiguous()
            du = (k.L * k.scores[:, :, None]).flatten(1, 2).transpose(-1, -2) @ dy_heads  # (b, h, q, p)
            dM = (dy_heads @ k.u.transpose(-1, -2)).unflatten(1, (groups, -1))
            dscores_heads = dM.mul_(k.L)
            dscores = dscores_heads.sum(2).mul_(k.counts)
            # dM * M: through L_ij = exp(cs_i - cs_j) it pulls cs_i one way and cs_j the other. On the diagonal the two
            # cancel exactly; left in, they would add their rounding.
            pull = dscores_heads.mul_(k.scores[:, :, None]).flatten(1, 2)
            pull.diagonal(dim1=-2, dim2=-1).zero_()
            dcs = (pull.sum(-1) - pull.sum(-2)).transpose(1, 2)  # (b, q, h)
            dC_chunk = dscores @ k.B
            dB_chunk = dscores.transpose(-1, -2) @ k.C
            du = du.transpose(1, 2).contiguous()  # (b, q, h, p)

            # S' = exp(cs_end) S + (exp(cs_end - cs) u)^T B, if anything depends on it
            if dstate is not None:
                to_state = k.to_state()
                dstate_by_group = _by_group(dstate, groups)
                dto_state = k.B @ dstate_by_group.transpose(-1, -2)
                pull = _head_sums(to_state * dto_state, headdim)  # each cs one way, cs_end the other
                pull[:, -1] = 0  # cancels exactly, as above
                dcs -= pull
                dcs[:, -1] += pull.sum(1)
                dB_chunk += to_state @ dstate_by_group
                du.addcmul_(_split_heads(dto_state, headdim), k.to_end[..., None])
                dstate = dstate * k.from_start[:, -1, :, None, None]
                if index or ctx.has_initial_state:
                    dcs[:, -1] += (dstate * states[index]).sum((-1, -2))

            # y += exp(cs) C S^T, if there is a state to begin with
            if index or ctx.has_initial_state:
                dcarried = _scale_heads(dy_chunk, k.from_start, groups)
                state_by_group = _by_group(states[index], groups)
                dcs += _head_sums(dcarried * (k.C @ state_by_group.transpose(-1, -2)), headdim)
                dC_chunk += dcarried @ state_by_group
                dstate = torch.zeros_like(states[0]) if dstate is None else dstate
                _add_product(dstate, dcarried, k.C)

            dC[:, span] = dC_chunk.transpose(1, 2)
            dB[:, span] = dB_chunk.transpose(1, 2)
            torch.sum(du * k.x, -1, out=ddt[:, span])
            torch.mul(du, k.dt[..., None], out=dx[:, span])
            if D is not None:
                dx[:, span].addcmul_(dy_chunk, D if D.ndim == 2 else D[:, None])
                dD += (dy_chunk * k.x).sum((0, 1) if D.ndim == 2 else (0, 1, 3))
            dlog_decay[:, span] = dcs.flip(1).cumsum(1).flip(1)  # cs is the running sum of dt A

        dA = (dlog_decay * dt).sum((0, 1))
        ddt.addcmul_(dlog_decay, A)
        return dx, ddt, dA, dB, dC, dD, dstate if ctx.has_initial_state else None, None, None, None


def _exp_of_log_decay(log_decay: Tensor) -> Tensor:
    """exp, in place. Decays below exp(-60) = 1e-26 are zero to either precision, but underflow is 100 times slower."""
    return log_decay.clamp_(min=-60.0).exp_()


def _by_group(state: Tensor, groups: int) -> Tensor:
    """(b, h, p, n) -> (b, g, r p, n)."""
    return state.unflatten(1, (groups, -1)).flatten(2, 3)


def _scale_heads(x: Tensor, scale: Tensor, groups: int) -> Tensor:
    """x (b, q, h, p) times scale (b, q, h) -> (b, g, q, r p)."""
    batch, size, heads, headdim = x.shape
    out = x.new_empty(batch, groups, size, heads // groups, headdim)
    torch.mul(x.unflatten(2, (groups, -1)), scale.unflatten(2, (groups, -1))[..., None], out=out.transpose(1, 2))
    return out.flatten(3)


def _split_heads(x: Tensor, headdim: int) -> Tensor:
    """(b, g, q, r p) -> (b, q, h, p)."""
    return x.unflatten(3, (-1, headdim)).transpose(1, 2).flatten(2, 3)


def _head_sums(x: Tensor, headdim: int) -> Tensor:
    """(b, g, q, r p) -> (b, q, h), summed over p."""
    return x.unflatten(3, (-1, headdim)).sum(-1).transpose(1, 2).flatten(2)


def _add_product(state: Tensor, a: Tensor, b: Tensor) -> None:
    """state (b, h, p, n) += a^T b, in place, for a (b, g, q, r p) and b (b, g, q, n)."""
    _by_group(state, b.shape[1]).flatten(0, 1).baddbmm_(a.flatten(0, 1).transpose(-1, -2), b.flatten(0, 1))
