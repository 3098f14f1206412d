"""Typed configs: dataclass defaults -> YAML files in order -> `key=value` overrides.

OmegaConf converts and checks the values. This module adds what a user needs to mend a mistake: every unknown key is
answered with its full dotted name and the nearest ones, every bad value with the key, what was got and what was
expected, and the source (which file, or the command line).
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ablate.errors import UserError

T = TypeVar("T")

# Metadata of a dataclass field that came after runs had been written without it: at its default it is no part of the
# digest, so that those runs keep their identity.
LATER = types.MappingProxyType({"ablate.later": True})


def load(schema: type[T], files: Sequence[Path | str] = (), overrides: Sequence[str] = ()) -> T:
    """Build an instance of the dataclass `schema`.

    Args:
        schema: a dataclass tree. Fields typed `dict` take any keys; all others take exactly the keys declared.
        files: YAML files, later ones win. A file's `defaults: [other.yaml]` (paths relative to the file) are merged
            before it.
        overrides: `key=value` with dotted keys and YAML values: `train.learning_rate=1e-3`, `encoder.names=[a,b]`. A
            leading `--` is allowed, as W&B agents write it.

    Raises:
        UserError: for a missing or malformed file, duplicate or unknown keys and values of the wrong type.
    """
    config = OmegaConf.structured(schema)
    for file in files:
        for source, values in _with_defaults(Path(file), ()):
            _merge(config, schema, values, source)
    for override in overrides:
        _merge(config, schema, _parse_override(override), f'override "{override}"')
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UserError(
            f"These keys have no value yet: {', '.join(missing)}. Set each with key=value or in a YAML file."
        )
    try:
        return OmegaConf.to_object(config)
    except UserError:
        raise
    except OmegaConfBaseException as error:
        # OmegaConf wraps what a dataclass's __post_init__ raises when it cannot rebuild the exception.
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML mapping. Duplicate keys, which YAML readers commonly let pass, are an error."""
    path = Path(path)
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise UserError(f"No config file at {path}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, got a {type(values).__name__}.")
    return values


def to_yaml(config: Any) -> str:
    """The config, complete, as YAML that `load` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flatten(config: Any) -> dict[str, Any]:
    """The config as one level of dotted keys: `{"train.learning_rate": 1e-3, ...}`. Lists stay whole."""
    return dict(_leaves(dataclasses.asdict(config)))


def digest(config: Any, ignore: Sequence[str] = ()) -> str:
    """SHA-256 (hex) of the config's canonical form.

    Args:
        config: a dataclass instance.
            Fields marked `LATER` take part where they differ from their defaults.
        ignore: dotted keys, of leaves or of whole groups, that do not take part; within an optional group, if it is
            used.
    """
    tree = dataclasses.asdict(config)
    _drop_later_defaults(config, tree)
    for key in ignore:
        *parents, last = key.split(".")
        group = tree
        for parent in parents:
            group = group[parent] if group is not None else None
        if group is not None:
            del group[last]
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _drop_later_defaults(config: Any, tree: dict[str, Any]) -> None:
    """Remove fields marked `LATER` that have their defaults."""
    for known in dataclasses.fields(config):
        value = getattr(config, known.name)
        if dataclasses.is_dataclass(value):
            _drop_later_defaults(value, tree[known.name])
        elif LATER.keys() <= known.metadata.keys():
            default = known.default if known.default_factory is dataclasses.MISSING else known.default_factory()
            if value == default:
                del tree[known.name]


def _with_defaults(path: Path, includers: tuple[Path, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (source, values) for the defaults of `path`, then for `path` itself."""
    resolved = path.resolve()
    if resolved in includers:
        raise UserError(f'{path}: its "defaults" lead back to itself.')
    values = read_yaml(path)
    defaults = values.pop("defaults", [])
    if isinstance(defaults, str):
        defaults = [defaults]
    if not isinstance(defaults, list) or not all(isinstance(name, str) for name in defaults):
        raise UserError(f'{path}: "defaults" must be a list of file names, got {defaults!r}.')
    for name in defaults:
        yield from _with_defaults(path.parent / name, (*includers, resolved))
    yield str(path), values


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, value = override.removeprefix("--").partition("=")
    if not equals or not key or any(not part for part in key.split(".")):
        raise UserError(f'Override "{override}": expected key=value, for example train.learning_rate=1e-3.')
    try:
        # An empty value means the empty string; null is written out.
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"v={value}"]))["v"] if value else ""
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f'Override "{override}": the value is not valid YAML: {error}') from error
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return parsed


