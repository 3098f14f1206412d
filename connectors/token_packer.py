"""TokenPacker (Li et al. 2024, arXiv 2407.02392, Sec. 3.2).

Published with four layers of the encoder, the last of which asks: name it four times, and the layers in
`encoder.layer=[-12, -8, -5, -2]`.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ablate.core.fields import Size
from connectors.attention import CrossAttention
from connectors.contract import Connector, Features, register
from connectors.grids import check_divisible, check_heads, pad_to_multiple, resize_to, tiled, windows
from connectors.mlp2x_gelu import two_layer_mlp


@register("token_packer")
class TokenPacker(Connector):
    """The last tower, resized, asks: each of its points attends to its region of all towers.

    Args:
        factor: side of a region.
        width: of the attention.
        heads: of the attention.
        pad: zeros at the bottom and the right of grids whose sides are no multiples; without, these are refused, as
            published.
    """

    reads_towers = True
    test_fields: ClassVar[Mapping[str, Any]] = {"width": 16, "heads": 2}

    def __init__(
        self,
        in_dim: tuple[int, ...],
        out_dim: int,
        *,
        factor: Size = 2,
        width: Size = 1024,
        heads: Size = 8,
        pad: bool = False,
    ) -> None:
        super().__init__(in_dim, out_dim)
        check_heads('Connector "token_packer"', width, heads)
        self.factor, self.pad = factor, pad
        self.query = nn.Sequential(nn.Linear(in_dim[-1], width, bias=False), nn.LayerNorm(width, eps=1e-6))
        self.key = nn.Sequential(two_layer_mlp(sum(in_dim), width), nn.LayerNorm(width, eps=1e-6))
        self.value = nn.Sequential(two_layer_mlp(sum(in_dim), width), nn.LayerNorm(width, eps=1e-6))
        self.attention = CrossAttention(width, width, width=width, heads=heads)
        self.mlp = two_layer_mlp(width, out_dim)

    def check_grid(self, height: int, width: int) -> None:
        if not self.pad:
            check_divisible('Connector "token_packer"', height, width, self.factor)

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(tiled(height, width, self.factor))

    def forward(self, features: Features) -> Tensor:  # type: ignore[override]  # reads_towers
        last = pad_to_multiple(features.maps[-1].values, self.factor)
        height, width = (side // self.factor for side in last.shape[1:3])
        points = self.query(resize_to(last, height, width)).flatten(1, 2).unsqueeze(2)  # (n, tokens, 1, width)
        regions = windows(pad_to_multiple(features.fused, self.factor), self.factor).flatten(1, 2)
        packed = self.attention(points, self.key(regions), self.value(regions))
        return self.mlp(packed.squeeze(2))
