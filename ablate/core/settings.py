"""The settings of a config tree for people: key, type, default, and the comment or docstring that explains each."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from ablate.core.errors import UserError, nearest
from ablate.core.fields import Range, type_text


@dataclass(frozen=True)
class Setting:
    """One setting, or a group of them. `type`, `default` and `doc` are written for people."""

    key: str
    type: str
    default: str
    doc: str


def settings(schema: type, key: str = "") -> list[Setting]:
    """Every setting of the dataclass tree, or those in the group `key`, or the one setting of that name.

    Raises:
        UserError: no such key; the message has the nearest ones.
    """
    every = list(_settings(schema, ""))
    found = [each for each in every if not key or each.key == key or each.key.startswith(f"{key}.")]
    if not found:
        groups = {each.key.rpartition(".")[0] for each in every} - {""}
        near = nearest(key, [*groups, *(each.key for each in every)])
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f'There is no setting "{key}".{hint} `ablate config` lists all.')
    return found


def _settings(schema: type, prefix: str) -> Iterator[Setting]:
    hints = typing.get_type_hints(schema, include_extras=True)
    docs = explained(schema)
    for field in dataclasses.fields(schema):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        if (group := _group(hint)) is not None:
            if group is not hint:  # a group that may be null
                yield Setting(key, type_text(hint), "null", docs.get(field.name, ""))
            yield from _settings(group, f"{key}.")
        else:
            yield Setting(key, _type(hint), _default(field), docs.get(field.name, ""))


def explained(schema: type) -> dict[str, str]:
    """Field -> what explains it: `name: ...` in the docstring of the class or a base, or the comment above the field.

    A comment documents all fields below it, up to the next comment.
    """
    names = [field.name for field in dataclasses.fields(schema)]
    docs: dict[str, str] = {}
    for kind in reversed([each for each in schema.__mro__ if dataclasses.is_dataclass(each)]):
        docs |= _comments(kind) | _in_docstring(kind, names)
    return docs


def _in_docstring(schema: type, names: list[str]) -> dict[str, str]:
    text = " ".join((schema.__doc__ or "").split())
    starts = [match for match in re.finditer(r"(\w+(?:, \w+)*): ", text) if set(match[1].split(", ")) <= set(names)]
    docs: dict[str, str] = {}
    for match, after in zip(starts, [*starts[1:], None], strict=False):
        explanation = text[match.end() : after.start() if after else None].strip()
        docs |= dict.fromkeys(match[1].split(", "), explanation)
    return docs


def _comments(schema: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(schema))
    except OSError:  # no source to read
        return {}
    lines, docs, comment, last = source.splitlines(), {}, "", 0
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = [line.strip() for line in lines[last : node.lineno - 1]]
            if found := [line.removeprefix("#").strip() for line in above if line.startswith("#")]:
                comment = " ".join(found)
            docs[node.target.id] = comment
        else:
            comment = ""
        last = node.end_lineno or 0
    return {name: text for name, text in docs.items() if text}


def _group(hint: Any) -> type | None:
    """The dataclass of a group, which may be optional."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    groups = [option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)]
    return groups[0] if len(groups) == 1 and len(options) <= 2 else None


def _type(hint: Any) -> str:
    """With its range: "number, above 0"."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    ranges = [_range(mark) for option in options for mark in _marks(option)]
    return ", ".join([type_text(hint), *filter(None, ranges)])


def _marks(hint: Any) -> list[Range]:
    if typing.get_origin(hint) is not Annotated:
        return []
    return [mark for mark in hint.__metadata__ if isinstance(mark, Range)]


def _range(allowed: Range) -> str:
    wide = 2**62  # the end of 64 bits is of no interest
    bounds = {"{:g} or more": allowed.least, "above {:g}": allowed.above, "at most {:g}": allowed.most}
    bounds["below {:g}"] = allowed.below
    return " and ".join(text.format(bound) for text, bound in bounds.items() if bound is not None and abs(bound) < wide)


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "(required)"
    return json.dumps(value, default=lambda each: getattr(each, "__dict__", str(each)))
