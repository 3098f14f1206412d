"""LLaVA's `mlpNx_resMx_gelu` (the released code of arXiv 2310.03744)."""

from typing import Annotated

from torch import Tensor, nn

from ablate.core.fields import Count, Range
from connectors.contract import Connector, register


class ResidualBlock(nn.Module):
    """u + MLP(u) of u = LayerNorm(x), as released: the residual carries what is normed. (..., dim) -> (..., dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x + self.mlp(x)


@register("residual_mlp")
class ResidualMLP(Connector):
    """Linear layers with GELU between, then residual blocks, on every patch.

    Args:
        layers: linear layers before the blocks (N).
        blocks: residual blocks (M).
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, layers: Count = 2, blocks: Annotated[int, Range(0, 1000)] = 2
    ) -> None:
        super().__init__(in_dim, out_dim)
        parts: list[nn.Module] = [nn.Linear(in_dim, out_dim)]
        for _ in range(layers - 1):
            parts += [nn.GELU(), nn.Linear(out_dim, out_dim)]
        self.mlp = nn.Sequential(*parts, *(ResidualBlock(out_dim) for _ in range(blocks)))

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(features.flatten(1, 2))
