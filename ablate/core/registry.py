"""One registry for everything that a researcher swaps: exact names, typed fields, members of other packages.

    connectors = Registry("connector", base=Connector, given=("in_dim", "out_dim"),
                          package="connectors", entry_points="ablate.connectors")

    @connectors.register("pooled")
    class Pooled(Connector): ...

    connectors.names()                           every member, sorted
    connectors.describe("pooled")                its fields, their types, defaults and meaning
    connectors.create("pooled", 2176, 2560)      checks the fields, then builds it

A member is found if its module is in the registry's package, or if another package names the module in the registry's
entry-point group. There is no second list.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from rich.table import Table
from rich.text import Text

from ablate.core.errors import UserError, unknown_name
from ablate.core.fields import REQUIRED, Field, Signature, place

Member = TypeVar("Member", bound=Callable)
Registered = TypeVar("Registered", bound=Callable)


@dataclass(frozen=True)
class Description:
    """What there is to know about a member before it is built; `doc` includes the docstrings of its bases."""

    name: str
    summary: str
    doc: str
    module: str
    fields: tuple[Field, ...]


class Registry(Generic[Member]):
    """Members of one kind by name.

    Args:
        kind: what a member is, in messages: "connector".
        base: the class that members are subclasses of; None for functions.
        given: the names of the leading parameters of a member's constructor, which its caller passes by position.
        package: the package whose modules are imported to find members.
        entry_points: the entry-point group in which other packages name their modules.
    """

    def __init__(
        self,
        kind: str,
        *,
        base: type | None = None,
        given: Sequence[str] = (),
        package: str | None = None,
        entry_points: str | None = None,
    ) -> None:
        self.kind, self.base, self.given = kind, base, tuple(given)
        self.package, self.group = package, entry_points
        self._members: dict[str, Member] = {}
        self._broken: dict[str, UserError] = {}  # entry-point name -> why it could not be loaded
        self._discovered = False

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Decorator: make a class or function known under `name`.

        Raises:
            UserError: the name is taken, or could not be written in a comma list or in the name of a folder.
            TypeError: the member is no subclass of the base, or its fields could not be checked.
        """

        def add(member: Registered) -> Registered:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise UserError(f'{self._what(name)}: expected letters, digits, "_", "-" and "." only.')
            if self.base is not None and not (isinstance(member, type) and issubclass(member, self.base)):
                raise TypeError(f'@register("{name}") expects a subclass of {place(self.base)}, got {member!r}')
            if name in self._members:
                raise UserError(
                    f"{self._what(name)} is registered twice: by {place(self._members[name])} and by {place(member)}. "
                    "Give one of them another name."
                )
            Signature.of(member, self.given)  # a signature that cannot be described is the author's to correct, now
            self._members[name] = cast(Member, member)
            return member

        return add

    def names(self) -> tuple[str, ...]:
        """The names of all members, sorted."""
        self._discover()
        return tuple(sorted(self._members))

    def get(self, name: str) -> Member:
        """The member called exactly `name`. Raises UserError, with the nearest names and all choices, if none is."""
        self._discover()
        if name in self._members:
            return self._members[name]
        if name in self._broken:
            raise self._broken[name]
        unknown = unknown_name(self.kind, name, self._members)
        # It may be one of those that did not load.
        raise UserError(" ".join([str(unknown), *map(str, self._broken.values())]))

    def create(self, name: str, *given: Any, **fields: Any) -> Any:
        """Call the member called exactly `name` with the given positional arguments and its checked fields.

        Raises:
            UserError: as `check`.
        """
        return self.get(name)(*given, **self.check(name, fields))

    def check(self, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields as the member called exactly `name` takes them; nothing is built.

        Raises:
            UserError: an unknown name or field (answered with the nearest ones and all choices), a value of the wrong
                type or outside its choices, a missing field.
        """
        return self.signature(name).check(self._what(name), fields)

    def signature(self, name: str) -> Signature:
        """The typed fields of the member called exactly `name`."""
        return Signature.of(self.get(name), self.given)

    def describe(self, name: str) -> Description:
        """The docstring, module and fields of the member called exactly `name`. Raises UserError if there is none."""
        member = self.get(name)
        doc = "\n\n".join(inspect.cleandoc(part.__doc__) for part in self._documented(member) if part.__doc__)
        of_base = inspect.cleandoc(self.base.__doc__ or "") if self.base else ""
        fields = Signature.of(member, self.given).described(f"{doc}\n\n{of_base}")
        return Description(name, doc.partition("\n")[0], doc, member.__module__, fields)

    def _what(self, name: str) -> str:
        return f'{self.kind[:1].upper()}{self.kind[1:]} "{name}"'

    def _documented(self, member: Member) -> Sequence[Any]:
        if not isinstance(member, type):
            return [member]
        return member.__mro__[: member.__mro__.index(self.base or object)]

    # -- Discovery --------------------------------------------------------------------------------------------------

    def _discover(self) -> None:
        """Import every module of the package, then every entry point of other packages; once."""
        if self._discovered:
            return
        self._discovered = True
        try:
            self._import_package()
        except BaseException:
            self._discovered = False
            raise
        self._load_entry_points()

    def _import_package(self) -> None:
        if self.package is None:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            with self._all_or_nothing():
                importlib.import_module(f"{self.package}.{module.name}")

    def _load_entry_points(self) -> None:
        """A package that does not load must not take the other members down, nor go unnoticed."""
        for entry_point in entry_points(group=self.group) if self.group else ():
            try:
                with self._all_or_nothing():
                    entry_point.load()
            except Exception as error:
                self._broken[entry_point.name] = self._entry_point_error(entry_point, error)
                warnings.warn(str(self._broken[entry_point.name]), stacklevel=2)

    def _entry_point_error(self, entry_point: EntryPoint, error: Exception) -> UserError:
        distribution = entry_point.dist.name if entry_point.dist else "unknown"
        broken = UserError(
            f'The installed package "{distribution}" offers the {self.kind} "{entry_point.name}", but its module '
            f"{entry_point.value} does not load: {type(error).__name__}: {error} Update, repair or uninstall the "
            "package."
        )
        broken.__cause__ = error
        return broken

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """A module that fails half-way leaves no names behind: imported again, it would collide with itself."""
        before = dict(self._members)
        try:
            yield
        except BaseException:
            self._members.clear()
            self._members.update(before)
            raise


def fields_table(description: Description, prefix: str = "") -> Table:
    """A member's fields for people: how each is set, its type or choices, default, meaning."""
    table = Table(show_edge=False)
    table.add_column(f"{prefix}FIELD", no_wrap=True, style="bold")
    table.add_column("type", overflow="fold")
    table.add_column("default", overflow="fold")
    table.add_column("what it is", overflow="fold")
    for known in description.fields:
        default = "(required)" if known.default is REQUIRED else default_text(known.default)
        table.add_row(Text(known.name), Text(known.type), Text(default), Text(known.doc))
    return table


def default_text(value: Any) -> str:
    """A default as a user would write it after `key=`."""
    return json.dumps(value, default=str).strip('"')
