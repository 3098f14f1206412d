"""The Mamba-1 mixer (Gu & Dao 2023, arXiv 2312.00752, figure 3): projection, causal convolution, selective scan, gate.

Parameter names and shapes are those of mamba-ssm's `Mamba`, so released checkpoints load without renaming.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.ssm.mixer import Mixer, initial_dt_bias, without_weight_decay
from ablate.ssm.precision import at_least_float32
from ablate.ssm.selective_scan import check_backend, selective_scan, selective_step


class Mamba1Mixer(Mixer):
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
        UserError: a size below 1, a convolution narrower than 2, an invalid range of step sizes,
            an unknown backend.
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
        sizes = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "expand": expand, "dt_rank": dt_rank}
        for name, size in (sizes | {"chunk_size": 1 if chunk_size is None else chunk_size}).items():
            least = 2 if name == "d_conv" else 1
            if size < least:
                raise UserError(f"{name} is {size}, expected at least {least}")
        if not 0 < dt_min <= dt_max:
            raise UserError(f"dt_min {dt_min}, dt_max {dt_max}: expected 0 < dt_min <= dt_max")
        check_backend(backend)
        self.d_model, self.d_state, self.d_conv, self.dt_rank = d_model, d_state, d_conv, dt_rank
        self.d_inner = expand * d_model
        self.chunk_size, self.backend, self.ssm_shape = chunk_size, backend, (self.d_inner, d_state)

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)  # x, z
        # A Conv1d for the names and initialisation of its parameters; `causal_conv1d` does the work.
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias)
        self.x_proj = nn.Linear(self.d_inner, dt_rank + 2 * d_state, bias=False)  # dt, B, C
        self.dt_proj = nn.Linear(dt_rank, self.d_inner)
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(initial_dt_bias(self.d_inner, dt_min, dt_max, dt_init_floor))
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]  # mamba-ssm's mark: no zeros for this one
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        without_weight_decay(self.A_log, self.D)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, None]:
        x, z = self.in_proj(hidden).chunk(2, dim=-1)
        return z, x, None

    def _scan(self, x: Tensor, dt: None, mask: Tensor | None, options: dict[str, Any]) -> Any:
        steps, B, C = self._select(x)
        if mask is not None:
            steps = steps.masked_fill(~mask[..., None], 0)  # leaves the scan's state as it is
        return selective_scan(x, steps, self._A(), B, C, self.D, **options)

    def _scan_step(self, x: Tensor, dt: None, state: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
        steps, B, C = self._select(x)
        return selective_step(x, steps, self._A(), B, C, self.D, state, inplace=inplace)

    def _gate_and_project(self, y: Tensor, z: Tensor) -> Tensor:
        return self.out_proj(y * F.silu(z))

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., d_inner) -> dt (..., d_inner) in float32, B and C (..., d_state)."""
        dt, B, C = self.x_proj(x).split_with_sizes([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = at_least_float32(F.linear(dt, self.dt_proj.weight)) + at_least_float32(self.dt_proj.bias)
        return F.softplus(dt), B, C
