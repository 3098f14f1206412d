"""Honeybee's C-Abstractor (Cha et al. 2023, arXiv 2312.06742, Sec. 3.3). Published with the encoder's last layer."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.core.fields import Range, Size
from connectors.contract import Connector, register
from connectors.grids import at_most, average_to, resize_to
from connectors.ldp import ChannelNorm


class RegNetBlock(nn.Module):
    """A RegNet-Y block (Radosavovic et al. 2020, arXiv 2003.13678) with SiLU and LayerNorm: 1 x 1, grouped 3 x 3,
    squeeze-and-excitation, 1 x 1, and a residual. (n, in_dim, h, w) -> (n, width, h, w).
    """

    def __init__(self, in_dim: int, width: int, group: int = 8) -> None:
        super().__init__()
        squeezed = max(1, round(in_dim / 4))
        self.enter, self.enter_norm = nn.Conv2d(in_dim, width, 1, bias=False), ChannelNorm(width)
        self.spread = nn.Conv2d(width, width, 3, padding=1, groups=max(1, width // group), bias=False)
        self.spread_norm = ChannelNorm(width)
        self.squeeze, self.excite = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)
        self.leave, self.leave_norm = nn.Conv2d(width, width, 1, bias=False), ChannelNorm(width)
        self.skip: nn.Module = nn.Identity()
        if in_dim != width:
            self.skip = nn.Sequential(nn.Conv2d(in_dim, width, 1, bias=False), ChannelNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.enter_norm(self.enter(x)))
        y = F.silu(self.spread_norm(self.spread(y)))
        y = y * torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean(dim=(2, 3), keepdim=True)))))
        return F.silu(self.leave_norm(self.leave(y)) + self.skip(x))


def _stage(depth: int, in_dim: int, width: int) -> nn.Module:
    return nn.Sequential(*(RegNetBlock(width if i else in_dim, width) for i in range(depth)))


@register("c_abstractor")
class CAbstractor(Connector):
    """Learned positions, residual convolutions, average pooling to a fixed grid, residual convolutions, an MLP.

    Args:
        side: rows and columns that are left: 144 tokens of 12 x 12. A side of the grid that is shorter stays.
        width: of the convolutions.
        depth: blocks (RegNet's, with SiLU and LayerNorm) before and after the pooling; 0 for none.
        positions: the grid's side for which positions are learned; for other grids they are interpolated.
    """

    test_fields: ClassVar[Mapping[str, Any]] = {"width": 16, "depth": 1, "positions": 4, "side": 3}

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        side: Size = 12,
        width: Size = 1024,
        depth: Annotated[int, Range(0, 100)] = 3,
        positions: Size = 24,
    ) -> None:
        super().__init__(in_dim, out_dim)
        if depth and width % 8:
            raise UserError(f"width is {width}, expected a multiple of 8, the channels of a group.")
        self.side = side
        self.positions = nn.Parameter(torch.empty(1, positions, positions, in_dim))
        nn.init.normal_(self.positions, std=0.02)
        self.before: nn.Module = nn.Identity()
        self.after: nn.Module = nn.Identity()
        if depth:
            self.before, self.after = _stage(depth, in_dim, width), _stage(depth, width, width)
        hidden = width if depth else in_dim
        self.mlp = nn.Sequential(nn.Linear(hidden, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim))

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(at_most(height, width, self.side))

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[1:3]
        maps = features + resize_to(self.positions, height, width)
        maps = self.before(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        maps = average_to(maps, *at_most(height, width, self.side))
        maps = self.after(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.mlp(maps.flatten(1, 2))
