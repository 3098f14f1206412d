"""A connector with a loss of its own: patches vote for a few slots, and the loss keeps the slots equally full."""

import torch
from torch import Tensor, nn

from connectors import Connector, Tokens, register


@register("balanced_pool")
class BalancedPool(Connector):
    """Every patch divides itself among the slots; a slot is the mean of its patches.

    Args:
        slots: visual tokens per image.
        balance: weight of the loss, the distance of the slots' shares from equal ones (Shazeer et al. 2017, Eq. 6).
    """

    losses = ("balance",)

    def __init__(self, in_dim: int, out_dim: int, *, slots: int = 4, balance: float = 0.1) -> None:
        super().__init__(in_dim, out_dim)
        self.slots, self.balance = slots, balance
        self.votes = nn.Linear(in_dim, slots)
        self.projection = nn.Linear(in_dim, out_dim)

    def num_tokens(self, height: int, width: int) -> int:
        return self.slots

    def forward(self, features: Tensor) -> Tokens:
        patches = features.flatten(1, 2)  # (images, patches, in_dim)
        shares = self.votes(patches).softmax(dim=-1)  # (images, patches, slots)
        slots = torch.einsum("nps,npc->nsc", shares, patches) / shares.sum(dim=1)[..., None]
        uneven = (shares.mean(dim=1) * self.slots - 1).square().mean(dim=1)  # (images,)
        return Tokens(self.projection(slots), {"balance": self.balance * uneven})
