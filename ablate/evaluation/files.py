"""Reading other people's annotation files: every complaint names the file and the entry."""

import gc
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.core.errors import UserError
from ablate.evaluation.texts import PACKED_SUFFIXES, read_text
from datamodules.errors import BadSample
from datamodules.images.decode import read_image

Types = type | tuple[type, ...]


class Problems:
    """What is wrong with some files: raised at once, or (`collect`) gathered, so that one run finds all of it.

    with problems:
        ...  # a UserError in here ends the block; when collecting, what follows the block goes on
    """

    def __init__(self, *, collect: bool = False):
        self.collect = collect
        self.found: list[str] = []

    def add(self, message: str) -> None:
        if not self.collect:
            raise UserError(message)
        self.found.append(message)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> bool:
        if not self.collect or not isinstance(error, UserError):
            return False
        self.found.append(str(error))
        return True


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection: while millions of objects are made to stay, it only walks through them, again and again.

    Reading and scoring VQAv2's annotations takes two thirds of the time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def find_file(root: Path, names: Sequence[str], folders: Sequence[str] = (".",)) -> Path:
    """The first of `names` that exists in one of `folders` under `root`, as it is or packed (`.gz`, `.zip`, ...).

    Raises:
        UserError: none does; the message says what was looked for and what the folder holds.
    """
    if not root.is_dir():
        raise UserError(f"No folder {root}. Give the folder that holds {names[0]}.")
    candidates = [root / folder / name for folder in folders for name in names]
    packed = [path.with_name(path.name + suffix) for path in candidates for suffix in PACKED_SUFFIXES]
    for path in [*candidates, *packed]:
        if path.is_file():
            return path
    held = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(root))
    shown = ", ".join(held[:20]) + (f" and {len(held) - 20} more" if len(held) > 20 else "")
    wanted = " or ".join(str(path.relative_to(root)) for path in candidates)
    raise UserError(f"{root} has no {wanted}. It holds: {shown or 'nothing'}.")


def read_document(path: Path) -> Any:
    """One JSON document."""
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        if _is_extra(error, text):
            raise UserError(
                f"{path} looks like JSON Lines; expected one JSON document: give the release's own file."
            ) from None
        raise UserError(f"{path} is not valid JSON: {_describe(error, text)}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read.") from None


def read_records(
    path: Path,
    fields: Iterable[str],
    problems: Problems | None = None,
    *,
    also: Iterable[str] = (),
    lines: bool = False,
) -> list[tuple[str, Any]]:
    """The entries of a list, in any of the ways that a list is kept: (where it is, entry).

    JSON Lines (one object a line, blank lines left out), one JSON list, or an object with such a list and no other.

    Args:
        fields: which an entry should have. An object with one of them, or one of `also`, is an entry.
        lines: say "line 3" where a line is no JSON: the file should be JSON Lines.
    """
    text = read_text(path)
    try:
        document = json.loads(text)
    except ValueError as error:
        if _is_extra(error, text) or (lines and text.lstrip().startswith("{")):
            return _records_of_lines(path, text, problems or Problems())
        raise UserError(f"{path} is not valid JSON: {_describe(error, text)}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read.") from None
    if isinstance(document, dict) and any(field in document for field in (*fields, *also)):
        return [(f"{path}, line 1" if lines else f"{path}, entry 0", document)]
    entries = the_list_in(document)
    if entries is None:
        kind = f"a {type(document).__name__}"
        kind += f" with {', '.join(list(document)[:10]) or 'nothing'}" if isinstance(document, dict) else ""
        raise UserError(f"{path}: expected a list of objects with {', '.join(fields)}, got {kind}.")
    return [(f"{path}, entry {number}", entry) for number, entry in enumerate(entries)]


def the_list_in(document: Any, schema: Iterable[str] = ()) -> list[Any] | None:
    """The document if it is a list, or the only list in it; None if there is no such list.

    Args:
        schema: what the first entry must have, lest the list is of something else.
    """
    lists = [document] if isinstance(document, list) else []
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
    if len(lists) != 1:
        return None
    [entries] = lists
    first = entries[0] if entries else None
    fits = first is None or (isinstance(first, dict) and set(schema) <= first.keys())
    return entries if not schema or fits else None


def _records_of_lines(path: Path, text: str, problems: Problems) -> list[tuple[str, Any]]:
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entries.append((where, json.loads(line)))
        except ValueError as error:
            problems.add(f"{where}, is not valid JSON: {_describe(error, line)}")
        except RecursionError:
            problems.add(f"{where}, is nested too deeply to be read.")
    return entries


def _is_extra(error: ValueError, text: str) -> bool:
    """One JSON document and then more: JSON Lines."""
    return isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and _is_json(text[: error.pos])