def _merge(config: Any, schema: type, values: Mapping[str, Any], source: str) -> None:
    """Write `values` into `config`; report all problems of the source at once."""
    problems = list(_merge_group(config, schema, values, prefix="", all_keys=list(_schema_keys(schema))))
    if problems:
        raise UserError(f"{source}: " + "\n  ".join(["", *problems] if len(problems) > 1 else problems))


def _merge_group(
    config: Any, group: type, values: Mapping[str, Any], prefix: str, all_keys: Sequence[str]
) -> Iterator[str]:
    """Write `values` into the group at `prefix`; yield one message for every key that does not fit."""
    hints = typing.get_type_hints(group)
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in hints:
            unknown = [leaf for leaf, _ in _leaves({key: value})] or [key]
            yield from (_unknown_key(leaf, group, prefix, all_keys) for leaf in unknown)
            continue
        inner = _dataclass_in(hints[name])
        if inner and isinstance(value, Mapping):
            if OmegaConf.select(config, key) is None:  # an optional group that is used for the first time
                OmegaConf.update(config, key, inner)
            yield from _merge_group(config, inner, value, f"{key}.", all_keys)
        elif inner and not (value is None and inner is not hints[name]):
            keys = ", ".join(field.name for field in dataclasses.fields(inner))
            yield f"{key}: got {value!r}, expected a group with the keys {keys}"
        else:
            try:
                OmegaConf.update(config, key, value, merge=True, force_add=True)
            except (OmegaConfBaseException, TypeError):
                yield f"{key}: got {value!r} ({type(value).__name__}), expected {_describe(hints[name])}"


def _unknown_key(key: str, group: type, prefix: str, all_keys: Sequence[str]) -> str:
    if key in all_keys:
        return f'"{key}" is a dotted key: in a file, nest it under "{key.partition(".")[0]}:"'
    near = _nearest_keys(key, all_keys)
    if near:
        return f'unknown key "{key}": did you mean {" or ".join(near)}?'
    inner = ", ".join(f"{prefix}{field.name}" for field in dataclasses.fields(group))
    return f'unknown key "{key}"; the keys there are {inner}'


def _nearest_keys(key: str, choices: Sequence[str], limit: int = 3, cutoff: float = 0.7) -> list[str]:
    """The keys whose last part is most alike, since the group is often forgotten; the whole key settles ties."""

    def ratio(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()

    def likeness(choice: str) -> tuple[float, float]:
        return ratio(key.rpartition(".")[2], choice.rpartition(".")[2]), ratio(key, choice)

    scored = sorted(((likeness(choice), choice) for choice in choices), reverse=True)[:limit]
    # Far worse than the best one is noise, not an alternative.
    floor = max(cutoff, scored[0][0][0] - 0.1)
    return [choice for (last_part, _), choice in scored if last_part >= floor]


def _schema_keys(schema: type, prefix: str = "") -> Iterator[str]:
    for name, hint in typing.get_type_hints(schema).items():
        yield f"{prefix}{name}"
        if inner := _dataclass_in(hint):
            yield from _schema_keys(inner, f"{prefix}{name}.")


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass of a group: `Group`, or `Group | None`."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    candidates = typing.get_args(hint) if union else (hint,)
    return next((candidate for candidate in candidates if dataclasses.is_dataclass(candidate)), None)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _describe(hint: Any) -> str:
    """A type as a user would say it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if argument is type(None) else _describe(argument) for argument in arguments)
    if origin is not None:
        return f"{origin.__name__} of {', '.join('...' if a is Ellipsis else _describe(a) for a in arguments)}"
    if dataclasses.is_dataclass(hint):
        return f"{{{', '.join(field.name for field in dataclasses.fields(hint))}}}"
    return getattr(hint, "__name__", str(hint))


__all__ = ["LATER", "MISSING", "digest", "flatten", "load", "read_yaml", "to_yaml"]
