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

from ablate.errors import UserError
from datamodules.errors import BadSample
from datamodules.images import read_image

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
    """The first of `names` that exists in one of `folders` under `root`.

    Raises:
        UserError: none does; the message says what was looked for and what the folder holds.
    """
    if not root.is_dir():
        raise UserError(f"No folder {root}. Give the folder that holds {names[0]}.")
    candidates = [root / folder / name for folder in folders for name in names]
    for path in candidates:
        if path.is_file():
            return path
    held = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(root))
    shown = ", ".join(held[:20]) + (f" and {len(held) - 20} more" if len(held) > 20 else "")
    wanted = " or ".join(str(path.relative_to(root)) for path in candidates)
    raise UserError(f"{root} has no {wanted}. It holds: {shown or 'nothing'}.")


def read_json(path: Path) -> Any:
    """One JSON document in UTF-8."""
    text = _read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        extra = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        if extra and _is_json(text[: error.pos]):
            raise UserError(f"{path} looks like JSON Lines; expected one JSON document.") from None
        raise UserError(f"{path} is not valid JSON: {_describe(error, text)}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read.") from None


def read_json_lines(path: Path, problems: Problems | None = None) -> list[tuple[int, dict[str, Any]]]:
    """JSON Lines in UTF-8, one object a line, blank lines left out: (line number from 1, object)."""
    problems = problems or Problems()
    text = _read_text(path)
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            if number == 1 and _is_json(text):
                raise UserError(f"{path} is one JSON document; expected JSON Lines, one object a line.") from None
            problems.add(f"{path}, line {number}, is not valid JSON: {_describe(error, line)}")
            continue
        except RecursionError:
            problems.add(f"{path}, line {number}, is nested too deeply to be read.")
            continue
        if isinstance(entry, dict):
            entries.append((number, entry))
        else:
            hint = " The file is one JSON list; expected JSON Lines." if isinstance(entry, list) else ""
            problems.add(f"{path}, line {number}: expected an object, got {_kind(entry)}.{hint}")
    return entries


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
    texts = [answer.get("answer") if type(answer) is dict else answer for answer in answers]
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
            path = self._expected[name] = self.folders[0] / name
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


def image_problem(path: Path) -> tuple[str, str] | None:
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
        read_image(path)
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
    """The photo that a file name stands for: COCO's 2014 and 2017 names of one photo give the same id."""
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


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = f"byte {error.start} is {error.object[error.start]:#04x} (line {line})"
        raise UserError(f"{path} is not UTF-8 text: {byte}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not text.strip():
        raise UserError(f"{path} is empty. Was its download cut short?")
    return text


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
