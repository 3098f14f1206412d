"""The simplest connector that leaves out nothing: fewer tokens, and one linear layer."""

from torch import Tensor, nn

from connectors import Connector, register


@register("avg_pool")
class AvgPool(Connector):
    """The mean of every 2 x 2 patches, then one linear layer.

    Args:
        bias: whether the layer has one.
    """

    def __init__(self, in_dim: int, out_dim: int, *, bias: bool = True) -> None:
        super().__init__(in_dim, out_dim)
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        self.projection = nn.Linear(in_dim, out_dim, bias=bias)

    def num_tokens(self, height: int, width: int) -> int:
        return -(-height // 2) * -(-width // 2)

    def forward(self, features: Tensor) -> Tensor:
        pooled = self.pool(features.permute(0, 3, 1, 2))  # (images, in_dim, height / 2, width / 2)
        return self.projection(pooled.flatten(2).transpose(1, 2))
