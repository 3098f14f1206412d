"""The Mamba-2 Scan Connector (MSC) of ML-Mamba (Huang et al. 2024, arXiv 2407.19832, Sec. 3, Fig. 2, 4 and 5, Eq. 6-8).

A language model of the Mamba family reads its tokens in one direction, but an image has none. The MSC lets K scans of
Mamba-2 (Dao & Gu 2024, arXiv 2405.21060) read the patches along K paths before the visual tokens are made. Two
directions are those of Vision Mamba (Zhu et al. 2024, arXiv 2401.09417, Algorithm 1), four those of VMamba (Liu et al.
2024, arXiv 2401.10166). One block, for tokens u and scan orders k = 1 ... K:

    z, v, dt   = W_in u                                        shared projections
    v_k, dt_k  = v, dt read along order k
    x_k, B_k, C_k = silu(conv_k(v_k))                          causal, depthwise
    h_t        = exp(dt_t A_k) h_{t-1} + dt_t B_t x_t^T        the scan, dt = softplus(dt_k + dt_bias_k)
    y_t        = C_t h_t + D_k x_t
    u          = u + W_out sum_k silu(z) * y_k                 each y_k put back in image order
    u          = u + SwiGLU(norm(u))                           MSC-MLP (Advanced) only

The paper and the released code (github.com/WenjunHuang94/ML-Mamba and its fork of mamba) differ. Both are offered:

                  arrangement "paper"                    arrangement "released"
    place         MSC at in_dim, then the MLP            Linear + GELU to out_dim, MSC at out_dim, LayerNorm, the MLP
    merge         sum of the gated scans                 mean of the gated, RMS-normalised scans
    norm          LayerNorm before the projections       none before the projections

What the paper leaves open is taken from the released code in both: two blocks; a SwiGLU with hidden width d, biases, a
LayerNorm and a residual of its own; drop path; initialisation. The released code has no CSM: there its mean is taken
over four scans.

Shape suffixes in comments: b batch, l tokens, k direction, h head, p headdim, n state, d inner width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.core.fields import LARGEST_SIZE, Range
from ablate.ssm import RMSNorm, causal_conv1d, ssd, without_weight_decay
from connectors.contract import Connector, register
from connectors.mlp import three_layer_mlp
from connectors.scan_orders import BSM, CSM, Path, ScanIndices, scan_indices
from connectors.scan_orders import registry as scan_orders

Arrangement = Literal["paper", "released"]
# `_check_fields` names those that are too small.
_Size = Annotated[int, Range(most=LARGEST_SIZE)]


class _TakeRows(torch.autograd.Function):
    """x.index_select(1, index), with a backward pass that gathers instead of scattering.

    PyTorch would add the gradients up one row at a time, on a GPU in no fixed order. Here `transposed` lists for every
    row of x the rows of the output that read it, equally many for each: one gather, one sum, the same bits each time.
    """

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, transposed: Tensor) -> Tensor:
        ctx.save_for_backward(transposed)
        ctx.rows, ctx.readers = x.shape[1], len(transposed) // max(1, x.shape[1])
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (transposed,) = ctx.saved_tensors
        return grad.index_select(1, transposed).unflatten(1, (ctx.rows, ctx.readers)).sum(2), None, None


def cross_scan(tokens: Tensor, indices: ScanIndices) -> Tensor:
    """Read the tokens along all K orders: (b, l, c) in image order -> (b, l, K, c), step t of each order at [:, t]."""
    read = _TakeRows.apply(tokens, indices.read, indices.home)
    return read.unflatten(1, (tokens.shape[1], indices.directions))


def cross_unscan(scanned: Tensor, indices: ScanIndices) -> Tensor:
    """Put every direction back in image order: (b, l, K, c) -> (b, l, K, c), patch i of each direction at [:, i]."""
    home = _TakeRows.apply(scanned.flatten(1, 2), indices.home, indices.away)
    return home.unflatten(1, scanned.shape[1:3])


class DirectionalScan(nn.Module):
    """K state-space scans side by side, each with its own convolution, A, D and dt bias.

    Directions are folded into channels and heads, so one convolution and one scan serve them all; B and C are shared
    by the heads of one direction (groups = K).

    Args:
        directions: K.
        d_inner: channels that each direction scans.
    """

    def __init__(
        self,
        directions: int,
        d_inner: int,
        *,
        d_state: int,
        d_conv: int,
        headdim: int,
        chunk_size: int | None,
        backend: str,
    ) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.headdim = d_inner, d_state, headdim
        self.chunk_size, self.backend = chunk_size, backend
        heads = d_inner // headdim
        channels = directions * (d_inner + 2 * d_state)  # x, B and C of every direction
        # A Conv1d for its initialisation; `causal_conv1d` does the work.
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels)
        # As in the released code, the directions start from one draw of Mamba-2's initial values.
        self.dt_bias = nn.Parameter(_initial_dt_bias(heads).repeat(directions, 1))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log().repeat(directions, 1))
        self.D = nn.Parameter(torch.ones(directions, heads))
        without_weight_decay(self.dt_bias, self.A_log, self.D)

    def forward(self, xBC: Tensor, dt: Tensor, indices: ScanIndices) -> Tensor:
        """Scan the same tokens along K orders.

        Args:
            xBC: (b, l, d_inner + 2 d_state) in image order, before the convolution.
            dt: (b, l, heads) in image order, before bias and softplus.

        Returns:
            y (b, l, K, d_inner) in image order, in the dtype of xBC.
        """
        xBC = cross_scan(xBC, indices).flatten(2)
        xBC = causal_conv1d(xBC, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu")
        x, B, C = xBC.unflatten(2, (len(self.D), -1)).split([self.d_inner, self.d_state, self.d_state], dim=-1)
        # The parameters are float32 also under autocast, and so are the step sizes.
        dt = F.softplus(cross_scan(dt, indices) + self.dt_bias)
        y = ssd(
            x.flatten(2).unflatten(2, (-1, self.headdim)),  # (b, l, k h, p)
            dt.flatten(2),  # (b, l, k h)
            -torch.exp(self.A_log.flatten()),
            B,  # (b, l, k, n)
            C,
            self.D.flatten(),
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        return cross_unscan(y.flatten(2).unflatten(2, (-1, self.d_inner)), indices)


def _initial_dt_bias(heads: int, dt_min: float = 1e-3, dt_max: float = 0.1, floor: float = 1e-4) -> Tensor:
    """Such that softplus(bias) is log-uniform in [dt_min, dt_max], as in Mamba-2."""
    dt = torch.empty(heads).uniform_(math.log(dt_min), math.log(dt_max)).exp().clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


class ScanMixer(nn.Module):
    """Projections in, the scans, the merge, projection out: (b, l, dim) -> (b, l, dim)."""

    def __init__(self, dim: int, directions: int, arrangement: Arrangement, *, depth: int, expand: int, **scan) -> None:
        super().__init__()
        self.d_inner = expand * dim
        heads = self.d_inner // scan["headdim"]
        self.split = [self.d_inner, self.d_inner + 2 * scan["d_state"], heads]  # z, xBC, dt
        self.in_proj = nn.Linear(dim, sum(self.split), bias=False)
        self.scan = DirectionalScan(directions, self.d_inner, **scan)
        self.norm = RMSNorm(self.d_inner) if arrangement == "released" else None  # one for all directions
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False)
        with torch.no_grad():  # as mamba-ssm does with what is added to a residual
            self.out_proj.weight /= math.sqrt(depth)

    def forward(self, u: Tensor, indices: ScanIndices) -> Tensor:
        z, xBC, dt = self.in_proj(u).split(self.split, dim=-1)
        y = self.scan(xBC, dt, indices)  # (b, l, k, d)
        gate = F.silu(z)
        if self.norm is None:
            merged = gate * y.sum(dim=2)  # the gate is the same for every direction: multiply once
        else:
            merged = self.norm(gate.unsqueeze(2) * y).mean(dim=2)
        return self.out_proj(merged)


class SwiGLU(nn.Module):
    """W_3 (silu(W_1 u) * W_2 u), hidden width dim, with biases (Shazeer 2020, arXiv 2002.05202): (..., dim) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * dim)
        self.w3 = nn.Linear(dim, dim)
        nn.init.zeros_(self.w12.bias)
        nn.init.zeros_(self.w3.bias)

    def forward(self, u: Tensor) -> Tensor:
        gate, value = self.w12(u).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class ScanBlock(nn.Module):
    """One block of the MSC (Fig. 4): (b, l, dim) -> (b, l, dim)."""

    def __init__(
        self, dim: int, directions: int, arrangement: Arrangement, *, swiglu: bool, drop_path: float, **mixer
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim) if arrangement == "paper" else nn.Identity()
        self.mixer = ScanMixer(dim, directions, arrangement, **mixer)
        self.swiglu = nn.Sequential(nn.LayerNorm(dim), SwiGLU(dim)) if swiglu else None
        self.drop_path = _drop_path(drop_path)

    def forward(self, u: Tensor, indices: ScanIndices) -> Tensor:
        u = u + self.drop_path(self.mixer(self.norm(u), indices))
        return u if self.swiglu is None else u + self.drop_path(self.swiglu(u))


