"""PaliGemma's connector (Beyer et al. 2024, arXiv 2407.07726): the head of its encoder, with zeros as initial weights.

The image tokens are a bidirectional prefix there; a Mamba language model reads them in order.
"""

from torch import Tensor, nn

from connectors.contract import Connector, register


@register("zero_linear")
class ZeroLinear(Connector):
    """One linear layer on every patch that starts at zero: a new model sees nothing."""

    starts_at_zero = True

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.projection = nn.Linear(in_dim, out_dim)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(features.flatten(1, 2))
