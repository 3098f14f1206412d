"""The Mamba-2 mixer (arXiv 2405.21060, figure 6): projections, causal convolution, scan, gated norm.

Parameter names and shapes are those of mamba-ssm's `Mamba2`, so released checkpoints load without renaming.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.ssm.conv import causal_conv1d
from ablate.ssm.norms import GatedRMSNorm
from ablate.ssm.scan import ssd, ssd_step


class MixerState(NamedTuple):
    """What a mixer remembers of the tokens so far; its size does not depend on their number.

    conv: (batch, conv_dim, d_conv - 1), the last inputs of the convolution, oldest first.
    ssm: (batch, heads, headdim, d_state), the state of the scan, float32.
    """

    conv: Tensor
    ssm: Tensor


class Mamba2Mixer(nn.Module):
    """Mamba-2 mixer; the arguments and their defaults mean what they mean in mamba-ssm's `Mamba2`.

    Args:
        d_model: width of the tokens.
        d_state: width of the scan's state.
        d_conv: width of the causal convolution.
        expand: the inner width is expand * d_model.
        headdim: channels per head; the inner width must be a multiple of it.
        ngroups: groups of heads which share B and C.
        chunk_size: longest chunk of the chunked scan.
        D_has_hdim: one skip weight per channel instead of one per head.
        rmsnorm: gated RMS norm before the output projection; otherwise the gate alone.
        dt_min, dt_max, dt_init_floor: range of the step sizes at initialisation (log-uniform), and their floor.
        dt_limit: range into which step sizes are clamped.
        backend: backend of the scan, see `ablate.ssm.ssd`.

    Raises:
        ValueError: widths that do not divide.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        chunk_size: int = 64,
        bias: bool = False,
        conv_bias: bool = True,
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv = d_model, d_state, d_conv
        self.d_inner = expand * d_model
        self.headdim, self.ngroups = headdim, ngroups
        if self.d_inner % headdim:
            raise ValueError(f"inner width {self.d_inner} (expand * d_model) is not a multiple of headdim {headdim}")
        self.nheads = self.d_inner // headdim
        if self.nheads % ngroups:
            raise ValueError(f"{self.nheads} heads cannot be shared among ngroups {ngroups}")
        self.chunk_size, self.backend = chunk_size, backend
        self.dt_limit = tuple(dt_limit)

        self.conv_dim = self.d_inner + 2 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + self.conv_dim + self.nheads, bias=bias)  # z, x, B, C, dt
        # A Conv1d for its names and initialisation; `causal_conv1d` does the work.
        self.conv1d = nn.Conv1d(self.conv_dim, self.conv_dim, d_conv, groups=self.conv_dim, bias=conv_bias)
        self.dt_bias = nn.Parameter(_initial_dt_bias(self.nheads, dt_min, dt_max, dt_init_floor))
        self.A_log = nn.Parameter(torch.empty(self.nheads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.d_inner if D_has_hdim else self.nheads))
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True
        self.norm = None
        if rmsnorm:
            self.norm = GatedRMSNorm(
                self.d_inner, group_size=self.d_inner // ngroups, norm_before_gate=norm_before_gate
            )
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
        """All tokens at once: training, or prefill with `return_state`.

        Args:
            hidden: (batch, length, d_model).
            mask: (batch, length) bool, True at real tokens. Padding on the left or on the right changes nothing for the
                real tokens; the output at padding has no meaning.
            seq_idx: (batch, length) integers; convolution and scan restart wherever they change.
            state: what an earlier call returned, to go on from there.
            return_state: also return the state after the last real token.

        Returns:
            (batch, length, d_model), and if asked the `MixerState`.
        """
        if mask is not None:
            hidden = hidden.masked_fill(~mask[..., None], 0)
            if seq_idx is not None:
                seq_idx = _seq_idx_of_real_tokens(seq_idx, mask)
        z, xBC, dt = self.in_proj(hidden).split([self.d_inner, self.conv_dim, self.nheads], dim=-1)
        if mask is not None and self.in_proj.bias is not None:
            xBC = xBC.masked_fill(~mask[..., None], 0)
        conv_in = None if state is None else state.conv
        new_conv = self._conv_state(xBC, mask, seq_idx, conv_in) if return_state else None
        xBC = causal_conv1d(
            xBC,
            self._conv_weight(),
            self.conv1d.bias,
            seq_idx=seq_idx,
            initial_state=conv_in,
            activation="silu",
        )
        x, B, C = xBC.split([self.d_inner, self.ngroups * self.d_state, self.ngroups * self.d_state], dim=-1)
        dt = self._step_sizes(dt)
        if mask is not None:
            dt = dt.masked_fill(~mask[..., None], 0)
        y, new_ssm = ssd(
            x.unflatten(-1, (-1, self.headdim)),
            dt,
            self._A(),
            B.unflatten(-1, (self.ngroups, -1)),
            C.unflatten(-1, (self.ngroups, -1)),
            self._skip(),
            chunk_size=self.chunk_size,
            seq_idx=seq_idx,
            initial_state=None if state is None else state.ssm,
            return_final_state=True,
            backend=self.backend,
        )
        out = self.out_proj(self._gate(y.flatten(-2), z))
        return (out, MixerState(new_conv, new_ssm)) if return_state else out

    def step(self, hidden: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """One token: hidden (batch, d_model) and the state before it -> output (batch, d_model) and the state after it."""
        z, xBC, dt = self.in_proj(hidden).split([self.d_inner, self.conv_dim, self.nheads], dim=-1)
        window = torch.cat([state.conv.to(xBC.dtype), xBC[..., None]], dim=-1)  # (b, conv_dim, d_conv)
        xBC = (window * self._conv_weight().to(window.dtype)).sum(-1)
        if self.conv1d.bias is not None:
            xBC = xBC + self.conv1d.bias.to(xBC.dtype)
        x, B, C = F.silu(xBC).split([self.d_inner, self.ngroups * self.d_state, self.ngroups * self.d_state], dim=-1)
        y, ssm = ssd_step(
            x.unflatten(-1, (-1, self.headdim)),
            self._step_sizes(dt),
            self._A(),
            B.unflatten(-1, (self.ngroups, -1)),
            C.unflatten(-1, (self.ngroups, -1)),
            self._skip(),
            state=state.ssm,
        )
        return self.out_proj(self._gate(y.flatten(-2), z)), MixerState(window[..., 1:], ssm)

    def init_state(self, batch: int) -> MixerState:
        """The state before any token: zeros."""
        weight = self.conv1d.weight
        ssm_dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return MixerState(
            weight.new_zeros(batch, self.conv_dim, self.d_conv - 1),
            weight.new_zeros(batch, self.nheads, self.headdim, self.d_state, dtype=ssm_dtype),
        )

    def _conv_weight(self) -> Tensor:
        return self.conv1d.weight.squeeze(1)

    def _A(self) -> Tensor:
        return -torch.exp(_at_least_float32(self.A_log))  # float16 would overflow to -inf

    def _skip(self) -> Tensor:
        return self.D.unflatten(0, (self.nheads, -1)) if self.D.numel() == self.d_inner else self.D

    def _step_sizes(self, dt: Tensor) -> Tensor:
        dt = F.softplus(_at_least_float32(dt) + _at_least_float32(self.dt_bias))
        return dt if self.dt_limit == (0.0, math.inf) else dt.clamp(*self.dt_limit)

    def _gate(self, y: Tensor, z: Tensor) -> Tensor:
        return y * F.silu(z) if self.norm is None else self.norm(y, z)

    def _conv_state(self, xBC: Tensor, mask: Tensor | None, seq_idx: Tensor | None, before: Tensor | None) -> Tensor:
        """(b, conv_dim, d_conv - 1): the convolution's last inputs at real tokens, zeros where there are fewer."""
        keep = self.d_conv - 1
        batch, length, _ = xBC.shape
        if before is None:
            before = xBC.new_zeros(batch, self.conv_dim, keep)
        window = torch.cat([before.transpose(1, 2).to(xBC.dtype), xBC], dim=1)  # (b, keep + l, conv_dim)
        last = torch.full((batch,), length - 1, device=xBC.device)
        if mask is not None:
            last = torch.where(mask, torch.arange(length, device=mask.device), -1).amax(dim=1)  # -1: no real token
        places = last[:, None] + 1 + torch.arange(keep, device=xBC.device)  # (b, keep), in the window
        kept = window.gather(1, places[..., None].expand(-1, -1, self.conv_dim))
        if seq_idx is not None:
            document = (
                F.pad(seq_idx, (keep, 0), mode="replicate")
                if seq_idx.is_floating_point()
                else torch.cat([seq_idx[:, :1].expand(-1, keep), seq_idx], dim=1)
            )
            same = document.gather(1, places) == document.gather(1, places[:, -1:])
            kept = kept.masked_fill(~same[..., None], 0)
        return kept.transpose(1, 2)


def _initial_dt_bias(nheads: int, dt_min: float, dt_max: float, dt_init_floor: float) -> Tensor:
    """Such that softplus(bias) is log-uniform in [dt_min, dt_max]."""
    dt = torch.exp(torch.rand(nheads) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min))
    dt = dt.clamp(min=dt_init_floor)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


def _seq_idx_of_real_tokens(seq_idx: Tensor, mask: Tensor) -> Tensor:
    """Padding takes the document of the real token before it (or of the first one), so that it begins none."""
    places = torch.arange(mask.shape[1], device=mask.device)
    first = mask.int().argmax(dim=1, keepdim=True)
    latest = torch.where(mask, places, first).cummax(dim=1).values
    return seq_idx.gather(1, latest)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
