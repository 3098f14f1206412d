"""VL-Mamba's vision selective scan connector (Qiao et al. 2024, arXiv 2403.13600, Sec. 3.3): scans of Mamba-1.

The block is VMamba's (Liu et al. 2024, arXiv 2401.10166, Fig. 3): a depthwise convolution on the grid, selective scans
along several orders of the patches, each with parameters of its own, their sum normed and gated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.core.fields import Count, Size
from ablate.ssm import without_weight_decay
from ablate.ssm.mixer import initial_dt_bias
from ablate.ssm.selective_scan import selective_scan
from connectors.contract import Connector, register
from connectors.mlp2x_gelu import two_layer_mlp
from connectors.msc import cross_scan, cross_unscan
from connectors.scan_orders import BSM, CSM, ScanIndices, scan_indices
from connectors.scan_orders import registry as scan_orders


class SelectiveScan(nn.Module):
    """One selective scan with its projections and A, D (Gu & Dao 2023, arXiv 2312.00752): (b, l, dim) -> same."""

    def __init__(self, dim: int, d_state: int, backend: str) -> None:
        super().__init__()
        self.rank, self.d_state, self.backend = math.ceil(dim / 16), d_state, backend
        self.x_proj = nn.Linear(dim, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, dim)
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(initial_dt_bias(dim, 1e-3, 0.1, 1e-4))
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(dim, 1))
        self.D = nn.Parameter(torch.ones(dim))
        without_weight_decay(self.A_log, self.D)

    def forward(self, x: Tensor) -> Tensor:
        dt, B, C = self.x_proj(x).split([self.rank, self.d_state, self.d_state], dim=-1)
        dt = F.softplus(self.dt_proj(dt))
        return selective_scan(x, dt, -torch.exp(self.A_log), B, C, self.D, backend=self.backend)


class VSSBlock(nn.Module):
    """u + VSS(LayerNorm(u)): (n, h, w, dim) -> (n, h, w, dim)."""

    def __init__(self, dim: int, directions: int, *, expand: int, d_state: int, backend: str) -> None:
        super().__init__()
        inner = expand * dim
        self.norm = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.scans = nn.ModuleList(SelectiveScan(inner, d_state, backend) for _ in range(directions))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, u: Tensor, indices: ScanIndices) -> Tensor:
        x, z = self.in_proj(self.norm(u)).chunk(2, dim=-1)
        x = F.silu(self.conv(x.permute(0, 3, 1, 2))).flatten(2).transpose(1, 2)  # (n, l, inner)
        read = cross_scan(x, indices)  # (n, l, k, inner)
        scanned = torch.stack([scan(read[:, :, k]) for k, scan in enumerate(self.scans)], dim=2)
        y = self.out_norm(cross_unscan(scanned, indices).sum(dim=2)).view_as(z)
        return u + self.out_proj(y * F.silu(z))


@register("vss")
class VSS(Connector):
    """Linear to the language model's width, blocks of Mamba-1 scans over the grid, a two-layer MLP.

    Args:
        mechanism: "bsm" reads the rows forwards and backwards, "csm" the columns as well.
        scans: scan orders by name, instead of the mechanism's.
        depth: number of blocks.
        d_state: width of the scan's state.
        expand: the scans run at expand times the width of the block.
        backend: of the scan, see `ablate.ssm.selective_scan`.

    Raises:
        UserError: an unknown scan order, or none.
    """

    test_fields: ClassVar[Mapping[str, Any]] = {"d_state": 4, "backend": "torch"}

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        mechanism: Literal["bsm", "csm"] = "csm",
        scans: Sequence[str] | None = None,
        depth: Count = 1,
        d_state: Size = 16,
        expand: Size = 2,
        backend: Literal["auto", "recurrent", "torch", "mamba_ssm"] = "auto",
    ) -> None:
        super().__init__(in_dim, out_dim)
        if scans is not None and not scans:
            raise UserError("scans is empty: name at least one scan order.")
        self.scans = tuple((BSM if mechanism == "bsm" else CSM)["raster"] if scans is None else scans)
        for name in self.scans:
            scan_orders.get(name)
        self.project = nn.Linear(in_dim, out_dim)
        self.blocks = nn.ModuleList(
            VSSBlock(out_dim, len(self.scans), expand=expand, d_state=d_state, backend=backend) for _ in range(depth)
        )
        self.mlp = two_layer_mlp(out_dim, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        indices = scan_indices(self.scans, *features.shape[1:3], features.device)
        grid = self.project(features)
        for block in self.blocks:
            grid = block(grid, indices)
        return self.mlp(grid.flatten(1, 2))
