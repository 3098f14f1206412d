"""Typed fields: what a registered member can be configured with, read from its constructor's signature.

The keyword-only parameters of the constructor are the fields. Their annotations are the types, their defaults the
defaults, and the "Args:" section of the docstring explains them. Values are checked strictly: a "no" is not False and
5 is not "5". int -> float, list -> tuple and mapping -> dataclass are the only conversions; and a scalar of YAML or of
the command line, which is a text of no type yet (`scalars.Scalar`), is read as the type. Configs use the same checks.
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
from typing import Annotated, Any, Literal

from ablate.core.errors import UserError, nearest
from ablate.core.scalars import Argument, Scalar, natural

REQUIRED = inspect.Parameter.empty

_SCALARS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Range:
    """The numbers that a setting takes, as part of its type: `Annotated[float, Range(above=0)]`.

    Attributes:
        least, most: the smallest and the largest number.
        above, below: bounds that are themselves left out.
        finite: whether infinities and NaN are refused, as they are for numbers without a range.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    finite: bool = True

    def __contains__(self, number: float) -> bool:
        return (
            (not self.finite or _is_finite(number))
            and (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def expected(self, number: float) -> str:
        """What was expected instead of `number`."""
        bounds = {"{} or more": self.least, "above {}": self.above, "below {}": self.below, "at most {}": self.most}
        if self.least is not None and self.most is not None:
            # The end of 64 bits is of interest only beyond it.
            bounds = (
                {"{} or more": self.least} if number <= self.most == INT64 else {f"{self.least} to {{}}": self.most}
            )
        given = " and ".join(text.format(bound) for text, bound in bounds.items() if bound is not None)
        return given if given and _is_finite(number) else ", ".join(["a finite number", *filter(None, [given])])


INT64 = 2**63 - 1
FINITE = Range()
AnyFloat = Annotated[float, FINITE]
AnyInt = Annotated[int, Range(-INT64, INT64)]
Count = Annotated[int, Range(1, INT64)]
CountOrZero = Annotated[int, Range(0, INT64)]
# Of widths and the like, of which tensors are made: no memory holds more.
LARGEST_SIZE = 1 << 24
Size = Annotated[int, Range(1, LARGEST_SIZE)]
# Numbers that float32 has to hold, and to divide by.
Positive32 = Annotated[float, Range(1e-30, 1e30)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


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
        function = member.__init__ if isinstance(member, type) else member  # type: ignore[misc]
        parameters = list(inspect.signature(function).parameters.values())[isinstance(member, type) :]
        self = ["self"] if isinstance(member, type) else []
        if [p.name for p in parameters[: len(given)]] != list(given):
            raise TypeError(f"{place(member)} must begin with ({', '.join([*self, *given])})")
        hints = typing.get_type_hints(function, include_extras=True)
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


class Mismatch(Exception):
    """A value that is not of the type."""


class OutOfRange(Mismatch):
    """A number of the type that is not in its range; the message is the range."""


def check(what: str, value: Any, hint: Any) -> Any:
    """The value as the hinted type. Raises UserError that names `what`, the value and the type."""
    try:
        return convert(value, hint)
    except Mismatch as error:
        shown = natural(value)
        raise UserError(
            f"{what}: got {shown!r} ({type(shown).__name__}), expected {type_text(hint)}{_range_text(error)}."
        ) from None


def check_ranges(config: Any, group: str = "") -> None:
    """Check the numbers of a dataclass instance against the ranges that their types declare.

    Loading a config does this too; a config's `__post_init__` does it for what Python code makes. Groups within the
    config are left to their own.

    Raises:
        UserError: naming the setting, its value and its range.
    """
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        try:
            convert(value, hint)
        except OutOfRange as error:
            raise UserError(f"{group}{'.' if group else ''}{name} is {value}: expected {error}.") from None
        except Mismatch:
            continue  # of another type: not a question of ranges


def _range_text(error: Mismatch) -> str:
    return f": {error}" if isinstance(error, OutOfRange) else ""


def is_int(value: Any) -> bool:
    """An int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def type_text(hint: Any) -> str:
    """A type as a person would write it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return type_text(args[0])
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


def convert(value: Any, hint: Any) -> Any:
    """The value as the hinted type; what is typed Any stays as it is.

    Raises:
        Mismatch: it is of another type, or out of the range that the type declares.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _in_range(value, hint)
    if hint is Any:
        return value
    if hint in (int, float):
        return _in_range(value, Annotated[hint, FINITE])
    if _is_union(origin):
        return _first_that_fits(value, args)
    if isinstance(value, Argument) and (_is_a(origin, (Sequence, Mapping)) or dataclasses.is_dataclass(hint)):
        value = value.parsed()
    if isinstance(value, Scalar):
        return _read(value.unquoted() if isinstance(value, Argument) and hint is not str else value, hint)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in args):
            raise Mismatch
        return value
    if _is_a(origin, Sequence):
        return _convert_sequence(value, origin, args)
    if _is_a(origin, Mapping):
        if not isinstance(value, Mapping):
            raise Mismatch
        return {convert(key, args[0]): convert(item, args[1]) for key, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _convert_dataclass(value, hint)
    if not isinstance(value, hint):
        raise Mismatch
    return value


def _read(scalar: Scalar, hint: Any) -> Any:
    """A scalar of no type yet as the type."""
    if typing.get_origin(hint) is Literal:
        for choice in typing.get_args(hint):
            if str(scalar) == choice or _reads_as(scalar, choice):
                return choice
        raise Mismatch
    if hint in (None, type(None)) and scalar.is_null():
        return None
    read = {str: scalar.as_text, bool: scalar.as_bool}.get(hint)
    value = read() if read else None
    if value is None:
        raise Mismatch
    return value


def _reads_as(scalar: Scalar, choice: Any) -> bool:
    try:
        return convert(scalar, type(choice)) == choice
    except Mismatch:
        return False


def _in_range(value: Any, hint: Any) -> Any:
    kind, *marks = typing.get_args(hint)
    allowed = next((mark for mark in marks if isinstance(mark, Range)), FINITE)
    converted = _as_number(value, kind) if kind in (int, float) else convert(value, kind)
    if converted not in allowed:
        raise OutOfRange(allowed.expected(converted))
    return converted


def _as_number(value: Any, kind: type) -> int | float:
    """As a number of that kind, finite or not."""
    if isinstance(value, Argument):
        value = value.unquoted()
    if isinstance(value, Scalar):
        value = value.as_int() if kind is int else value.as_float()
    if not (is_int(value) or (kind is float and isinstance(value, float))):
        raise Mismatch
    try:
        return kind(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _is_finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)


def _first_that_fits(value: Any, options: Sequence[Any]) -> Any:
    if isinstance(value, Scalar):
        # Quotes mean a text. Without them null comes first and the text last, as every scalar is one.
        whole = value.unquoted() if isinstance(value, Argument) else value
        ranks = {type(None): 0, str: -1 if whole.quoted else 2}
        ordered = sorted(options, key=lambda option: ranks.get(option, 1))
    else:
        # An exact type first: 1 is an int for `float | int`, in any order.
        ordered = sorted(options, key=lambda option: option is not type(value))
    failure = Mismatch()
    for option in ordered:
        try:
            return convert(value, option)
        except OutOfRange as error:
            failure = error
        except Mismatch:
            continue
    raise failure


def _convert_sequence(value: Any, origin: type, args: Sequence[Any]) -> Sequence:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise Mismatch
    if origin is tuple and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise Mismatch
        return tuple(convert(item, arg) for item, arg in zip(value, args, strict=True))
    return (list if origin is list else tuple)(convert(item, args[0]) for item in value)


def _convert_dataclass(value: Any, hint: type) -> Any:
    if isinstance(value, hint):
        return value
    if not isinstance(value, Mapping):
        raise Mismatch
    known = typing.get_type_hints(hint, include_extras=True)
    if not value.keys() <= {field.name for field in dataclasses.fields(hint)}:
        raise Mismatch
    fields = {}
    for name, item in value.items():
        try:
            fields[name] = convert(item, known[name])
        except OutOfRange as error:
            raise OutOfRange(f"{name} {error}") from None
    return hint(**fields)


def _uncheckable(hint: Any) -> Any | None:
    """The part of the type that no value can be checked against, or None."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _uncheckable(args[0])
    if hint in _SCALARS or hint is None or origin is Literal:
        return None
    if dataclasses.is_dataclass(hint):
        parts = list(typing.get_type_hints(hint, include_extras=True).values())
    elif _is_union(origin) or _is_a(origin, Sequence) or _is_a(origin, Mapping):
        parts = [argument for argument in args if argument is not Ellipsis]
    else:
        return hint
    return next((found for part in parts if (found := _uncheckable(part)) is not None), None)


def _is_union(origin: Any) -> bool:
    return origin in (typing.Union, types.UnionType)


def _is_a(origin: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(origin, type) and issubclass(origin, kind)


def _documented_arguments(doc: str) -> dict[str, str]:
    """The `name: what it is` lines of a docstring's "Args:" sections, continued lines joined."""
    explained: dict[str, str] = {}
    for section in re.findall(r"^Args:\n((?:[ ]{4}.*\n?)+)", doc, re.MULTILINE):
        for name, text in re.findall(r"^[ ]{4}(\w+): (.*(?:\n[ ]{8}.*)*)", section, re.MULTILINE):
            explained.setdefault(name, " ".join(text.split()))
    return explained
