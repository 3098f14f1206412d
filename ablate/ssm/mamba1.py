"""The Mamba-1 mixer (Gu & Dao 2023, arXiv 2312.00752, figure 3): projection, causal convolution, selective scan, gate.

Parameter names and shapes are those of mamba-ssm's `Mamba`, so released checkpoints load without renaming.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.ssm.conv import causal_conv1d
from ablate.ssm.mixer import MixerState, check_mask, conv_inputs, initial_dt_bias, seq_idx_of_real_tokens, take
from ablate.ssm.precision import at_least_float32
from ablate.ssm.selective_scan import selective_scan, selective_step


class Mamba1Mixer(nn.Module):
    """Mamba-1 mixer; the arguments mean what they mean in mamba-ssm's `Mamba`. Its state is a `MixerState`, in which
    `ssm` is (batch, d_inner, d_state).

    Args:
        d_model: width of the tokens.
        d_state: width of the scan's state.
        d_conv: width of the causal convolution, at least 2.
        expand: the inner width is expand * d_model.
        dt_rank: rank of the projection to the step sizes; None for d_model / 16, rounded up.
        bias, conv_bias: whether the projections and the convolution have biases.
        dt_min, dt_max, dt_init_floor: range of the step sizes at initialisation (log-uniform), and their floor.
        chunk_size: longest chunk of the scan in PyTorch; None for what is fast on the device.
        backend: backend of the scan, see `ablate.ssm.selective_scan`.

    Raises:
        ValueError: a size below 1, or a convolution narrower than 2.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        chunk_size: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        dt_rank = -(-d_model // 16) if dt_rank is None else dt_rank
        sizes = (("d_state", d_state, 1), ("d_conv", d_conv, 2), ("expand", expand, 1), ("dt_rank", dt_rank, 1))
        for name, size, least in sizes:
            if size < least:
                raise ValueError(f"{name} is {size}, expected at least {least}")
        self.d_model, self.d_state, self.d_conv, self.dt_rank = d_model, d_state, d_conv, dt_rank
        self.d_inner = expand * d_model
        self.chunk_size, self.backend = chunk_size, backend

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)  # x, z
        # A Conv1d for the names and initialisation of its parameters; `causal_conv1d` does the work.
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias)
        self.x_proj = nn.Linear(self.d_inner, dt_rank + 2 * d_state, bias=False)  # dt, B, C
        self.dt_proj = nn.Linear(dt_rank, self.d_inner)
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(initial_dt_bias(self.d_inner, dt_min, dt_max, dt_init_floor))
        self.dt_proj.bias._no_reinit = True  # mamba-ssm's mark: no zeros for this one
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    def forward(
        self,
        hidden: Tensor,
        *,
        mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        state: MixerState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, MixerState]:
        """All tokens at once; arguments, result and errors as of `Mamba2Mixer.forward`."""
        order = None
        if mask is not None:
            check_mask(mask, hidden)
            if state is not None:
                # Padding on the left would stand between the state's tokens and the first real one: all to the right.
                order = torch.argsort(~mask, dim=1, stable=True)
                hidden, mask = take(hidden, order), mask.gather(1, order)
                seq_idx = None if seq_idx is None else seq_idx.gather(1, order)
            hidden = hidden.masked_fill(~mask[..., None], 0)
            seq_idx = None if seq_idx is None else seq_idx_of_real_tokens(seq_idx, mask)
        x, z = self.in_proj(hidden).chunk(2, dim=-1)
        if mask is not None and self.in_proj.bias is not None:
            x = x.masked_fill(~mask[..., None], 0)
        before = None if state is None else state.conv
        conv = conv_inputs(x, self.d_conv - 1, mask, seq_idx, before) if return_state else None
        x = causal_conv1d(
            x, self._conv_weight(), self.conv1d.bias, seq_idx=seq_idx, initial_state=before, activation="silu"
        )
        dt, B, C = self._select(x)
        if mask is not None:
            dt = dt.masked_fill(~mask[..., None], 0)  # leaves the scan's state as it is
        scanned = selective_scan(
            x,
            dt,
            self._A(),
            B,
            C,
            self.D,
            chunk_size=self.chunk_size,
            seq_idx=seq_idx,
            initial_state=None if state is None else state.ssm,
            return_final_state=return_state,
            backend=self.backend,
        )
        y, ssm = scanned if return_state else (scanned, None)
        out = self.out_proj(y * F.silu(z))
        if order is not None:
            out = take(out, order.argsort(dim=1))
        return (out, MixerState(conv, ssm)) if return_state else out

    def step(self, hidden: Tensor, state: MixerState, *, inplace: bool = False) -> tuple[Tensor, MixerState]:
        """One token, as `Mamba2Mixer.step`."""
        x, z = self.in_proj(hidden).chunk(2, dim=-1)
        window = torch.cat([state.conv.to(x.dtype), x[..., None]], dim=-1)  # (b, d_inner, d_conv)
        x = (window * self._conv_weight().to(x.dtype)).sum(-1)
        if self.conv1d.bias is not None:
            x = x + self.conv1d.bias.to(x.dtype)
        x = F.silu(x)
        dt, B, C = self._select(x)
        y, ssm = selective_step(x, dt, self._A(), B, C, self.D, state.ssm, inplace=inplace)
        return self.out_proj(y * F.silu(z)), MixerState(window[..., 1:], ssm)

    def init_state(self, batch: int) -> MixerState:
        """The state before any token: zeros."""
        weight = self.conv1d.weight
        return MixerState(
            conv=weight.new_zeros(batch, self.d_inner, self.d_conv - 1),
            ssm=at_least_float32(weight.new_zeros(batch, self.d_inner, self.d_state)),
        )

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., d_inner) -> dt (..., d_inner) in float32, B and C (..., d_state)."""
        dt, B, C = self.x_proj(x).split_with_sizes([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = at_least_float32(F.linear(dt, self.dt_proj.weight)) + at_least_float32(self.dt_proj.bias)
        return F.softplus(dt), B, C

    def _conv_weight(self) -> Tensor:
        return self.conv1d.weight.squeeze(1)  # (d_inner, d_conv)

    def _A(self) -> Tensor:
        return -torch.exp(at_least_float32(self.A_log))
