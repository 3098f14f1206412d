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
signature = registry.signature


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


def tokens_per_image(connector: nn.Module, height: int, width: int) -> int:
    """The connector's `num_tokens` for a grid. Raises UserError, with its name, unless that is a count."""
    number = connector.num_tokens(height, width)
    if not is_int(number) or number < (1 if height * width else 0):
        raise UserError(
            f"{title(connector)}: num_tokens({height}, {width}) is {number!r}, expected a whole number of at least 1."
        )
    return number


def check_tokens(connector: nn.Module, features: Tensor, tokens: Any, d_model: int) -> Tensor:
    """The connector's output for features (n, h, w, c), if it is what the connector declares. Looks at no value.

    Raises:
        UserError: anything but a floating-point tensor (n, num_tokens(h, w), d_model) on the features' device.
    """
    images, height, width = features.shape[:3]
    expected = (images, tokens_per_image(connector, height, width), d_model)
    if not isinstance(tokens, Tensor):
        got = "None" if tokens is None else f"a {type(tokens).__name__}"
    elif tokens.shape != expected or not tokens.is_floating_point() or tokens.device != features.device:
        got = f"a {tokens.dtype} tensor of shape {tuple(tokens.shape)} on {tokens.device}"
    else:
        return tokens
    raise UserError(
        f"{title(connector)}: forward returned {got} for features of shape {tuple(features.shape)}, expected a "
        f"floating-point tensor (images, num_tokens({height}, {width}), d_model) = {expected} on {features.device}. "
        "Correct its forward, or its num_tokens."
    )


def title(connector: nn.Module) -> str:
    """A connector in messages: by its registered name, or by its class where it has none."""
    registered = (name for name in names() if registry.get(name) is type(connector))
    return f'Connector "{next(registered, type(connector).__name__)}"'
