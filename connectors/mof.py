"""Interleaved mixture of features (Tong et al. 2024, arXiv 2401.06209, Sec. 4.3)."""

import torch
from torch import Tensor, nn

from connectors.contract import Connector, Features, register
from connectors.mlp2x_gelu import two_layer_mlp


@register("mof")
class MoF(Connector):
    """A two-layer MLP for each tower; their tokens alternate: as many tokens as patches of all towers.

    Published with two towers, CLIP first.
    """

    reads_towers = True

    def __init__(self, in_dim: tuple[int, ...], out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.towers = len(in_dim)
        self.mlps = nn.ModuleList(two_layer_mlp(channels, out_dim) for channels in in_dim)

    def num_tokens(self, height: int, width: int) -> int:
        return self.towers * height * width

    def forward(self, features: Features) -> Tensor:  # type: ignore[override]  # reads_towers
        tokens = [mlp(part.values.flatten(1, 2)) for mlp, part in zip(self.mlps, features.maps, strict=True)]
        return torch.stack(tokens, dim=2).flatten(1, 2)