def check_fields(entry: Any, schema: Mapping[str, Types], where: str) -> None:
    """Every field of `schema` is there with one of its types (bool is not an int here).

    Raises:
        UserError: beginning with `where`, which names file and entry; it names every field that is wrong.
    """
    if type(entry) is not dict:
        raise UserError(f"{where}: expected an object with {', '.join(schema)}, got {_kind(entry)}.")
    wrong = []
    for name, types in schema.items():
        types = types if isinstance(types, tuple) else (types,)
        if name not in entry:
            wrong.append(f'"{name}" is missing; found {", ".join(map(str, entry)) or "nothing"}.')
        elif type(entry[name]) not in types:
            expected = " or ".join(_NAMES[each] for each in types)
            wrong.append(f'"{name}" must be {expected}, got {_kind(entry[name])}.')
    if wrong:
        raise UserError(f"{where}: {' '.join(wrong)}")


def check_choice(value: Any, choices: Iterable[Any], what: str, where: str) -> None:
    choices = list(choices)
    if value not in choices:
        raise UserError(f'{where}: "{what}" must be one of {", ".join(map(repr, choices))}, got {value!r}.')


def human_answers(answers: list[Any], where: str) -> tuple[str, ...]:
    """The ten humans' answers of [{"answer": str}, ...] or [str, ...].

    Raises:
        UserError: not ten, since soft accuracy is defined for ten only.
    """
    if len(answers) != 10:
        raise UserError(f"{where}: expected the answers of 10 people, got {len(answers)}. Is the file cut or edited?")
    texts: list[Any] = [answer.get("answer") if type(answer) is dict else answer for answer in answers]
    for number, text in enumerate(texts):
        if type(text) is not str:
            raise UserError(f"{where}: answer {number} must be text, got {_kind(answers[number])}.")
    return tuple(texts)


class Images:
    """The images below a benchmark's folder, by file name. Looked up once per folder, not once per image."""

    def __init__(self, root: Path, folders: Sequence[str]):
        self.folders = [root / folder for folder in folders]
        self._paths: dict[str, Path] = {}
        self._expected: dict[str, Path] = {}
        for folder in reversed([folder for folder in self.folders if folder.is_dir()]):
            self._paths |= {entry.name: Path(entry.path) for entry in os.scandir(folder) if entry.is_file()}

    def path(self, name: str, where: str) -> Path:
        """Where the image is, or (if it is not there) where it was expected.

        Raises:
            UserError: a name that leads out of the folder.
        """
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            raise UserError(f"{where}: the image must be a plain file name, got {name!r}.")
        if (path := self._paths.get(name) or self._expected.get(name)) is None:
            # In the first folder that exists: the message about a missing image names it.
            folder = next((folder for folder in self.folders if folder.is_dir()), self.folders[0])
            path = self._expected[name] = folder / name
        return path

    def usable(self, path: Path) -> bool:
        """False for a file that is not there or is empty. Whether it can be decoded shows when it is."""
        try:
            return path.name in self._paths and path.stat().st_size > 0
        except OSError:
            return False


MISSING, EMPTY, UNREADABLE = "missing", "empty", "unreadable"


@dataclass(frozen=True)
class ImageProblem:
    """`kind`: missing, empty (no bytes) or unreadable; `reason`: in words; `questions`: the ids that need the image."""

    name: str
    kind: str
    reason: str
    questions: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.reason} (questions {listed(self.questions, 5)})"


def image_problem(path: Path, *, thorough: bool = False) -> tuple[str, str] | None:
    """(kind, reason) of an image that cannot be decoded; None for a sound one."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # a name with a null character is no name
        return MISSING, f"not in {path.parent}"
    if not stat.S_ISREG(status.st_mode):
        return UNREADABLE, "a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file"
    if status.st_size == 0:
        return EMPTY, "0 bytes"
    try:
        read_image(path, thorough=thorough)
    except BadSample as error:
        return UNREADABLE, error.reason
    except UserError as error:
        return UNREADABLE, str(error)
    return None


LEAVE_OUT = (
    "Repair or replace the file; or, with evaluation.partial=true, its questions are left out and the score is marked "
    "partial."
)


def left_out_text(problems: Sequence[ImageProblem]) -> str:
    """One sentence on questions that were left out, with the reason of each image."""
    number = sum(len(problem.questions) for problem in problems)
    some = f"{number:,} question{'s' * (number != 1)} left out, for want of an image that can be used"
    return f"{some}: {'; '.join(map(str, problems))}."


def image_id(name: str) -> str:
    """The photo that a file name refers to: COCO's 2014 and 2017 names of one photo give the same id."""
    return re.sub(r"^COCO_(train|val|test)\d{4}_", "", name.rsplit(".", 1)[0])


def listed(ids: Iterable[Any], most: int = 20) -> str:
    """`a, b, c and 12 more`, sorted."""
    ids = sorted(map(str, ids))
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    shown = json.dumps(value, ensure_ascii=False)
    return f"{_NAMES.get(type(value), type(value).__name__)} ({shown if len(shown) <= 60 else shown[:57] + '...'})"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _describe(error: ValueError, text: str) -> str:
    if not isinstance(error, json.JSONDecodeError):  # a number of more digits than Python converts
        return f"{error}."
    place = f"{error.msg} at line {error.lineno}, column {error.colno}"
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return f"{place}. It ends too early: was it cut short?"
    return f"{place}, near {text[max(0, error.pos - 20) : error.pos + 20]!r}."
