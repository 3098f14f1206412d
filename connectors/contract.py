"""The contract of a connector, and the registry of connectors.

Shapes: n images, h x w patches, c channels of all towers, t tokens of text, d width of the language model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.core.fields import is_int
from ablate.core.registry import Registry


@dataclass(frozen=True)
class Text:
    """The question about each image.

    Attributes:
        embeddings: (n, t, d), from the language model.
        mask: (n, t) bool, True for text; a row may have no text.
    """

    embeddings: Tensor
    mask: Tensor


@dataclass(frozen=True)
class FeatureMap:
    """The features of one tower, from one of its layers.

    Attributes:
        values: (n, h, w, c of the tower).
        tower: index of the tower in the encoder.
        mask: (n, h, w) bool, True for patches that show a part of the image; None for all.
    """

    values: Tensor
    tower: int
    mask: Tensor | None = None


@dataclass(frozen=True)
class Features:
    """The features of all towers.

    Attributes:
        fused: (n, h, w, c), the channels of all towers concatenated.
        maps: the same features by tower.
    """

    fused: Tensor
    maps: tuple[FeatureMap, ...]

    @classmethod
    def split(cls, fused: Tensor, channels: Sequence[int]) -> Features:
        """Split fused features by the number of channels of each tower."""
        parts = fused.split(list(channels), dim=-1)
        return cls(fused, tuple(FeatureMap(part, tower) for tower, part in enumerate(parts)))


@dataclass(frozen=True)
class Tokens:
    """The output of a connector with its own losses.

    Attributes:
        tokens: (n, tokens, d).
        losses: name -> (n,), the loss of each image, already weighted.
    """

    tokens: Tensor
    losses: Mapping[str, Tensor] = field(default_factory=dict)


class Connector(nn.Module):
    """Converts the patch features of an image to visual tokens of a language model. Base class of all connectors.

    A subclass takes `in_dim` and `out_dim`, then keyword-only fields. `describe` shows their annotations and defaults,
    and `create` checks them. It draws its initial weights from PyTorch's global generator and never seeds it, so that
    they are determined by the seed of the run. The simplest connector has `forward(features)` and declares nothing.
    Further inputs and outputs of `forward` are declared by attributes of the class or of the instance:

    Attributes:
        reads_text: `forward(..., text=Text)`, the question of each image. The tokens depend on image and question.
        reads_towers: `forward(features: Features)`, a map for each tower, instead of their fusion; `in_dim` is then a
            tuple, the channels of each tower.
        sizes: the sizes that can be requested, for more or fewer tokens (or for less work); the largest is the default:
            `forward(..., size=int)` and `num_tokens(height, width, size)`. The setting `connector.size` selects one.
        losses: names of the losses that `forward` returns in `Tokens`. A run's loss is the mean over answer tokens of
            their cross entropy plus the losses of their image, so it does not depend on the division into batches.
        starts_at_zero: the tokens of a new connector are zeros.
        reads_every_patch: every patch affects the tokens; False for connectors that select or drop patches.
        test_fields: fields that make the connector small, for the tests of the contract.

    Args:
        in_dim: channels of the features.
        out_dim: width of the language model.
    """

    reads_text: ClassVar[bool] = False
    reads_towers: ClassVar[bool] = False
    sizes: Sequence[int] = ()
    losses: Sequence[str] = ()
    starts_at_zero: bool = False
    reads_every_patch: bool = True
    test_fields: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, in_dim: int | tuple[int, ...], out_dim: int) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim

    def check_grid(self, height: int, width: int) -> None:
        """Raise UserError for a grid that the connector does not accept. By default all are accepted."""

    def num_tokens(self, height: int, width: int) -> int:
        """Visual tokens for a grid of height x width patches. One per patch unless a connector says otherwise."""
        return height * width

    def forward(self, features: Tensor) -> Tensor:
        """features (n, h, w, in_dim) -> tokens (n, num_tokens(h, w), out_dim)."""
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


def create(name: str, in_dim: int | Sequence[int], out_dim: int, **fields: Any) -> Connector:
    """Build the connector called exactly `name`.

    Args:
        name: the registered name.
        in_dim: channels of the vision features, or of each tower.
        out_dim: width of the language model.
        fields: the connector's own fields, see `describe(name)`; the others keep their defaults.

    Raises:
        UserError: as `check`, or for an invalid width.
    """
    channels = tuple(in_dim) if isinstance(in_dim, tuple | list) else (in_dim,)
    for key, widths in (("in_dim", channels or (0,)), ("out_dim", (out_dim,))):
        for width in widths:
            if not is_int(width) or width < 1:
                raise UserError(f'Connector "{name}": {key} is {width!r}, expected an integer of at least 1.')
    return registry.create(name, channels if registry.get(name).reads_towers else sum(channels), out_dim, **fields)


def in_channels(connector: Connector) -> int:
    """Number of feature channels that a connector was built for, over all towers."""
    return sum(connector.in_dim) if isinstance(connector.in_dim, tuple) else connector.in_dim


def check_size(connector: Connector, size: int | None) -> int | None:
    """Validate a requested size. Without a request, returns the largest size, or None if the connector has no sizes.

    Raises:
        UserError: the connector does not offer this size.
    """
    sizes = connector.sizes
    if not isinstance(sizes, Sequence) or not all(is_int(each) and each > 0 for each in sizes):
        raise UserError(f"{title(connector)}: its sizes are {sizes!r}, expected a tuple of integers of at least 1.")
    if size is None:
        return max(connector.sizes, default=None)
    if size not in connector.sizes:
        offered = ", ".join(map(str, connector.sizes))
        what_to_do = f"choose one of {offered}" if offered else "it has no sizes, so leave connector.size empty"
        raise UserError(f"{title(connector)} has no size {size}: {what_to_do}.")
    return size


def tokens_per_image(connector: Connector, height: int, width: int, size: int | None = None) -> int:
    """The connector's `num_tokens` for a grid and a size.

    Raises:
        UserError: the result is not a positive integer, or the connector does not support the grid or the size; the
            message names the connector.
    """
    if height * width:
        connector.check_grid(height, width)
    size = check_size(connector, size)
    given = (height, width) if size is None else (height, width, size)
    try:
        number = connector.num_tokens(*given)
    except TypeError:
        _check_call(connector, "num_tokens", *given)
        raise
    if not is_int(number) or number < (1 if height * width else 0):
        raise UserError(
            f"{title(connector)}: num_tokens({height}, {width}) is {number!r}, expected an integer of at least 1."
        )
    return number


def apply(
    connector: Connector,
    features: Tensor,
    d_model: int,
    *,
    text: Text | None = None,
    size: int | None = None,
) -> Tokens:
    """Run a connector with the inputs that it declares, and check its output. Does not read any tensor values.

    Args:
        connector: the connector.
        features: (n, h, w, c), the channels of all towers concatenated.
        d_model: width of the language model.
        text: for connectors that read text.
        size: one of its sizes; None for the largest.

    Raises:
        UserError: the output is not a floating-point tensor (n, num_tokens(h, w, size), d_model) on the device of the
            features, or the losses are not those declared or not of shape (n,); the message names the connector.
    """
    given: dict[str, Any] = {}
    if connector.reads_text:
        given["text"] = text
    if (size := check_size(connector, size)) is not None:
        given["size"] = size
    height, width = features.shape[1:3]
    expected = (len(features), tokens_per_image(connector, height, width, size), d_model)
    read = Features.split(features, connector.in_dim) if isinstance(connector.in_dim, tuple) else features
    try:
        returned = connector(read, **given)
    except (TypeError, NotImplementedError):
        _check_call(connector, "forward", read, **given)
        raise
    made = returned if isinstance(returned, Tokens) else Tokens(returned)
    _check_tokens(connector, features, made.tokens, expected)
    _check_losses(connector, len(features), made.losses)
    return made


def _check_call(connector: Connector, method: str, *given: Any, **named: Any) -> None:
    """Raise UserError if a method failed because it does not accept the inputs that the connector declares."""
    if getattr(type(connector), method, None) is Connector.forward:
        raise UserError(f"{title(connector)} has no forward: implement it as features -> tokens.")
    try:
        inspect.signature(getattr(connector, method)).bind(*given, **named)
    except TypeError as error:
        raise UserError(
            f"{title(connector)}: the signature of its {method} does not match its declarations ({error}). With "
            "reads_text, forward takes `text`; with sizes, forward takes `size`, and num_tokens (height, width, size)."
        ) from None


def _check_tokens(connector: Connector, features: Tensor, tokens: Any, expected: tuple[int, ...]) -> None:
    if not isinstance(tokens, Tensor):
        got = "None" if tokens is None else f"a {type(tokens).__name__}"
    elif (
        tokens.shape != expected
        or not tokens.is_floating_point()
        or tokens.device != features.device
        or tokens.layout != features.layout
    ):
        sparse = "" if tokens.layout == features.layout else "sparse "
        got = f"a {sparse}{tokens.dtype} tensor of shape {tuple(tokens.shape)} on {tokens.device}"
    else:
        return
    height, width = features.shape[1:3]
    raise UserError(
        f"{title(connector)}: forward returned {got} for features of shape {tuple(features.shape)}, expected a "
        f"floating-point tensor (images, num_tokens({height}, {width}), d_model) = {expected} on {features.device}. "
        "Fix its forward or its num_tokens."
    )


def _check_losses(connector: Connector, images: int, losses: Mapping[str, Any]) -> None:
    if not isinstance(losses, Mapping):
        raise UserError(
            f"{title(connector)}: the losses returned by forward are a {type(losses).__name__}, expected a "
            "mapping from names to tensors."
        )
    if set(losses) != set(connector.losses):
        raise UserError(
            f"{title(connector)}: forward returned the losses {', '.join(losses) or 'none'}, but the connector "
            f"declares {', '.join(connector.losses) or 'none'}. Declare them in its `losses`."
        )
    for name, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.shape != (images,) or not loss.is_floating_point():
            is_tensor = isinstance(loss, Tensor)
            got = f"has shape {tuple(loss.shape)} ({loss.dtype})" if is_tensor else f"is a {type(loss).__name__}"
            raise UserError(
                f'{title(connector)}: the loss "{name}" {got}, expected one floating-point number for each image, '
                f"({images},)."
            )


def title(connector: Connector) -> str:
    """A connector's name for messages: its registered name, or its class name if it is not registered."""
    registered = (name for name in names() if registry.get(name) is type(connector))
    return f'Connector "{next(registered, type(connector).__name__)}"'
