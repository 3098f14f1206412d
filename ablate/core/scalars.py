"""YAML in which the type of a setting says what a scalar is.

YAML's syntax says where a scalar ends. What it is depends on the setting that it is for: `007`, `on`, `1:30` and
`12e4567` are texts where a text is expected. Readers of YAML 1.1 decide without knowing the setting, and make them 7,
true, 90 and infinity. So nothing is resolved here: scalars stay texts that know whether they stood in quotes.
"""

import ast
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import yaml

from ablate.core.errors import UserError

_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,3999})")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,9})?")
_NOT_FINITE = re.compile(r"([-+]?)\.?(inf|infinity|nan)", re.IGNORECASE)
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# Python prints None, and so do W&B's agents.
_NULLS = ("", "~", "null", "Null", "NULL", "None")
_MAX_DEPTH, _MAX_NODES = 50, 100_000


class Scalar(str):
    """The text of a scalar in YAML whose type is not yet known."""

    quoted = False

    def is_null(self) -> bool:
        """Whether it means null where null is possible."""
        return not self.quoted and self in _NULLS

    def as_text(self) -> str | None:
        """As a text; None where it is YAML's null, which `None` is not."""
        return None if self.is_null() and self != "None" else str(self)

    def as_bool(self) -> bool | None:
        return _BOOLS.get(self)

    def as_int(self) -> int | None:
        """As a whole number in plain decimal digits; None where it is anything else: 1.0, 1_000, 010, 0x10, 1:30."""
        return int(self) if _INT.fullmatch(self) else None

    def as_float(self) -> float | None:
        """As a decimal number, perhaps not finite; None if it is not a number or is too close to 0 to distinguish."""
        if found := _NOT_FINITE.fullmatch(self):
            return float(found[1] + found[2])
        if not _FLOAT.fullmatch(self):
            return None
        value = float(self)
        lost = value == 0 and re.search("[1-9]", re.split("[eE]", self)[0])
        return None if lost else value


class Quoted(Scalar):
    """A scalar in quotes (or in a block of text): never null."""

    quoted = True


class Argument(Scalar):
    """The whole value of a `key=value`, before it is known whether it is a text or YAML."""

    def as_text(self) -> str:
        """The text unchanged, without YAML's quotes if all of it is quoted; any word, `null` too, is one."""
        return str(self.unquoted())

    def parsed(self) -> Any:
        """As YAML: lists and mappings as such, anything else as one scalar.

        Raises:
            UserError: brackets that are no YAML.
        """
        text = self.strip()
        if not text.startswith(("[", "{")):
            return self.unquoted()
        if (literal := _python_literal(text)) is not None:
            return literal
        # `#` begins no comment here. Its placeholder must not occur in the text, nor result from an escape.
        unused = (code for code in range(0xE000, 0xF8FF) if chr(code) not in text and f"{code:x}" not in text.lower())
        stand_in = chr(next(unused))
        try:
            tree = parse_yaml(text.replace("#", stand_in))
        except yaml.YAMLError as error:
            problem = str(error).replace(stand_in, "#")
            hint = "\nIn a list, put texts with brackets, braces or a star in quotes: ['train-{000..009}.tar']"
            raise UserError(f"the value is not valid YAML: {problem}{hint}") from None
        return _replace(tree, stand_in, "#")

    def unquoted(self) -> Scalar:
        """One scalar, with YAML's quotes taken off where it is quoted as a whole."""
        text = self.strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
            try:
                node = _compose(text)
            except yaml.YAMLError:
                return self
            if isinstance(node, yaml.ScalarNode) and node.style:
                return Quoted(node.value)
        return self


def parse_yaml(content: str | bytes) -> Any:
    """YAML as dicts with texts as keys, lists and `Scalar`; an empty document is {}.

    Anchors, aliases and merge keys mean what they do in YAML.

    Raises:
        yaml.YAMLError: also for duplicate keys, tags of other types, and nesting without end.
    """
    node = _compose(content)
    return {} if node is None else _Construction().value(node, 0)


def map_scalars(tree: Any, change: Callable[[Scalar], Any]) -> Any:
    """The same tree with every `Scalar` changed."""
    if isinstance(tree, Scalar):
        return change(tree)
    if isinstance(tree, list):
        return [map_scalars(item, change) for item in tree]
    if isinstance(tree, dict):
        return {key: map_scalars(item, change) for key, item in tree.items()}
    return tree


