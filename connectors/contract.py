"""The contract of a connector, and the registry of connectors.

Shapes: n images, h x w patches, c channels of all towers, t tokens of text, d width of the language model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ablate.core.errors import UserError
from ablate.core.fields import is_int
from ablate.core.registry import Registry


@dataclass(frozen=True)
class Text:
    """The question that is asked about each image.

    embeddings: (n, t, d) of the language model. mask: (n, t) bool, which of them are text; a row may have none.
    """

    embeddings: Tensor
    mask: Tensor


@dataclass(frozen=True)
class FeatureMap:
    """One tower's features, of one of its layers.

    values: (n, h, w, c of the tower). tower: its place among the encoder's. mask: (n, h, w) bool, which patches show a
    part of the image; None for all.
    """

    values: Tensor
    tower: int
    mask: Tensor | None = None


@dataclass(frozen=True)
class Features:
    """The features of all towers.

    fused: (n, h, w, c), the towers' channels one after another. maps: the same by tower.
    """

    fused: Tensor
    maps: tuple[FeatureMap, ...]

    @classmethod
    def split(cls, fused: Tensor, channels: Sequence[int]) -> Features:
        """By the number of channels of each tower."""
        parts = fused.split(list(channels), dim=-1)
        return cls(fused, tuple(FeatureMap(part, tower) for tower, part in enumerate(parts)))


@dataclass(frozen=True)
class Tokens:
    """What a connector with losses of its own returns.

    tokens: (n, tokens, d). losses: name -> (n,), the loss of each image, weighted as it is to be added.
    """

    tokens: Tensor
    losses: Mapping[str, Tensor] = field(default_factory=dict)


class Connector(nn.Module):
    """Turns the patch features of an image into visual tokens of a language model. Base class of all connectors.

    A subclass takes `in_dim` and `out_dim` and then keyword-only fields; their annotations and defaults are what
    `describe` shows and `create` checks. It draws its initial weights from PyTorch's global generator and never seeds
    it, so that the seed of a run decides them. The simplest has `forward(features)` and declares nothing. What is more
    is declared, by attributes of the class or of the instance, and `forward` then gets or returns it:

    Attributes:
        reads_text: `forward(..., text=Text)`, the question of each image. The tokens depend on image and question.
        reads_towers: `forward(features: Features)`, a map for each tower, instead of their fusion; and `in_dim` is a
            tuple, the channels of each tower.
        sizes: numbers by which it can be asked for more or fewer tokens (or for less work), the largest the default:
            `forward(..., size=int)` and `num_tokens(height, width, size)`. The setting `connector.size` chooses one.
        trained_sizes: what a step trains where `connector.size` chooses none: the "largest"; one of them, each equally
            often ("sampled"); or "all", their losses' mean.
        losses: names of the losses that `forward` returns in `Tokens`. A run's loss is the mean over answer tokens of
            their cross entropy and of the losses of the image that they are about, so it does not depend on batches.
        starts_at_zero: the tokens of a new connector are zeros.
        reads_every_patch: every patch changes the tokens; False for those that choose or drop some.
        test_fields: fields with which it is small, for the contract's tests.

    Args:
        in_dim: channels of the features.
        out_dim: width of the language model.
    """

    reads_text: ClassVar[bool] = False
    reads_towers: ClassVar[bool] = False
    sizes: Sequence[int] = ()
    trained_sizes: Literal["largest", "sampled", "all"] = "largest"
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
        in_dim: channels of the vision features, or of each tower.
        out_dim: width of the language model.
        fields: the connector's own, see `describe(name)`; those not given keep their defaults.

    Raises:
        UserError: as `check`, or an invalid width.
    """
    channels = tuple(in_dim) if isinstance(in_dim, tuple | list) else (in_dim,)
    for key, widths in (("in_dim", channels or (0,)), ("out_dim", (out_dim,))):
        for width in widths:
            if not is_int(width) or width < 1:
                raise UserError(f'Connector "{name}": {key} is {width!r}, expected a whole number of at least 1.')
    return registry.create(name, channels if registry.get(name).reads_towers else sum(channels), out_dim, **fields)


def in_channels(connector: Connector) -> int:
    """Channels of the features that a connector was built for, of all towers."""
    return sum(connector.in_dim) if isinstance(connector.in_dim, tuple) else connector.in_dim


def check_size(connector: Connector, size: int | None) -> int | None:
    """The size that a connector is asked for: its largest where none is given, None where it offers none.

    Raises:
        UserError: a size that it does not offer.
    """
    sizes = connector.sizes
    if not isinstance(sizes, Sequence) or not all(is_int(each) and each > 0 for each in sizes):
        raise UserError(
            f"{title(connector)}: its sizes are {sizes!r}, expected a tuple of whole numbers of at least 1."
        )
    if size is None:
        return max(connector.sizes, default=None)
    if size not in connector.sizes:
        offered = ", ".join(map(str, connector.sizes))
        what_to_do = f"it offers {offered}" if offered else "it offers none: leave connector.size empty"
        raise UserError(f"{title(connector)} has no size {size}: {what_to_do}.")
    return size


def tokens_per_image(connector: Connector, height: int, width: int, size: int | None = None) -> int:
    """The connector's `num_tokens` for a grid and a size.

    Raises:
        UserError: with its name, where that is no count, or it does not take the grid or offer the size.
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
            f"{title(connector)}: num_tokens({height}, {width}) is {number!r}, expected a whole number of at least 1."
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
    """Run a connector, give it what it declares to read, and check what it returns. Looks at no value.

    Args:
        features: (n, h, w, c), the towers' channels one after another.
        d_model: width of the language model.
        text: for those that read text.
        size: one of its sizes; None for the largest.

    Raises:
        UserError: with its name, anything but a floating-point tensor (n, num_tokens(h, w, size), d_model) on the
            features' device, or losses other than the declared ones and of another shape than (n,).
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
    """Raise UserError for a method that failed because it does not take what the connector declares to read."""
    if getattr(type(connector), method, None) is Connector.forward:
        raise UserError(f"{title(connector)} has no forward: write it, as features -> tokens.")
    try:
        inspect.signature(getattr(connector, method)).bind(*given, **named)
    except TypeError as error:
        raise UserError(
            f"{title(connector)}: its {method} does not fit what it declares ({error}). With reads_text, forward takes "
            "`text`; with sizes, forward takes `size`, and num_tokens (height, width, size)."
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
        "Correct its forward, or its num_tokens."
    )


def _check_losses(connector: Connector, images: int, losses: Mapping[str, Any]) -> None:
    if not isinstance(losses, Mapping):
        raise UserError(
            f"{title(connector)}: the losses in what forward returned are a {type(losses).__name__}, expected a "
            "mapping from their names to tensors."
        )
    if set(losses) != set(connector.losses):
        raise UserError(
            f"{title(connector)}: forward returned the losses {', '.join(losses) or 'none'}, but the connector "
            f"declares {', '.join(connector.losses) or 'none'}. Name them in its `losses`."
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
    """A connector in messages: by its registered name, or by its class where it has none."""
    registered = (name for name in names() if registry.get(name) is type(connector))
    return f'Connector "{next(registered, type(connector).__name__)}"'
