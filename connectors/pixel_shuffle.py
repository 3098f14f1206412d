"""Neighbouring patches as channels, then one linear layer: Idefics3 (Laurencon et al. 2024, arXiv 2408.12637), SmolVLM
(arXiv 2504.05299), nanoVLM.

nanoVLM: factor 4 for 1024 patches, and a learning rate of the connector 100 times that of the rest
(`train.fields.rates`).
"""

import math

from torch import Tensor, nn

from ablate.core.fields import Size
from connectors.contract import Connector, register
from connectors.grids import check_divisible, pad_to_multiple, space_to_depth, tiled


@register("pixel_shuffle")
class PixelShuffle(Connector):
    """Squares of patches become one token each: their channels side by side, one linear layer without bias.

    Args:
        factor: side of a square.
        pad: zeros at the bottom and the right of grids whose sides are no multiples; without, these are refused, as
            published.
    """

    def __init__(self, in_dim: int, out_dim: int, *, factor: Size = 2, pad: bool = False) -> None:
        super().__init__(in_dim, out_dim)
        self.factor, self.pad = factor, pad
        self.projection = nn.Linear(factor * factor * in_dim, out_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=0.02)

    def check_grid(self, height: int, width: int) -> None:
        if not self.pad:
            check_divisible('Connector "pixel_shuffle"', height, width, self.factor)

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(tiled(height, width, self.factor))

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(space_to_depth(pad_to_multiple(features, self.factor), self.factor).flatten(1, 2))
