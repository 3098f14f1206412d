"""The registry of connectors: exact names, typed fields, and answers for those who mistype them."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import pkgutil
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from ablate.errors import UserError, nearest, unknown_name

ENTRY_POINT_GROUP = "ablate.connectors"
REQUIRED = inspect.Parameter.empty

ConnectorClass = TypeVar("ConnectorClass", bound="type[Connector]")


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


@dataclass(frozen=True)
class Field:
    """One field of a connector. `default` is `REQUIRED` if it has none; `type` and `doc` are written for people."""

    name: str
    type: str
    default: Any
    doc: str = ""


@dataclass(frozen=True)
class Description:
    """What there is to know about a connector before it is built; `doc` includes the docstrings of its bases."""

    name: str
    summary: str
    doc: str
    module: str
    fields: tuple[Field, ...]


def register(name: str) -> Callable[[ConnectorClass], ConnectorClass]:
    """Class decorator: make a `Connector` known under `name`.

    Raises:
        UserError: the name is taken, or could not be written in a comma list or in the name of a folder.
        TypeError: the class is no `Connector`, or its fields could not be checked.
    """

    def add(cls: ConnectorClass) -> ConnectorClass:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UserError(f'Connector name "{name}": expected letters, digits, "_", "-" and "." only.')
        if not (isinstance(cls, type) and issubclass(cls, Connector)):
            raise TypeError(f'@register("{name}") expects a subclass of connectors.Connector, got {cls!r}')
        if name in _registry:
            raise UserError(
                f'Connector "{name}" is registered twice: by {_place(_registry[name])} and by {_place(cls)}. '
                "Give one of them another name."
            )
        _fields(cls)  # a signature that cannot be described is the author's to mend, here and now
        _registry[name] = cls
        return cls

    return add


def names() -> tuple[str, ...]:
    """The names of all connectors, sorted."""
    _discover()
    return tuple(sorted(_registry))


def create(name: str, in_dim: int, out_dim: int, **fields: Any) -> Connector:
    """Build the connector called exactly `name`.

    Args:
        in_dim: channels of the vision features.
        out_dim: width of the language model.
        fields: the connector's own, see `describe(name)`; those not given keep their defaults.

    Raises:
        UserError: as `check`, or a width that is none.
    """
    for key, width in (("in_dim", in_dim), ("out_dim", out_dim)):
        if not _is_int(width) or width < 1:
            raise UserError(f'Connector "{name}": {key} is {width!r}, expected a whole number of at least 1.')
    return _lookup(name)(in_dim, out_dim, **check(name, fields))


def check(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as the connector called exactly `name` takes them; nothing is built.

    Raises:
        UserError: an unknown name or field (answered with the nearest ones and all choices), a value of the wrong type
            or outside its choices, a missing field.
    """
    known = _fields(_lookup(name))
    for key in fields:
        if key not in known:
            raise _unknown_field(name, key, known)
    missing = [key for key, (_, default) in known.items() if default is REQUIRED and key not in fields]
    if missing:
        raise UserError(f'Connector "{name}" needs a value for: {", ".join(missing)}.')
    return {key: _check(f'Connector "{name}", field "{key}"', value, known[key][0]) for key, value in fields.items()}


def describe(name: str) -> Description:
    """The docstring, module and fields of the connector called exactly `name`. Raises UserError if there is none."""
    cls = _lookup(name)
    own_bases = cls.__mro__[: cls.__mro__.index(Connector)]
    doc = "\n\n".join(inspect.cleandoc(base.__doc__) for base in own_bases if base.__doc__)
    told = _documented_arguments(doc)
    fields = tuple(
        Field(key, _type_text(hint), default, told.get(key, "")) for key, (hint, default) in _fields(cls).items()
    )
    return Description(name, doc.partition("\n")[0], doc, cls.__module__, fields)


# --- discovery -------------------------------------------------------------------------------------------------------

_registry: dict[str, type[Connector]] = {}
_broken: dict[str, UserError] = {}  # entry-point name -> why it could not be loaded


