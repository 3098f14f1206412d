"""The contract of a connector, and the registry of connectors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ablate.core.fields import is_int
from ablate.core.registry import Registry
from ablate.errors import UserError


class Connector(nn.Module):
    """Turns the patch features of an image into visual tokens of a language model. Base class of all connectors.

    A subclass takes `in_dim` and `out_dim` and then keyword-only fields; their annotations and defaults are what
    `describe` shows and `create` checks. It draws its initial weights from PyTorch's global generator and never seeds
    it, so that the seed of a run decides them. It accepts any grid, square or not.

    Args:
        in_dim: channels of the features.
        out_dim: width of the language model.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim

    def num_tokens(self, height: int, width: int) -> int:
        """Visual tokens for a grid of height x width patches. One per patch unless a connector says otherwise."""
        return height * width

    def forward(self, features: Tensor) -> Tensor:
        """features (batch, height, width, in_dim) -> tokens (batch, num_tokens(height, width), out_dim)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")


registry: Registry[type[Connector]] = Registry(
    "connector",
    base=Connector,
    given=("in_dim", "out_dim"),
    package=__package__,
    entry_points="ablate.connectors",
)
register = registry.register
names = registry.names
describe = registry.describe
check = registry.check


def create(name: str, in_dim: int, out_dim: int, **fields: Any) -> Connector:
    """Build the connector called exactly `name`.

    Args:
        in_dim: channels of the vision features.
        out_dim: width of the language model.
        fields: the connector's own, see `describe(name)`; those not given keep their defaults.

    Raises:
        UserError: as `check`, or an invalid width.
    """
    for key, width in (("in_dim", in_dim), ("out_dim", out_dim)):
        if not is_int(width) or width < 1:
            raise UserError(f'Connector "{name}": {key} is {width!r}, expected a whole number of at least 1.')
    return registry.create(name, in_dim, out_dim, **fields)
