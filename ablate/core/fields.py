"""Typed fields: what a registered member can be configured with, read from its constructor's signature.

The keyword-only parameters of the constructor are the fields. Their annotations are the types, their defaults the
defaults, and the "Args:" section of the docstring explains them. Values are checked strictly: a "no" is not False and
5 is not "5". int -> float, list -> tuple and mapping -> dataclass are the only conversions.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ablate.errors import UserError, nearest

REQUIRED = inspect.Parameter.empty

_SCALARS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Field:
    """One field. `default` is `REQUIRED` if it has none; `type` and `doc` are written for people."""

    name: str
    type: str
    default: Any
    doc: str = ""


@dataclass(frozen=True)
class Signature:
    """The fields of one constructor or function: name -> (type hint, default)."""

    hints: Mapping[str, tuple[Any, Any]]

    @classmethod
    def of(cls, member: Callable, given: Sequence[str]) -> Signature:
        """Read the signature of `member`, a class or a function.

        Args:
            given: the names of its leading parameters, which are passed by position and are no fields.

        Raises:
            TypeError: other leading parameters, a field that is not keyword-only, or a type that cannot be checked.
        """
        function = member.__init__ if isinstance(member, type) else member
        parameters = list(inspect.signature(function).parameters.values())[isinstance(member, type) :]
        self = ["self"] if isinstance(member, type) else []
        if [p.name for p in parameters[: len(given)]] != list(given):
            raise TypeError(f"{place(member)} must begin with ({', '.join([*self, *given])})")
        hints = typing.get_type_hints(function)
        found = {}
        for parameter in parameters[len(given) :]:
            if parameter.kind is not parameter.KEYWORD_ONLY:
                raise TypeError(f"{place(member)}: write its fields after a *, one by one; got {parameter}")
            hint = hints.get(parameter.name)
            if hint is None and parameter.name not in hints:
                raise TypeError(f'{place(member)}: field "{parameter.name}" has no type annotation')
            if (unchecked := _uncheckable(hint)) is not None:
                raise TypeError(
                    f'{place(member)}: field "{parameter.name}" has the type {unchecked}, which cannot be checked. '
                    "Use bool, int, float, str, Literal, dataclasses, and Sequence, Mapping, unions or tuples of them."
                )
            found[parameter.name] = (hint, parameter.default)
        return cls(found)

    def check(self, what: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values as the declared types.

        Args:
            what: whose fields they are, for messages: `Connector "mlp"`.

        Raises:
            UserError: an unknown field (with the nearest ones), a missing one, or a value of another type.
        """
        for name in values:
            if name not in self.hints:
                raise self._unknown(what, name)
        if missing := [name for name, (_, default) in self.hints.items() if default is REQUIRED and name not in values]:
            raise UserError(f"{what} needs a value for: {', '.join(missing)}.")
        return {name: check(f'{what}, field "{name}"', value, self.hints[name][0]) for name, value in values.items()}

    def described(self, doc: str) -> tuple[Field, ...]:
        """The fields for people; `doc` is the docstring that explains them."""
        explained = _documented_arguments(doc)
        return tuple(
            Field(name, type_text(hint), default, explained.get(name, ""))
            for name, (hint, default) in self.hints.items()
        )

    def _unknown(self, what: str, got: str) -> UserError:
        if not self.hints:
            return UserError(f'{what} has no fields, got "{got}".')
        near = nearest(got, self.hints)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        return UserError(f'{what} has no field "{got}".{hint} Its fields: {", ".join(self.hints)}.')


class _Mismatch(Exception):
    pass


def check(what: str, value: Any, hint: Any) -> Any:
    """The value as the hinted type. Raises UserError that names `what`, the value and the type."""
    try:
        return _convert(value, hint)
    except _Mismatch:
        raise UserError(f"{what}: got {value!r} ({type(value).__name__}), expected {type_text(hint)}.") from None


def is_int(value: Any) -> bool:
    """An int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def type_text(hint: Any) -> str:
    """A type as a person would write it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, args))
    if _is_union(origin):
        return " or ".join(map(type_text, args))
    if origin is tuple and args[-1] is not Ellipsis:
        return f"({', '.join(map(type_text, args))})"
    if _is_a(origin, Sequence):
        return f"list of {type_text(args[0])}"
    if _is_a(origin, Mapping):
        return f"mapping to {type_text(args[1])}"
    if hint is type(None):
        return "null"
    if dataclasses.is_dataclass(hint):
        return f"{{{', '.join(field.name for field in dataclasses.fields(hint))}}}"
    return hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")


def place(member: Any) -> str:
    """Where a class or function is defined: module.name."""
    return f"{member.__module__}.{member.__qualname__}"


def _convert(value: Any, hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in args):
            raise _Mismatch
        return value
    if _is_union(origin):
        return _first_that_fits(value, args)
    if _is_a(origin, Sequence):
        return _convert_sequence(value, origin, args)
    if _is_a(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _Mismatch
        return {_convert(key, args[0]): _convert(item, args[1]) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _convert_dataclass(value, hint)
    if hint is float and (is_int(value) or isinstance(value, float)):
        if not math.isfinite(value):
            raise _Mismatch
        return float(value)
    if hint is int and not is_int(value):
        raise _Mismatch
    if not isinstance(value, hint):
        raise _Mismatch
    return value


def _first_that_fits(value: Any, options: Sequence[Any]) -> Any:
    # An exact type first: 1 is an int for `float | int`, whatever the order.
    for option in sorted(options, key=lambda option: option is not type(value)):
        try:
            return _convert(value, option)
        except _Mismatch:
            continue
    raise _Mismatch


def _convert_sequence(value: Any, origin: type, args: Sequence[Any]) -> tuple:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise _Mismatch
    if origin is tuple and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise _Mismatch
        return tuple(_convert(item, arg) for item, arg in zip(value, args, strict=True))
    return tuple(_convert(item, args[0]) for item in value)


def _convert_dataclass(value: Any, hint: type) -> Any:
    if isinstance(value, hint):
        return value
    if not isinstance(value, Mapping):
        raise _Mismatch
    known = typing.get_type_hints(hint)
    if not value.keys() <= {field.name for field in dataclasses.fields(hint)}:
        raise _Mismatch
    return hint(**{name: _convert(item, known[name]) for name, item in value.items()})


def _uncheckable(hint: Any) -> Any | None:
    """The part of the type that no value can be checked against, or None."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SCALARS or hint is None or origin is Literal:
        return None
    if dataclasses.is_dataclass(hint):
        parts = typing.get_type_hints(hint).values()
    elif _is_union(origin) or _is_a(origin, Sequence) or _is_a(origin, Mapping):
        parts = [argument for argument in args if argument is not Ellipsis]
    else:
        return hint
    return next((found for part in parts if (found := _uncheckable(part)) is not None), None)


def _is_union(origin: Any) -> bool:
    return origin in (typing.Union, types.UnionType)


def _is_a(origin: Any, kind: type) -> bool:
    return isinstance(origin, type) and issubclass(origin, kind)


def _documented_arguments(doc: str) -> dict[str, str]:
    """The `name: what it is` lines of a docstring's "Args:" sections, continued lines joined."""
    explained: dict[str, str] = {}
    for section in re.findall(r"^Args:\n((?:[ ]{4}.*\n?)+)", doc, re.MULTILINE):
        for name, text in re.findall(r"^[ ]{4}(\w+): (.*(?:\n[ ]{8}.*)*)", section, re.MULTILINE):
            explained.setdefault(name, " ".join(text.split()))
    return explained
