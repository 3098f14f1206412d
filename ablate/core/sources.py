"""Digests: of the files and the source that a run was made of, and of what it wrote.

A run's provenance keeps the digests of its weights files and of its connector's source; its result keeps those of its
own files. Whoever reads a run later can then say what has changed since. This finds changes; it is no signature.
"""

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ablate.core.files import known_sha256

DIGESTS = "digests"
REPLACED = ".replaced-"  # and a number: the end of the name of a run's folder that another run has taken the place of
_PROJECT = ("ablate", "datamodules")  # whose state is the code revision; their imports are not followed
_CONTRACTS = ("connectors", "connectors.contract")  # what every connector imports and none is made of


# -- Files ------------------------------------------------------------------------------------------------------------


def file_entry(path: Path | str) -> dict[str, Any]:
    """{"name", "size" in bytes, "sha256"} of a file, which is read in pieces and, while unchanged, once a process."""
    path = Path(path)
    return {"name": path.name, "size": path.stat().st_size, "sha256": known_sha256(path)}


# -- What was written -------------------------------------------------------------------------------------------------


def sealed(content: Mapping[str, Any], folder: Path, files: Iterable[str]) -> dict[str, Any]:
    """`content` (of a JSON file) with the digests of these files in `folder`, where they are there, and its own."""
    there = {name: file_entry(folder / name)["sha256"] for name in files if (folder / name).is_file()}
    whole = {**content, DIGESTS: there}
    return {**content, DIGESTS: there | {"self": _content_digest(whole)}}


def is_edited(content: Mapping[str, Any]) -> bool:
    """Whether sealed content has changed since; False where it was written before there were digests."""
    digests = content.get(DIGESTS)
    if not isinstance(digests, Mapping) or "self" not in digests:
        return False
    others = {name: digest for name, digest in digests.items() if name != "self"}
    return digests["self"] != _content_digest({**content, DIGESTS: others})


def _content_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# -- Source -----------------------------------------------------------------------------------------------------------


def source_digests(members: Iterable[Any]) -> dict[str, str]:
    """Module -> SHA-256 of its file, for the modules that define these classes or functions, and for those that they
    import of their own package or of `connectors`. A change of comments or white space counts."""
    members = list(members)
    pending = [base.__module__ for member in members for base in getattr(member, "__mro__", (member,))]
    packages = {_top(member.__module__) for member in members} | {"connectors"}
    found: dict[str, str] = {}
    while pending:
        name = pending.pop()
        if name in found or name in _CONTRACTS or _top(name) not in packages:
            continue
        if (path := _source_file(name)) is None:
            continue
        found[name] = file_entry(path)["sha256"]
        if _top(name) not in _PROJECT and path.suffix == ".py":
            pending += _imports(name, path)
    return dict(sorted(found.items()))


def changed_sources(recorded: Mapping[str, str] | None) -> list[str]:
    """The modules, of those in a run's provenance, whose file is another one now or is gone.

    Nothing is imported. Of a package that is not installed here nothing is known, and nothing said.
    """
    changed = []
    for name, digest in (recorded or {}).items():
        path = _source_file(name)
        if path is None and _spec(_top(name)) is None:
            continue
        if path is None or file_entry(path)["sha256"] != digest:
            changed.append(name)
    return changed


def _top(module: str) -> str:
    return module.partition(".")[0]


def _spec(package: str) -> Any:
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError):  # such as __main__
        return None


def _source_file(module: str) -> Path | None:
    """The module's file, found without importing anything."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return Path(loaded) if Path(loaded).is_file() else None
    spec = _spec(_top(module))
    inner = module.split(".")[1:]
    if spec is None:
        return None
    if not inner:
        candidates = [Path(spec.origin)] if spec.origin else []
    else:
        stems = [Path(folder, *inner) for folder in spec.submodule_search_locations or ()]
        candidates = [path for stem in stems for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py")]
    return next((path for path in candidates if path.is_file()), None)


def _imports(module: str, path: Path) -> Iterator[str]:
    """The modules that a module imports, or that define what it imports from a package."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield base
                if _source_file(f"{base}.{alias.name}"):
                    yield f"{base}.{alias.name}"
                elif module_of := getattr(getattr(sys.modules.get(base), alias.name, None), "__module__", None):
                    yield module_of


# -- Runs that are run again ------------------------------------------------------------------------------------------


def set_aside(folder: Path) -> Path:
    """Give a run's folder another name, under which tables and sweeps pass it over; returns it."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}{REPLACED}{number}")).exists():
        number += 1
    return folder.rename(aside)
