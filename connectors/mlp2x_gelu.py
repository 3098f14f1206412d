"""LLaVA-1.5's connector (Liu et al. 2023, arXiv 2310.03744, Sec. 3.2).

Published with features of the encoder's second last layer (`encoder.layer=[-2]`), without the class token.
"""

from torch import Tensor, nn

from connectors.contract import Connector, register


def two_layer_mlp(in_dim: int, out_dim: int) -> nn.Sequential:
    """in -> out -> out with GELU between, PyTorch's initial weights: (..., in_dim) -> (..., out_dim)."""
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))


@register("mlp2x_gelu")
class MLP2xGELU(Connector):
    """Two linear layers with GELU between, on every patch."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.mlp = two_layer_mlp(in_dim, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(features.flatten(1, 2))