class MSC(Connector):
    """Blocks of Mamba-2 scans along several orders of the patches, then the three-layer MLP.

    Args:
        arrangement: "paper" has the scans at in_dim and sums them; "released" is the released code, which has them at
            out_dim and takes the mean of their RMS norms. The head of the file lists all differences.
        path: "raster" reads every row (or column) the same way, "snake" turns round at the end of each.
        scans: scan orders by name, instead of the named set: `["rows", "snake_columns"]`.
        depth: number of blocks.
        d_state: width of the scan's state.
        d_conv: width of the causal convolution.
        expand: the scans run at expand times the width of the block.
        headdim: channels per head; must divide the inner width.
        chunk_size: longest chunk of the scan, by default what is fast on the device; it does not change the result.
        drop_path: rate at the deepest blocks. The rates are the first `depth` of 0, then `depth` even steps from 0 to
            this; so the released code's two blocks never drop anything.
        backend: of the scan, see `ablate.ssm.ssd`.

    Raises:
        UserError: a field out of range, a headdim that does not divide the inner width, an unknown scan order.
    """

    scan_set: ClassVar[dict[Path, tuple[str, ...]]]
    with_swiglu: ClassVar[bool]
    test_fields: ClassVar[Mapping[str, Any]] = {"d_state": 8, "headdim": 8, "chunk_size": 5, "backend": "torch"}

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        arrangement: Arrangement = "paper",
        path: Path = "raster",
        scans: Sequence[str] | None = None,
        depth: Annotated[int, Range(most=1000)] = 2,
        d_state: _Size = 128,
        d_conv: _Size = 4,
        expand: _Size = 2,
        headdim: _Size = 64,
        chunk_size: int | None = None,
        drop_path: float = 0.1,
        backend: Literal["auto", "recurrent", "torch", "mamba_ssm"] = "auto",
    ) -> None:
        super().__init__(in_dim, out_dim)
        width = in_dim if arrangement == "paper" else out_dim
        positive = {"depth": depth, "d_state": d_state, "d_conv": d_conv, "expand": expand, "headdim": headdim}
        if chunk_size is not None:
            positive["chunk_size"] = chunk_size
        _check_fields(positive, drop_path, expand * width, headdim)
        self.scans = self._choose_scans(path, scans)

        if arrangement == "released":
            self.project: nn.Module = nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU())
        else:
            self.project = nn.Identity()
        scan = {"d_state": d_state, "d_conv": d_conv, "headdim": headdim, "chunk_size": chunk_size, "backend": backend}
        self.blocks = nn.ModuleList(
            ScanBlock(
                width,
                len(self.scans),
                arrangement,
                swiglu=self.with_swiglu,
                drop_path=rate,
                depth=depth,
                expand=expand,
                **scan,
            )
            for rate in _drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(width) if arrangement == "released" else nn.Identity()
        self.mlp = three_layer_mlp(width, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[1:3]
        indices = scan_indices(self.scans, height, width, features.device)
        tokens = self.project(features.flatten(1, 2))
        for block in self.blocks:
            tokens = block(tokens, indices)
        return self.mlp(self.norm(tokens))

    def _choose_scans(self, path: Path, scans: Sequence[str] | None) -> tuple[str, ...]:
        if scans is None:
            return self.scan_set[path]
        if path != "raster":
            raise UserError(
                f'path="{path}" chooses among the connector\'s own scans; with scans={list(scans)} name the orders '
                'you want, for example "snake_rows".'
            )
        if not scans:
            raise UserError("scans is empty: name at least one scan order.")
        for name in scans:
            scan_orders.get(name)  # an unknown name is reported now, not at the first image
        return tuple(scans)


def _check_fields(positive: dict[str, int], drop_path: float, d_inner: int, headdim: int) -> None:
    for field, value in positive.items():
        if value < 1:
            raise UserError(f"{field} is {value}, expected at least 1.")
    if not 0 <= drop_path < 1:
        raise UserError(f"drop_path is {drop_path:g}, expected at least 0 and less than 1.")
    if d_inner % headdim:
        divisors = [str(n) for n in range(1, d_inner + 1) if d_inner % n == 0 and n <= headdim][-4:]
        raise UserError(
            f"headdim is {headdim}, which does not divide the inner width {d_inner} (expand times the width of the "
            f"blocks). Choose a divisor, for example {', '.join(divisors)}."
        )


def _drop_path(rate: float) -> nn.Module:
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): in training, a row of the batch skips the branch."""
    if rate == 0:
        return nn.Identity()
    from timm.layers import DropPath  # here: timm takes seconds to import

    return DropPath(rate)


def _drop_path_rates(rate: float, depth: int) -> list[float]:
    return [0.0, *(rate * block / max(1, depth - 1) for block in range(depth))][:depth]


@register("msc_basic_bsm")
class BasicBSM(MSC):
    """MSC-MLP (Basic) with two scans: rows forwards and backwards."""

    scan_set, with_swiglu = BSM, False


@register("msc_basic_csm")
class BasicCSM(MSC):
    """MSC-MLP (Basic) with four scans: rows and columns, forwards and backwards."""

    scan_set, with_swiglu = CSM, False


@register("msc_bsm")
class AdvancedBSM(MSC):
    """MSC-MLP (Advanced, with SwiGLU) with two scans: rows forwards and backwards."""

    scan_set, with_swiglu = BSM, True


@register("msc_csm")
class AdvancedCSM(MSC):
    """MSC-MLP (Advanced, with SwiGLU) with four scans: rows and columns, forwards and backwards."""

    scan_set, with_swiglu = CSM, True
