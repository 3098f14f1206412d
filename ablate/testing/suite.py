"""The contract suites: `python -m ablate.testing PACKAGE` runs them on the members that a package registers.

A suite is a module of this package that defines the contract of one kind of member:

    registry               the registry of the kind
    CHECKS                 functions of a subject, which raise AssertionError with a one-line reason
    subjects(name)         label -> subject of the member `name`, one for each variant to check
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

Check = Callable[[Any], None]


class Case(NamedTuple):
    """One check of one subject of one member.

    Attributes:
        kind: what the registry calls its members.
        member: the member's name.
        label: the subject's label; empty if there is only one.
        check: the check.
        subject: its argument.
    """

    kind: str
    member: str
    label: str
    check: Check
    subject: Any

    def __str__(self) -> str:
        return " ".join(filter(None, [self.kind, self.member, self.label, self.check.__name__.replace("_", " ")]))


def suites() -> tuple[ModuleType, ...]:
    """All suites in this package."""
    package = importlib.import_module("ablate.testing")
    modules = [importlib.import_module(f"{package.__name__}.{found.name}") for found in _modules(package)]
    return tuple(module for module in modules if hasattr(module, "CHECKS"))


def members(suite: ModuleType, package: str) -> tuple[str, ...]:
    """The members of the suite's registry that are defined in `package` or one of its modules."""
    registry = suite.registry
    return tuple(name for name in registry.names() if f"{registry.get(name).__module__}.".startswith(f"{package}."))


def cases(suite: ModuleType, name: str) -> Iterator[Case]:
    """Every check of every subject of the member `name`."""
    subjects: Mapping[str, Any] = suite.subjects(name)
    for label, subject in subjects.items():
        for check in suite.CHECKS:
            yield Case(suite.registry.kind, name, label, check, subject)


def _modules(package: ModuleType) -> Iterator[pkgutil.ModuleInfo]:
    return (found for found in pkgutil.iter_modules(package.__path__) if not found.name.startswith("_"))
