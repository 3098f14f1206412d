"""The MLP connector of Cobra (arXiv 2403.14520) and ML-Mamba (arXiv 2407.19832, Fig. 2a)."""

from torch import Tensor, nn

from connectors.contract import Connector, register


def three_layer_mlp(in_dim: int, out_dim: int) -> nn.Sequential:
    """in -> 4 in -> out -> out with GELU between; at the paper's size 2176 -> 8704 -> 2560 -> 2560.

    Xavier-normal weights and zero biases, as in the released code.
    """
    hidden = 4 * in_dim
    mlp = nn.Sequential(
        nn.Linear(in_dim, hidden),
        nn.GELU(),
        nn.Linear(hidden, out_dim),
        nn.GELU(),
        nn.Linear(out_dim, out_dim),
    )
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return mlp


@register("mlp")
class MLP(Connector):
    """Three linear layers with GELU between, on every patch."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.mlp = three_layer_mlp(in_dim, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(features.flatten(1, 2))
