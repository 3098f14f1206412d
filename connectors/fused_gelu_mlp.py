"""The connector of Prismatic's fused encoders (Karamcheti et al. 2024, arXiv 2402.07865)."""

from torch import Tensor, nn

from connectors.contract import Connector, register


@register("fused_gelu_mlp")
class FusedGELUMLP(Connector):
    """Three linear layers with GELU between; the first is four times as wide as the features.

    As `mlp` in its shapes (in_dim -> 4 in_dim -> out_dim -> out_dim), with PyTorch's initial weights.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, 4 * in_dim),
            nn.GELU(),
            nn.Linear(4 * in_dim, out_dim),
            nn.GELU(),
            nn.Linear(out_dim, out_dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(features.flatten(1, 2))
