"""Typed configs: dataclass defaults -> YAML files in order -> `key=value` overrides.

YAML's syntax says where a value ends, the declared type of the setting what it is (`core.scalars`, `core.fields`). A
mistake is answered with the key, what was got, what was expected and the source (which file, or the command line); an
unknown key with the nearest ones.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml

from ablate.core.errors import UserError
from ablate.core.fields import Mismatch, OutOfRange, convert
from ablate.core.scalars import Argument, Scalar, natural, parse_yaml

T = TypeVar("T")

# The value of a setting that must be given.
MISSING = "???"

# Metadata of a dataclass field that came after runs had been written without it: at its default it is no part of the
# digest, so that those runs keep their identity.
LATER = types.MappingProxyType({"ablate.later": True})


def load(schema: type[T], files: Sequence[Path | str | Mapping[str, Any]] = (), overrides: Sequence[str] = ()) -> T:
    """Build an instance of the dataclass `schema`.

    Args:
        schema: a dataclass tree. Fields typed `dict` take any keys; all others take exactly the keys declared.
        files: YAML files, or mappings as `to_data` makes them; later ones win. A file's `defaults: [other.yaml]` (paths
            relative to the file) are merged before it.
        overrides: `key=value` with dotted keys: `train.learning_rate=1e-3`, `encoder.names=[a,b]`. For a text setting,
            the value is used unchanged, without quotes if the whole value is quoted; for others it is YAML, in which
            `#` is a character like any other. A leading `--` is allowed, as W&B's agents write it.

    Raises:
        UserError: for a missing or malformed file, duplicate or unknown keys, values of the wrong type or out of range.
    """
    tree = _default_tree(schema)
    for file in files:
        given = [("the settings", dict(file))] if isinstance(file, Mapping) else _with_defaults(Path(file), ())
        for source, values in given:
            _merge(tree, schema, values, source)
    for override in overrides:
        _merge(tree, schema, parse_override(override), f'override "{override}"')
    if missing := sorted(key for key, value in _leaves(tree) if value is MISSING):
        raise UserError(
            f"These keys have no value yet: {', '.join(missing)}. Set each with key=value or in a YAML file."
        )
    config = _build(schema, tree)
    _settle(config)
    return config


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML mapping whose values have no declared types; `core.scalars.natural` says what they become.

    Duplicate keys, which YAML readers commonly let pass, are an error.
    """
    return natural(_read_mapping(Path(path)))


def load_yaml(path: Path, what: str = "config") -> Any:
    """The content of a YAML file, see `core.scalars.parse_yaml`.

    Raises:
        UserError: there is no such file, or it cannot be read as YAML.
    """
    try:
        return parse_yaml(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"No {what} file at {path}.") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{path} cannot be read as YAML: {error}. Save it as UTF-8.") from error
    except (OSError, yaml.YAMLError) as error:
        hint = " YAML is indented by blanks, not by tabs." if "'\\t'" in str(error) else ""
        raise UserError(f"{path} cannot be read as YAML: {error}{hint}") from error