def _replace(tree: Any, old: str, new: str) -> Any:
    """The same tree with one character replaced in all its texts and keys."""
    if isinstance(tree, dict):
        return {key.replace(old, new): _replace(item, old, new) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_replace(item, old, new) for item in tree]
    return type(tree)(tree.replace(old, new))


def natural(value: Any) -> Any:
    """A tree whose scalars have no declared type: null, true and false, decimal numbers; anything else is a text.

    What would be another number after reading (`007`, `1_000`, `12e4567`) is a text, and so is `.inf`.
    """
    return map_scalars(value.parsed() if isinstance(value, Argument) else value, _natural_scalar)


def _natural_scalar(scalar: Scalar) -> Any:
    if scalar.quoted:
        return str(scalar)
    if scalar.is_null():
        return None
    for read in (scalar.as_bool(), scalar.as_int(), scalar.as_float()):
        if isinstance(read, int) or (read is not None and math.isfinite(read)):
            return read
    return str(scalar)


def to_argument(value: Any) -> str:
    """The value for a `key=value` that is read back as an equal one, for a setting of any type.

    A text stands as it is where nothing but a text could be meant, and in quotes elsewhere.
    """
    if isinstance(value, bool):
        return str(value)  # as W&B's agents write it
    if isinstance(value, str) and not _is_plain(value):
        simple = value.isprintable() and value == value.strip() and value[:1] not in ("[", "{")
        return value if simple and natural(Argument(value)) == value else _quoted(value)
    return _flow(value)


def _is_plain(value: str) -> bool:
    """Whether it is a scalar without quotes, which stands as it is."""
    return isinstance(value, Scalar) and not value.quoted


def _flow(value: Any) -> str:
    if isinstance(value, str):
        return str(value) if _is_plain(value) else _quoted(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_quoted(str(key))}: {_flow(item)}' for key, item in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(getattr(value, "text", value))


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).rstrip("\n")


class _Loader(yaml.SafeLoader):
    """Tells scalars in quotes from those without, and resolves none."""

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:
        return "plain" if kind is yaml.ScalarNode and implicit[0] else super().resolve(kind, value, (False, True))


def _compose(content: str | bytes) -> yaml.Node | None:
    try:
        return yaml.compose(content, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # PyYAML, on an escape of a character that does not exist
        raise yaml.YAMLError(str(error)) from None


class _Construction:
    """Turns the nodes of one document into data. Counts them: aliases of aliases can expand to billions."""

    def __init__(self) -> None:
        self.nodes = 0

    def value(self, node: yaml.Node, depth: int) -> Any:
        self.nodes += 1
        if depth > _MAX_DEPTH or self.nodes > _MAX_NODES:
            raise _problem("it is nested too deeply, or refers to itself", node)
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.ScalarNode) and tag in ("plain", "int", "float", "bool", "null"):
            return Scalar(node.value)
        if isinstance(node, yaml.ScalarNode) and tag == "str":
            return Quoted(node.value)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return [self.value(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self.mapping(node, depth)
        raise _problem(f"the tag {node.tag} has no meaning here", node)

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, value = self.value(key_node, depth + 1), self.value(value_node, depth + 1)
            if not isinstance(key, Scalar):
                raise _problem("a key must be a text", key_node)
            if key == "<<" and not key.quoted:
                for base in value if isinstance(value, list) else [value]:
                    if not isinstance(base, dict):
                        raise _problem("<< takes a mapping, or a list of them", value_node)
                    merged = base | merged
            elif key in own:
                raise _problem(f'duplicate key: the key "{key}" stands twice', key_node)
            else:
                own[str(key)] = value
        return merged | own


def _problem(text: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


def _python_literal(text: str) -> Any:
    """A list or mapping as Python prints it, and so a W&B agent; its backslashes mean something else in YAML."""
    if "\\" not in text:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # escapes that Python would not print
            literal = ast.literal_eval(text)
        return _from_python(literal) if repr(literal) == text else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _from_python(literal: Any) -> Any:
    if isinstance(literal, dict):
        return {str(key): _from_python(value) for key, value in literal.items()}
    if isinstance(literal, list):
        return [_from_python(value) for value in literal]
    return Quoted(literal) if isinstance(literal, str) else Scalar(literal)
