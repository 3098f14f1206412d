"""The smallest connector: one linear layer, as in LLaVA (Liu et al. 2023, arXiv 2304.08485, Eq. 1)."""

from torch import Tensor, nn

from connectors.contract import Connector, register


@register("linear")
class Linear(Connector):
    """One linear layer on every patch."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.projection = nn.Linear(in_dim, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(features.flatten(1, 2))