def to_yaml(config: Any) -> str:
    """The config, complete, as YAML that `load` reads back to an equal one, and other readers to equal values."""
    return yaml.dump(to_data(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


def to_data(config: Any) -> dict[str, Any]:
    """The config, complete, as nested dicts and lists, of which `load` makes an equal one."""
    return _plain_data(dataclasses.asdict(config))


def flatten(config: Any) -> dict[str, Any]:
    """The config as one level of dotted keys: `{"train.learning_rate": 1e-3, ...}`. Lists stay whole.

    All of it can be written as JSON: a number that is not finite, where a setting takes one, becomes its text.
    """
    return {key: _finite(value) for key, value in _leaves(dataclasses.asdict(config))}


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


def parse_override(override: str) -> dict[str, Any]:
    """`a.b=value` -> {"a": {"b": Argument("value")}}. Raises UserError for anything else."""
    key, equals, value = override.removeprefix("--").partition("=")
    # Hydra's + and ++, which W&B's agents can write, mean nothing more here.
    parts = key.lstrip("+").split(".")
    if not equals or not all(parts):
        raise UserError(f'Override "{override}": expected key=value, for example train.learning_rate=1e-3.')
    nested: Any = Argument(value)
    for part in reversed(parts):
        nested = {part: nested}
    return nested


# --- writing ---------------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or `natural` reads as something else, and writes nothing twice by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        style = None if natural(Scalar(text)) == text else "'"
        if not text.isprintable():
            style = '"'  # PyYAML reads some line breaks back as blanks, unless they are escaped
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def _plain_data(value: Any) -> Any:
    """Lists for tuples, as YAML has no others."""
    if isinstance(value, Mapping):
        return {key: _plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_data(item) for item in value]
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_finite(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# --- reading ---------------------------------------------------------------------------------------------------------


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema, include_extras=True)


def _default_tree(schema: type) -> dict[str, Any]:
    """Groups as dicts, leaves as their defaults."""
    tree = {}
    for known in dataclasses.fields(schema):
        if known.default_factory is not dataclasses.MISSING:
            value = known.default_factory()
        else:
            value = MISSING if known.default is dataclasses.MISSING else known.default
        tree[known.name] = _as_tree(value)
    return tree


def _as_tree(value: Any) -> Any:
    if not dataclasses.is_dataclass(value):
        return value
    return {known.name: _as_tree(getattr(value, known.name)) for known in dataclasses.fields(value)}


def _build(schema: type[T], tree: Mapping[str, Any]) -> T:
    """The instance. A `Scalar` typed Any is still one, so that a `__post_init__` that knows its type can read it."""
    values = {}
    for name, hint in _hints(schema).items():  # type: ignore[arg-type]  # a class is hashable
        inner = _dataclass_in(hint)
        values[name] = _build(inner, tree[name]) if inner and isinstance(tree[name], Mapping) else tree[name]
    return schema(**values)


def _settle(config: Any) -> None:
    """Scalars of undeclared type get the type that they look like."""
    for known in dataclasses.fields(config):
        value = getattr(config, known.name)
        if dataclasses.is_dataclass(value):
            _settle(value)
        elif isinstance(value, Scalar | list | dict):
            object.__setattr__(config, known.name, natural(value))


def _read_mapping(path: Path) -> dict[str, Any]:
    values = load_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, got {_kind(values)}.")
    return values


def _with_defaults(path: Path, includers: tuple[Path, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (source, values) for the defaults of `path`, then for `path` itself."""
    resolved = path.resolve()
    if resolved in includers:
        raise UserError(f'{path}: its "defaults" lead back to itself.')
    values = _read_mapping(path)
    defaults = values.pop("defaults", [])
    if isinstance(defaults, str):
        defaults = [defaults]
    if not isinstance(defaults, list) or not all(isinstance(name, str) for name in defaults):
        raise UserError(f'{path}: "defaults" must be a list of file names, got {natural(defaults)!r}.')
    for name in defaults:
        yield from _with_defaults(path.parent / name, (*includers, resolved))
    yield str(path), values


def _merge(tree: dict[str, Any], schema: type, values: Mapping[str, Any], source: str) -> None:
    """Write `values` into `tree`; report all problems of the source at once."""
    problems = list(_merge_group(tree, schema, values, prefix="", all_keys=_all_keys(schema)))
    if problems:
        raise UserError(f"{source}: " + "\n  ".join(["", *problems] if len(problems) > 1 else problems))


def _merge_group(
    tree: dict[str, Any], group: type, values: Mapping[str, Any], prefix: str, all_keys: Sequence[str]
) -> Iterator[str]:
    """Write `values` into the group at `prefix`; yield one message for every key that does not fit."""
    hints = _hints(group)
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in hints:
            unknown = [leaf for leaf, _ in _leaves({key: value})] or [key]
            yield from (_unknown_key(leaf, group, prefix, all_keys) for leaf in unknown)
            continue
        try:
            if inner := _dataclass_in(hints[name]):
                value = value.parsed() if isinstance(value, Argument) else value
                if isinstance(value, Mapping):
                    if tree[name] is None:  # an optional group that is used for the first time
                        tree[name] = _default_tree(inner)
                    yield from _merge_group(tree[name], inner, value, f"{key}.", all_keys)
                elif inner is not hints[name] and (value is None or (isinstance(value, Scalar) and value.is_null())):
                    tree[name] = None
                else:
                    keys = ", ".join(field.name for field in dataclasses.fields(inner))
                    yield f"{key}: got {natural(value)!r}, expected a group with the keys {keys}"
            else:
                tree[name] = _over(tree[name], convert(value, hints[name]))
        except OutOfRange as error:
            yield f"{key} is {natural(value)}: expected {error}"
        except Mismatch:
            hint = ' ("" is the empty text, "null" in quotes the word)' if _is_null_text(value, hints[name]) else ""
            yield f"{key}: got {_kind(natural(value), value)}, expected {_describe(hints[name])}{hint}"
        except UserError as error:  # of a list's items, or brackets that are no YAML
            yield f"{key}: {error}"


def _is_null_text(value: Any, hint: Any) -> bool:
    return hint is str and isinstance(value, Scalar) and value.is_null()


def _over(old: Any, new: Any) -> Any:
    """Mappings merge, key by key; anything else replaces."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    return {**old, **{key: _over(old.get(key), value) for key, value in new.items()}}


def _kind(value: Any, given: Any = None) -> str:
    """A value and its type, for a message."""
    hint = ""
    if isinstance(value, str) and isinstance(given, Scalar) and any(character.isdigit() for character in value):
        hint = "; numbers are decimal, without _ , : or leading zeros" if value.strip("+-")[:1] in "0123456789." else ""
    return f"{value!r} ({type(value).__name__}{hint})"


def _unknown_key(key: str, group: type, prefix: str, all_keys: Sequence[str]) -> str:
    if key in all_keys:
        return f'"{key}" is a dotted key: in a file, nest it under "{key.partition(".")[0]}:"'
    near = _nearest_keys(key, all_keys)
    if near:
        return f'unknown key "{key}": did you mean {" or ".join(near)}?'
    inner = ", ".join(f"{prefix}{field.name}" for field in dataclasses.fields(group))
    return f'unknown key "{key}"; the keys there are {inner}'


def _nearest_keys(key: str, choices: Sequence[str], limit: int = 3, cutoff: float = 0.7) -> list[str]:
    """The keys whose last part is most alike, of the group that the key names, or of all where it names none.

    In another group, the same last part is an answer only where it has several words: train.batch_size is
    data.batch_size, but language.name has nothing to do with connector.name.
    """

    def ratio(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()

    def likeness(choice: str) -> tuple[float, float]:
        return ratio(last, choice.rpartition(".")[2]), ratio(key, choice)

    group, _, last = key.rpartition(".")
    groups = sorted({choice.rpartition(".")[0] for choice in choices} - {""})
    meant = tuple(
        f"{each}." for each in groups if max(ratio(each, group), ratio(each.rpartition(".")[2], group)) >= cutoff
    )
    inside = [choice for choice in choices if group and choice.startswith(meant)]
    elsewhere = [choice for choice in choices if "_" in last and choice.rpartition(".")[2] == last]
    for candidates in (inside, elsewhere) if inside else (choices,):
        scored = sorted(((likeness(choice), choice) for choice in candidates), reverse=True)[:limit]
        # Far worse than the best one is noise, not an alternative.
        floor = max(cutoff, scored[0][0][0] - 0.1) if scored else cutoff
        if near := [choice for (last_part, _), choice in scored if last_part >= floor]:
            return near
    return []


@functools.cache
def _all_keys(schema: type) -> tuple[str, ...]:
    return tuple(_schema_keys(schema))


def _schema_keys(schema: type, prefix: str = "") -> Iterator[str]:
    for name, hint in _hints(schema).items():
        yield f"{prefix}{name}"
        if inner := _dataclass_in(hint):
            yield from _schema_keys(inner, f"{prefix}{name}.")


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass of a group: `Group`, or `Group | None`."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    candidates = typing.get_args(hint) if union else (hint,)
    return next((each for each in candidates if isinstance(each, type) and dataclasses.is_dataclass(each)), None)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _describe(hint: Any) -> str:
    """A type as a user would say it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _describe(arguments[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if argument is type(None) else _describe(argument) for argument in arguments)
    if origin is not None:
        return f"{origin.__name__} of {', '.join('...' if a is Ellipsis else _describe(a) for a in arguments)}"
    if dataclasses.is_dataclass(hint):
        return f"{{{', '.join(field.name for field in dataclasses.fields(hint))}}}"
    return getattr(hint, "__name__", str(hint))


__all__ = ["LATER", "MISSING", "digest", "flatten", "load", "load_yaml", "parse_override", "read_yaml", "to_yaml"]
