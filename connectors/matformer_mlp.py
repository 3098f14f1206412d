"""A two-layer MLP of nested hidden widths, after MatFormer (Devvrit et al. 2023, arXiv 2310.07707)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.core.fields import Size
from connectors.contract import Connector, register


@register("matformer_mlp")
class MatFormerMLP(Connector):
    """in_dim -> hidden -> out_dim with GELU between, of which the first half, quarter and eighth work alone.

    The size is the hidden width; one of the four is drawn at every step. The number of tokens is always the grid's.

    Args:
        hidden: the largest hidden width, a multiple of 8; None for 4 out_dim, rounded up to one.
    """

    trained_sizes = "sampled"

    def __init__(self, in_dim: int, out_dim: int, *, hidden: Size | None = None) -> None:
        super().__init__(in_dim, out_dim)
        hidden = -(-4 * out_dim // 8) * 8 if hidden is None else hidden
        if hidden % 8:
            raise UserError(f"hidden is {hidden}, expected a multiple of 8.")
        self.sizes = (hidden // 8, hidden // 4, hidden // 2, hidden)
        self.first, self.second = nn.Linear(in_dim, hidden), nn.Linear(hidden, out_dim)

    def num_tokens(self, height: int, width: int, size: int | None = None) -> int:
        return height * width

    def forward(self, features: Tensor, *, size: int | None = None) -> Tensor:
        hidden = F.gelu(F.linear(features.flatten(1, 2), self.first.weight[:size], self.first.bias[:size]))
        return F.linear(hidden, self.second.weight[:, :size], self.second.bias)
