"""The contract suites: `python -m ablate.testing PACKAGE` runs them over the members that a package registers.

A suite is a module of this package that says of one kind of member what its contract demands:

    registry               the registry of the kind
    CHECKS                 functions of a subject, which raise AssertionError with one line that says what does not hold
    subjects(name)         the subjects of the member called `name`, by label: one for each form that has to be checked
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

Check = Callable[[Any], None]


class Case(NamedTuple):
    """One check of one subject of one member."""

    kind: str
    member: str
    label: str
    check: Check
    subject: Any

    def __str__(self) -> str:
        return " ".join(filter(None, [self.kind, self.member, self.label, self.check.__name__.replace("_", " ")]))


def suites() -> tuple[ModuleType, ...]:
    """Every suite of this package."""
    package = importlib.import_module("ablate.testing")
    modules = [importlib.import_module(f"{package.__name__}.{found.name}") for found in _modules(package)]
    return tuple(module for module in modules if hasattr(module, "CHECKS"))


def members(suite: ModuleType, package: str) -> tuple[str, ...]:
    """The members of the suite's registry that `package`, or a module of it, defines."""
    registry = suite.registry
    return tuple(name for name in registry.names() if f"{registry.get(name).__module__}.".startswith(f"{package}."))


def cases(suite: ModuleType, name: str) -> Iterator[Case]:
    """Every check of every subject of the member called `name`."""
    subjects: Mapping[str, Any] = suite.subjects(name)
    for label, subject in subjects.items():
        for check in suite.CHECKS:
            yield Case(suite.registry.kind, name, label, check, subject)


def _modules(package: ModuleType) -> Iterator[pkgutil.ModuleInfo]:
    return (found for found in pkgutil.iter_modules(package.__path__) if not found.name.startswith("_"))
