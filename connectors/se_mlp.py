"""Squeeze-and-excitation before an MLP, as in the released code of Cambrian-1 (Tong et al. 2024, arXiv 2406.16860)."""

from torch import Tensor, nn

from ablate.core.fields import Size
from connectors.contract import Connector, register
from connectors.mlp2x_gelu import two_layer_mlp


@register("se_mlp")
class SEMLP(Connector):
    """Channels are scaled by 1 + a gate that reads the mean of all patches; then `mlp2x_gelu`.

    x (1 + sigmoid(W2 gelu(W1 mean(x)))): with weights of zero the factor is 1.5.

    Args:
        reduction: the hidden width of the gate is in_dim / reduction, at least 1.
    """

    def __init__(self, in_dim: int, out_dim: int, *, reduction: Size = 4) -> None:
        super().__init__(in_dim, out_dim)
        hidden = max(1, in_dim // reduction)
        self.gate = nn.Sequential(
            nn.Linear(in_dim, hidden, bias=False), nn.GELU(), nn.Linear(hidden, in_dim, bias=False), nn.Sigmoid()
        )
        self.mlp = two_layer_mlp(in_dim, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        patches = features.flatten(1, 2)
        return self.mlp(patches * (1 + self.gate(patches.mean(dim=1, keepdim=True))))
