"""Matryoshka Multimodal Models (Cai et al. 2024, arXiv 2405.17430)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ablate.core.errors import UserError
from ablate.core.fields import Size
from connectors.contract import Connector, register
from connectors.grids import at_most, average_to
from connectors.mlp2x_gelu import two_layer_mlp


@register("m3")
class M3(Connector):
    """A two-layer MLP, then the tokens are averaged to one of several grids; every step trains all of them.

    Args:
        sides: rows and columns of the grids, {1, 3, 6, 12, 24} squared tokens. A side of the patches' grid that is
            shorter stays.
    """

    trained_sizes = "all"
    test_fields: ClassVar[Mapping[str, Any]] = {"sides": (1, 2, 4)}

    def __init__(self, in_dim: int, out_dim: int, *, sides: Sequence[Size] = (1, 3, 6, 12, 24)) -> None:
        super().__init__(in_dim, out_dim)
        if not sides or len(set(sides)) != len(sides):
            raise UserError(f"sides are {list(sides)}, expected one or more different ones.")
        self.sizes = tuple(side**2 for side in sorted(sides))
        self.mlp = two_layer_mlp(in_dim, out_dim)

    def _grid(self, height: int, width: int, size: int | None) -> tuple[int, int]:
        side = round((self.sizes[-1] if size is None else size) ** 0.5)
        return at_most(height, width, side)

    def num_tokens(self, height: int, width: int, size: int | None = None) -> int:
        rows, columns = self._grid(height, width, size)
        return rows * columns

    def forward(self, features: Tensor, *, size: int | None = None) -> Tensor:
        height, width = features.shape[1:3]
        rows, columns = self._grid(height, width, size)
        return average_to(self.mlp(features), rows, columns).flatten(1, 2)
