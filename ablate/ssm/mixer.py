"""The Mamba-2 mixer (arXiv 2405.21060, figure 6): projections, causal convolution, scan, gated norm.

Parameter names and shapes are those of mamba-ssm's `Mamba2`, so released checkpoints load without renaming.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.ssm.conv import causal_conv1d
from ablate.ssm.norms import GatedRMSNorm
from ablate.ssm.precision import at_least_float32
from ablate.ssm.scan import check_backend, ssd, unchecked_step


class MixerState(NamedTuple):
    """What a mixer remembers of the tokens so far; its size does not depend on their number.

    conv: (batch, conv_dim, d_conv - 1), the last inputs of the convolution, oldest first.
    ssm: (batch, heads, headdim, d_state), the state of the scan, float32.
    """

    conv: Tensor
    ssm: Tensor


class Mixer(nn.Module):
    """What the mixers of Mamba-1 and Mamba-2 have in common: projection, causal convolution, scan, gate, projection.

    A subclass has the attributes below, and says how it projects, scans and gates.
    """

    in_proj: nn.Linear
    conv1d: nn.Conv1d
    A_log: nn.Parameter
    d_model: int
    d_conv: int
    chunk_size: int | None
    backend: str
    ssm_shape: tuple[int, ...]  # of one row's state of the scan
    activation: str = "silu"  # after the convolution: silu or identity

    def forward(
        self,
        hidden: Tensor,
        *,
        mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        state: MixerState | None = None,
        return_state: bool = False,
    ) -> Any:
        """All tokens at once: training, or prefill with `return_state`.

        Args:
            hidden: (batch, length, d_model).
            mask: (batch, length) bool, True at real tokens. Padding on the left or on the right changes nothing for the
                real tokens; the output at padding has no meaning.
            seq_idx: (batch, length) integers; convolution and scan restart where they change.
            state: what an earlier call returned, to continue from there (its document continues, too).
            return_state: also return the state after the last real token.

        Returns:
            (batch, length, d_model), and if asked the `MixerState`.

        Raises:
            UserError: a mask that is not (batch, length) bool, or shapes that do not fit together.
        """
        check_tokens(hidden, self.d_model, mask, seq_idx)
        if hidden.shape[1] == 0:  # no token is padding or begins a document
            mask = seq_idx = None
        if mask is not None:
            if state is not None:
                # Padding on the left would stand between the state's tokens and the first real one: all to the right.
                order = torch.argsort(~mask, dim=1, stable=True)
                hidden, mask = take(hidden, order), mask.gather(1, order)
                seq_idx = None if seq_idx is None else seq_idx.gather(1, order)
            hidden = hidden.masked_fill(~mask[..., None], 0)
            seq_idx = None if seq_idx is None else seq_idx_of_real_tokens(seq_idx, mask)
        z, x, dt = self._project(hidden)
        if mask is not None and self._biased():
            x = x.masked_fill(~mask[..., None], 0)
        before = None if state is None else state.conv
        conv: Any = conv_inputs(x, self.d_conv - 1, mask, seq_idx, before) if return_state else None
        x = causal_conv1d(
            x, self._conv_weight(), self.conv1d.bias, seq_idx=seq_idx, initial_state=before, activation=self.activation
        )
        options = {
            "chunk_size": self.chunk_size,
            "seq_idx": seq_idx,
            "initial_state": None if state is None else state.ssm,
            "return_final_state": return_state,
            "backend": self.backend,
        }
        scanned = self._scan(x, dt, mask, options)
        out = self._gate_and_project(scanned[0] if return_state else scanned, z)
        if mask is not None and state is not None:
            out = take(out, order.argsort(dim=1))
        return (out, MixerState(conv, scanned[1])) if return_state else out

    def step(self, hidden: Tensor, state: MixerState, *, inplace: bool = False) -> tuple[Tensor, MixerState]:
        """One token.

        Args:
            hidden: (batch, d_model).
            state: the state before the token.
            inplace: write the new state of the scan over the old one, which is otherwise left as it is: a state is much
                larger than a token, and to copy it is half the time of a step in a batch. Not under autograd.

        Returns:
            (batch, d_model) and the state after the token.
        """
        z, x, dt = self._project(hidden)
        # (b, d_conv, conv_dim): sums over whole rows of channels, not over four neighbours at a time
        window = torch.cat([state.conv.transpose(1, 2).to(x.dtype), x[:, None]], dim=1)
        x = (window * self._conv_weight().t().to(x.dtype)).sum(1)
        if self.conv1d.bias is not None:
            x = x + self.conv1d.bias.to(x.dtype)
        x = F.silu(x) if self.activation == "silu" else x
        y, ssm = self._scan_step(x, dt, state.ssm, inplace)
        return self._gate_and_project(y, z), MixerState(window[:, 1:].transpose(1, 2), ssm)

    def init_state(self, batch: int) -> MixerState:
        """The state before any token: zeros."""
        weight = self.conv1d.weight
        return MixerState(
            conv=weight.new_zeros(batch, weight.shape[0], self.d_conv - 1),
            ssm=at_least_float32(weight.new_zeros(batch, *self.ssm_shape)),
        )

    def _biased(self) -> bool:
        """Whether what enters the convolution has a bias, which padding must not bring in."""
        return self.in_proj.bias is not None

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(..., d_model) -> the gate, what enters the convolution, and step sizes if they come from here."""
        raise NotImplementedError

    def _scan(self, x: Tensor, dt: Any, mask: Tensor | None, options: dict[str, Any]) -> Any:
        """The scan of what leaves the convolution; padding leaves its state as it is."""
        raise NotImplementedError

    def _scan_step(self, x: Tensor, dt: Any, state: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _gate_and_project(self, y: Tensor, z: Tensor) -> Tensor:
        raise NotImplementedError

    def _conv_weight(self) -> Tensor:
        return self.conv1d.weight.squeeze(1)  # (conv_dim, d_conv)

    def _A(self) -> Tensor:
        return -torch.exp(at_least_float32(self.A_log))  # float16 could overflow to -inf


class Mamba2Mixer(Mixer):
    """Mamba-2 mixer; the arguments mean what they mean in mamba-ssm's `Mamba2`.

    Args:
        d_model: width of the tokens.
        d_state: width of the scan's state.
        d_conv: width of the causal convolution, at least 2.
        expand: the inner width is expand * d_model.
        headdim: channels per head; the inner width must be a multiple of it.
        ngroups: groups of heads which share B and C.
        chunk_size: longest chunk of the chunked scan; None for what is fast on the device.
        bias, conv_bias: whether the projections and the convolution have biases.
        D_has_hdim: one skip weight per channel instead of one per head.
        rmsnorm: gated RMS norm before the output projection; without it the gate alone.
        norm_before_gate: norm, then gate, instead of gate, then norm.
        dt_min, dt_max, dt_init_floor: range of the step sizes at initialisation (log-uniform), and their floor.
        dt_limit: range into which step sizes are clamped.
        A_init_range: range of the decay rates -A at initialisation (uniform). A token fades by exp(dt A) at every later
            one, so small rates remember longer.
        backend: backend of the scan, see `ablate.ssm.ssd`.

    Raises:
        UserError: sizes below 1 or that do not divide, a convolution narrower than 2, an invalid range of rates
            or step sizes, an unknown backend.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        chunk_size: int | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        A_init_range: tuple[float, float] = (1.0, 16.0),
        backend: str = "auto",
    ) -> None:
        super().__init__()
        sizes = {"d_model": d_model, "d_state": d_state, "expand": expand, "headdim": headdim, "ngroups": ngroups}
        if chunk_size is not None:
            sizes["chunk_size"] = chunk_size
        for name, size in sizes.items():
            if size < 1:
                raise UserError(f"{name} is {size}, expected at least 1")
        self.d_model, self.d_state, self.d_conv = d_model, d_state, d_conv
        self.d_inner = expand * d_model
        if self.d_inner % headdim:
            raise UserError(f"inner width {self.d_inner} (expand * d_model) is not a multiple of headdim {headdim}")
        self.headdim, self.nheads, self.ngroups = headdim, self.d_inner // headdim, ngroups
        if self.nheads % ngroups:
            raise UserError(f"{self.nheads} heads (inner width / headdim) cannot be shared among {ngroups} groups")
        if d_conv < 2:
            raise UserError(f"d_conv is {d_conv}, expected at least 2")
        if not 0 < A_init_range[0] <= A_init_range[1]:
            raise UserError(f"A_init_range is {tuple(A_init_range)}, expected two rates in order, both above 0")
        if not 0 < dt_min <= dt_max or not 0 <= dt_limit[0] <= dt_limit[1]:
            raise UserError(
                f"dt_min {dt_min}, dt_max {dt_max}, dt_limit {tuple(dt_limit)}: expected 0 < dt_min <= dt_max, and two "
                "limits in order, neither below 0"
            )
        check_backend(backend)
        self.conv_dim = self.d_inner + 2 * ngroups * d_state
        self.ssm_shape = self.nheads, self.headdim, d_state
        self.chunk_size, self.backend, self.dt_limit = chunk_size, backend, tuple(dt_limit)

        self.in_proj = nn.Linear(d_model, self.d_inner + self.conv_dim + self.nheads, bias=bias)  # z, x, B, C, dt
        # A Conv1d for the names and initialisation of its parameters; `causal_conv1d` does the work.
        self.conv1d = nn.Conv1d(self.conv_dim, self.conv_dim, d_conv, groups=self.conv_dim, bias=conv_bias)
        self.dt_bias = nn.Parameter(initial_dt_bias(self.nheads, dt_min, dt_max, dt_init_floor))
        self.A_log = nn.Parameter(torch.empty(self.nheads).uniform_(*A_init_range).log())
        self.D = nn.Parameter(torch.ones(self.d_inner if D_has_hdim else self.nheads))
        without_weight_decay(self.dt_bias, self.A_log, self.D)
        self.norm = None
        if rmsnorm:
            self.norm = GatedRMSNorm(
                self.d_inner, group_size=self.d_inner // ngroups, norm_before_gate=norm_before_gate
            )
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., d_model) -> z (..., d_inner), xBC (..., conv_dim), dt (..., heads)."""
        return self.in_proj(hidden).split_with_sizes([self.d_inner, self.conv_dim, self.nheads], dim=-1)

    def _scan(self, x: Tensor, dt: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Any:
        dt = self._step_sizes(dt)
        if mask is not None:
            dt = dt.masked_fill(~mask[..., None], 0)  # leaves the scan's state as it is
        x, B, C = self._split(x)
        return ssd(x, dt, self._A(), B, C, self._skip(), **options)

    def _scan_step(self, x: Tensor, dt: Tensor, state: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
        x, B, C = self._split(x)
        return unchecked_step(x, self._step_sizes(dt), self._A(), B, C, self._skip(), state, inplace=inplace)

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., conv_dim) -> x (..., heads, headdim), B and C (..., groups, d_state)."""
        width = self.ngroups * self.d_state
        x, B, C = xBC.split_with_sizes([self.d_inner, width, width], dim=-1)
        leading = xBC.shape[:-1]  # views: `unflatten` is Python, and slow for a single token
        return (
            x.view(*leading, self.nheads, self.headdim),
            B.view(*leading, self.ngroups, self.d_state),
            C.view(*leading, self.ngroups, self.d_state),
        )

    def _gate_and_project(self, y: Tensor, z: Tensor) -> Tensor:
        """y (..., heads, headdim), z (..., d_inner) -> (..., d_model)."""
        y = y.flatten(-2)
        return self.out_proj(y * F.silu(z) if self.norm is None else self.norm(y, z))

    def _skip(self) -> Tensor:
        return self.D if self.D.shape[0] == self.nheads else self.D.unflatten(0, (self.nheads, self.headdim))

    def _step_sizes(self, dt: Tensor) -> Tensor:
        dt = F.softplus(at_least_float32(dt) + at_least_float32(self.dt_bias))
        return dt if self.dt_limit == (0.0, math.inf) else dt.clamp(*self.dt_limit)


def attention_heads(d_model: int, heads: int, kv_heads: int | None, head_dim: int | None) -> tuple[int, int]:
    """Heads of keys and values, and channels of a head, where they are not given: `heads`, and d_model / heads.

    Raises:
        UserError: heads that do not divide.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise UserError(f"{heads} query heads cannot be shared among {kv_heads} heads of keys and values")
    if head_dim is None and d_model % heads:
        raise UserError(f"d_model {d_model} is not a multiple of {heads} heads: set head_dim")
    return kv_heads, d_model // heads if head_dim is None else head_dim


def without_weight_decay(*parameters: nn.Parameter) -> None:
    """Put mamba-ssm's mark on parameters, for whoever builds the optimizer."""
    for parameter in parameters:
        parameter._no_weight_decay = True  # type: ignore[attr-defined]


def conv_inputs(x: Tensor, keep: int, mask: Tensor | None, seq_idx: Tensor | None, before: Tensor | None) -> Tensor:
    """(b, channels, keep): the last inputs x (b, l, channels) of the convolution at real tokens of the last document.

    `before` (b, channels, keep) are those before the first token, zeros by default.
    """
    batch, length, channels = x.shape
    before = x.new_zeros(batch, channels, keep) if before is None else before.to(x.dtype)
    window = torch.cat([before.transpose(1, 2), x], dim=1)  # (b, keep + l, channels)
    last = torch.full((batch,), length - 1, device=x.device)
    if mask is not None:
        last = torch.where(mask, torch.arange(length, device=mask.device), -1).amax(dim=1)  # -1: no real token
    places = last[:, None] + 1 + torch.arange(keep, device=x.device)  # (b, keep), in the window
    kept = take(window, places)
    if seq_idx is not None:
        documents = torch.cat([seq_idx[:, :1].expand(-1, keep), seq_idx], dim=1)
        # From the last token back to where its document begins, so that 1, 2, 1 is not taken for one document.
        same = documents.gather(1, places) == documents.gather(1, places[:, -1:])
        same = same.flip(1).cumprod(1).flip(1).bool()
        kept = kept.masked_fill(~same[..., None], 0)
    return kept.transpose(1, 2)


def initial_dt_bias(nheads: int, dt_min: float, dt_max: float, dt_init_floor: float) -> Tensor:
    """Such that softplus(bias) is log-uniform in [dt_min, dt_max]."""
    dt = torch.exp(torch.rand(nheads) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min))
    dt = dt.clamp(min=dt_init_floor)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


def check_tokens(hidden: Tensor, d_model: int, mask: Tensor | None, seq_idx: Tensor | None) -> None:
    if hidden.ndim != 3 or hidden.shape[2] != d_model:
        raise UserError(f"hidden has shape {tuple(hidden.shape)}, expected (batch, length, d_model = {d_model})")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != hidden.shape[:2]):
        raise UserError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}, expected torch.bool (batch, length) = "
            f"{tuple(hidden.shape[:2])}, True at real tokens"
        )
    if seq_idx is not None and seq_idx.shape != hidden.shape[:2]:
        raise UserError(
            f"seq_idx has shape {tuple(seq_idx.shape)}, expected (batch, length) = {tuple(hidden.shape[:2])}"
        )


def take(x: Tensor, places: Tensor) -> Tensor:
    """x (b, l, d) at places (b, k) -> (b, k, d)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def seq_idx_of_real_tokens(seq_idx: Tensor, mask: Tensor) -> Tensor:
    """Padding takes the document of the real token before it (or of the first one), so that it begins none."""
    places = torch.arange(mask.shape[1], device=mask.device)
    first = mask.int().argmax(dim=1, keepdim=True)
    latest = torch.where(mask, places, first).cummax(dim=1).values
    return seq_idx.gather(1, latest)
