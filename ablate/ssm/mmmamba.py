"""The Mamba-2 mixer of mmMamba (arXiv 2502.13145, section 3.1), which takes over the projections of an attention layer.

Its queries, keys and values are the scan's C, B and x. Names and shapes of those projections are the attention layer's
own, grouped queries included, so that its tensors fit as they are.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.ssm.mixer import Mixer, attention_heads, initial_dt_bias, without_weight_decay
from ablate.ssm.norms import RMSNorm
from ablate.ssm.precision import at_least_float32
from ablate.ssm.scan import check_backend, ssd, unchecked_step

NEW = ("conv1d", "gate_proj", "dt_proj", "dt_bias", "A_log", "norm")  # what an attention layer does not have
TAKEN = ("q_proj", "k_proj", "v_proj")  # what is taken over and trains from stage 2 on; out_proj never does


class MMMambaMixer(Mixer):
    """Mamba-2 with a state for each query head, and heads of keys and values shared as in the attention.

    As released: projections, causal convolution over [v, k, q] with SiLU, scan with step sizes dt and rates exp(A_log),
    RMS norm of each head, gate, output projection; no skip. The initial values are those of `mimic`.

    Args:
        d_model: width of the tokens.
        heads: query heads, each with a state of its own.
        kv_heads: heads of keys and values, a divisor of `heads`.
        head_dim: channels per head, and width of the state.
        d_conv: width of the causal convolution, at least 2.
        bias: whether the projections of queries, keys and values have biases.
        variant: "released" as above; "paper" as equation 2: neither SiLU nor norm, and x is not multiplied by dt.
        gate: whether the heads' outputs are multiplied by silu of a projection of the input.
        chunk_size, backend: of the scan, see `ablate.ssm.ssd`.

    Raises:
        UserError: widths that do not divide, or a convolution narrower than 2.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        d_conv: int = 2,
        bias: bool = False,
        variant: Literal["released", "paper"] = "released",
        gate: bool = True,
        chunk_size: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        kv_heads, head_dim = attention_heads(d_model, heads, kv_heads, head_dim)
        if d_conv < 2:
            raise UserError(f"d_conv is {d_conv}, expected at least 2")
        check_backend(backend)
        self.d_model, self.d_conv, self.chunk_size, self.backend = d_model, d_conv, chunk_size, backend
        self.heads, self.kv_heads, self.head_dim, self.variant = heads, kv_heads, head_dim, variant
        self.activation = "silu" if variant == "released" else "identity"
        self.ssm_shape = heads, head_dim, head_dim
        inner, shared = heads * head_dim, kv_heads * head_dim
        self.q_proj = nn.Linear(d_model, inner, bias=bias)
        self.k_proj = nn.Linear(d_model, shared, bias=bias)
        self.v_proj = nn.Linear(d_model, shared, bias=bias)
        self.gate_proj = nn.Linear(d_model, inner, bias=False) if gate else None
        self.dt_proj = nn.Linear(d_model, heads, bias=False)
        self.conv1d = nn.Conv1d(2 * shared + inner, 2 * shared + inner, d_conv, groups=2 * shared + inner)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.norm = RMSNorm(head_dim) if variant == "released" else None
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        without_weight_decay(self.dt_bias, self.A_log)
        self.mimic()

    @torch.no_grad()
    def mimic(self) -> None:
        """The new parameters such that the mixer begins near linear attention: the convolution passes each token on,
        and the state decays slowly and alike for all tokens.
        """
        self.conv1d.weight.zero_()
        self.conv1d.weight[..., -1] = 1.0
        self.conv1d.bias.zero_()  # type: ignore[union-attr]  # it has one
        self.dt_proj.weight.zero_()
        self.dt_bias.copy_(initial_dt_bias(self.heads, 1e-3, 0.1, 1e-4))
        self.A_log.fill_(1.0)
        self._initial_gate()

    @torch.no_grad()
    def plain(self) -> None:
        """The new parameters at their usual initial values: the arm without mimicry of the paper's Table 4."""
        self.conv1d.reset_parameters()
        self.dt_proj.reset_parameters()
        self.dt_bias.zero_()
        self.A_log.copy_(torch.empty_like(self.A_log).uniform_(1.0, 16.0).log())
        self._initial_gate()

    def _initial_gate(self) -> None:
        if self.gate_proj is not None:
            nn.init.xavier_uniform_(self.gate_proj.weight, gain=2**-2.5)

    def mixed(self, y: Tensor, z: Tensor) -> Tensor:
        """What is projected out: it answers to the attention's heads before their output projection.

        Args:
            y: (..., heads, head_dim), of the scan.
            z: (..., heads head_dim), of the gate's projection.

        Returns:
            (..., heads head_dim).
        """
        y = (y if self.norm is None else self.norm(y)).flatten(-2)
        return y if self.gate_proj is None else y * F.silu(z)

    def _biased(self) -> bool:
        return self.v_proj.bias is not None

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.cat([self.v_proj(hidden), self.k_proj(hidden), self.q_proj(hidden)], dim=-1)
        return hidden if self.gate_proj is None else self.gate_proj(hidden), x, self.dt_proj(hidden)

    def _scan(self, x: Tensor, dt: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Any:
        dt = self._step_sizes(dt)
        x, B, C = self._split(x, dt)
        if mask is not None:
            dt = dt.masked_fill(~mask[..., None], 0)  # leaves the scan's state as it is
        return ssd(x, dt, self._A(), B, C, None, **options)

    def _scan_step(self, x: Tensor, dt: Tensor, state: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
        dt = self._step_sizes(dt)
        x, B, C = self._split(x, dt)
        return unchecked_step(x, dt, self._A(), B, C, None, state, inplace=inplace)

    def _split(self, vkq: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., channels) -> x, B and C (..., heads, head_dim)."""
        shared = self.kv_heads * self.head_dim
        v, k, q = (
            part.unflatten(-1, (-1, self.head_dim))
            for part in vkq.split_with_sizes([shared, shared, self.heads * self.head_dim], dim=-1)
        )
        group = self.heads // self.kv_heads
        v, k = v.repeat_interleave(group, dim=-2), k.repeat_interleave(group, dim=-2)
        if self.variant == "paper":  # the scan multiplies by dt
            v = v / dt.to(v.dtype)[..., None]
        return v, k, q

    def _gate_and_project(self, y: Tensor, z: Tensor) -> Tensor:
        return self.out_proj(self.mixed(y, z))

    def _step_sizes(self, dt: Tensor) -> Tensor:
        return F.softplus(at_least_float32(dt) + at_least_float32(self.dt_bias))