@functools.cache
def _discover() -> None:
    """Import every module of this folder, then every entry point of other packages."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        with _all_or_nothing():
            importlib.import_module(f"{__package__}.{module.name}")
    _load_third_parties()


def _load_third_parties() -> None:
    """A package that does not load must not take the other connectors down, nor go unnoticed."""
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            with _all_or_nothing():
                entry_point.load()
        except Exception as error:
            _broken[entry_point.name] = _third_party_error(entry_point, error)
            warnings.warn(str(_broken[entry_point.name]), stacklevel=2)


def _third_party_error(entry_point: EntryPoint, error: Exception) -> UserError:
    distribution = entry_point.dist.name if entry_point.dist else "unknown"
    message = (
        f'The installed package "{distribution}" offers the connector "{entry_point.name}", but its module '
        f"{entry_point.value} does not load: {type(error).__name__}: {error} Update, mend or uninstall the package."
    )
    broken = UserError(message)
    broken.__cause__ = error
    return broken


@contextlib.contextmanager
def _all_or_nothing() -> Iterator[None]:
    """A module that fails half-way leaves no names behind: imported again, it would collide with itself."""
    before = dict(_registry)
    try:
        yield
    except BaseException:
        _registry.clear()
        _registry.update(before)
        raise


def _lookup(name: str) -> type[Connector]:
    _discover()
    if name in _registry:
        return _registry[name]
    if name in _broken:
        raise _broken[name]
    unknown = unknown_name("connector", name, _registry)
    raise UserError(" ".join([str(unknown), *map(str, _broken.values())]))  # it may be one of those that did not load


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# --- fields ----------------------------------------------------------------------------------------------------------


def _fields(cls: type[Connector]) -> dict[str, tuple[Any, Any]]:
    """Field name -> (type hint, default), from the keyword-only parameters of the constructor."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    if [p.name for p in parameters[:2]] != ["in_dim", "out_dim"]:
        raise TypeError(f"{_place(cls)}.__init__ must begin with (self, in_dim, out_dim)")
    for parameter in parameters[2:]:
        if parameter.kind is not parameter.KEYWORD_ONLY:
            raise TypeError(f"{_place(cls)}.__init__: write its fields after a *, one by one; got {parameter}")
    hints = typing.get_type_hints(cls.__init__)
    return {p.name: (hints.get(p.name, Any), p.default) for p in parameters[2:]}


def _documented_arguments(doc: str) -> dict[str, str]:
    """The `name: what it is` lines of a docstring's "Args:" sections, continued lines joined."""
    told: dict[str, str] = {}
    for section in re.findall(r"^Args:\n((?:[ ]{4}.*\n?)+)", doc, re.MULTILINE):
        for name, text in re.findall(r"^[ ]{4}(\w+): (.*(?:\n[ ]{8}.*)*)", section, re.MULTILINE):
            told.setdefault(name, " ".join(text.split()))
    return told


def _unknown_field(connector: str, got: str, known: dict[str, Any]) -> UserError:
    if not known:
        return UserError(f'Connector "{connector}" has no fields, got "{got}".')
    near = nearest(got, known)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return UserError(f'Connector "{connector}" has no field "{got}".{hint} Its fields: {", ".join(known)}.')


class _Mismatch(Exception):
    pass


def _check(what: str, value: Any, hint: Any) -> Any:
    try:
        return _convert(value, hint)
    except _Mismatch:
        raise UserError(f"{what}: got {value!r} ({type(value).__name__}), expected {_type_text(hint)}.") from None


def _convert(value: Any, hint: Any) -> Any:
    """The value as the hinted type: int -> float and list -> tuple are the only changes made. Unusual hints pass."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in args):
            raise _Mismatch
        return value
    if origin in (typing.Union, types.UnionType):
        for option in args:
            with contextlib.suppress(_Mismatch):
                return _convert(value, option)
        raise _Mismatch
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _Mismatch
        return tuple(_convert(item, args[0]) for item in value)
    if hint is float and _is_int(value):
        return float(value)
    if hint is int and not _is_int(value):
        raise _Mismatch
    if isinstance(hint, type) and not isinstance(value, hint):
        raise _Mismatch
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _type_text(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_type_text, args))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of {_type_text(args[0])}"
    if hint is type(None):
        return "null"
    return hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")
