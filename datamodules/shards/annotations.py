"""LLaVA's annotation files, read entry by entry: a JSON array of any length, or JSON Lines.

Only a few entries are in memory at a time, for files of any length. Parsing is the standard library's.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ablate.core.errors import UserError
from ablate.core.filetypes import type_of

READ_BYTES = 1 << 20
# An entry beyond this is not one, but a mistake in the file that makes two of its halves look like one.
MAX_ENTRY_BYTES = 64 << 20
_BLANKS = " \t\r\n"
_decoder = json.JSONDecoder()
_TURNS = "conversations"
# Keys of a JSON object under which a whole data set may be stored.
_WRAPS = {"data", "annotations", "records", "samples", "examples", "items", "rows", "questions", "train"}
_OF_A_TURN = {"from", "value", "role", "content"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `raw` is its text in the file, which starts at byte `offset`; `value` is what that says."""

    offset: int
    raw: bytes
    value: Any


def read_entries(path: Path | str) -> Iterator[Entry]:
    """The entries of an annotation file, in order. A file that starts with `[` is an array, any other JSON Lines.

    Raises:
        UserError: it cannot be read, is not JSON or ends too early; the message says where (bytes from the start).
    """
    path = Path(path)
    try:
        _check_text(path)
        with path.open("rb") as file:
            start = 3 if file.read(3) == codecs.BOM_UTF8 else 0
            file.seek(start)
            first = file.read(READ_BYTES).lstrip()[:1]
            file.seek(start)
            yield from _array(path, file, start) if first == b"[" else _lines(path, file, start)
    except OSError as error:
        raise UserError(f"Cannot read the annotations {path}: {error.strerror}.") from None


def captioned(record: Any, has_image: bool) -> Any:
    """img2dataset's record, whose text is its `caption`, as a conversation: the image, answered by the caption.

    Records with conversations, and captions without an image, stay as they are.
    """
    if not is_caption(record) or not has_image:
        return record
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": record["caption"]}]
    return {"id": record.get("key", ""), "image": record.get("key") or "image", "conversations": turns}


def is_caption(record: Any) -> bool:
    """Whether it is one of img2dataset's: a caption and no conversations."""
    return isinstance(record, dict) and "conversations" not in record and isinstance(record.get("caption"), str)


def one_image(record: Any) -> Any:
    """A record whose image, if it has one, is `record["image"]`: also of a list of one, and of the key `images`.

    With several images, `record["image"]` is the list of them: no sample has more than one.
    """
    if not isinstance(record, dict) or ("images" not in record and not isinstance(record.get("image"), list)):
        return record
    found: list[Any] = []
    for each in (record.get("image"), record.get("images")):
        found += [name for name in (each if isinstance(each, list) else [each]) if name and name not in found]
    rest = {name: value for name, value in record.items() if name not in ("image", "images")}
    return rest | {"image": found[0] if len(found) == 1 else found} if found else rest


def _check_text(path: Path) -> None:
    """Name what is not text in UTF-8: compressed files, tables, other encodings.

    Raises:
        UserError: such a file.
    """
    if found := type_of(path):
        raise UserError(f"The annotations {path} are {found.describe(path, 'give records of LLaVA (JSON).')}")
    with path.open("rb") as file:
        first = file.read(4)
    # A byte order mark, or the zeros of plain characters in UTF-16 and UTF-32.
    if first[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in first:
        wide = first[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE) or first.count(0) > 2
        encoding = "UTF-32" if wide else "UTF-16"
        if first[:2] != codecs.BOM_UTF16_LE and first[:2] != codecs.BOM_UTF16_BE and not wide:
            encoding += "BE" if first[:1] == b"\0" else "LE"
        raise UserError(
            f"The annotations {path} are {encoding}, expected UTF-8. Convert them: "
            f"iconv -f {encoding} -t UTF-8 {path} > utf8-{path.name}"
        )


def _check_lines(path: Path, file: IO[bytes], offset: int) -> None:
    """Name a file that starts with `{` but has no record a line.

    Raises:
        UserError: it is {"data": [...]}, or has objects of several lines.
    """
    file.seek(offset)
    start = file.read(READ_BYTES).decode(errors="replace").lstrip()
    file.seek(offset)
    line = next((each for each in iter(lambda: file.readline(MAX_ENTRY_BYTES), b"") if each.strip()), b"")
    file.seek(offset)
    key, value = "", None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        wrapped = re.search(r'"([^"\\]+)"\s*:\s*\[\s*\{\s*"([^"\\]+)"', start)
        key = wrapped[1] if wrapped and wrapped[2] not in _OF_A_TURN and wrapped[1] != _TURNS else ""
    if isinstance(value, dict) and _TURNS not in value:
        lists = ((name, each[0]) for name, each in value.items() if isinstance(each, list) and each)
        records = (name for name, first in lists if isinstance(first, dict) and (name in _WRAPS or _TURNS in first))
        key = next(records, "")
    if key:
        raise UserError(
            f"{path} is one JSON object, with its records under {json.dumps(key)}; expected an array of records, or "
            f"one record a line. Take them out: jq '.[{json.dumps(key)}]' {path} > records-{path.name}"
        )
    if start[:1] == "{" and value is None and _is_object(start):
        raise UserError(
            f"{path} has JSON objects of several lines; expected an array of records, or one record a line. Make an "
            f"array of them: jq -s . {path} > array-{path.name}"
        )


def _is_object(text: str) -> bool:
    """Whether a JSON object stands at the start of a text."""
    try:
        _decoder.raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(path: Path, file: IO[bytes], offset: int) -> Iterator[Entry]:
    _check_lines(path, file, offset)
    while line := file.readline(MAX_ENTRY_BYTES):
        if raw := line.strip():
            try:
                yield Entry(offset + line.index(raw), raw, json.loads(raw))
            except (ValueError, RecursionError) as error:
                raise _broken(path, offset, f"the line that starts there is not JSON: {error}") from None
        offset += len(line)


def _array(path: Path, file: IO[bytes], offset: int) -> Iterator[Entry]:
    """The elements of the array; anything before or after it is an error.

    A value that the text in memory does not hold to its end looks like one that is broken there. So more is read, twice
    as much each time, before it is called broken.
    """
    text = _Text(path, file, offset)
    text.expect("[")
    if text.next_character() == "]":
        text.expect("]")
    else:
        while True:
            yield text.value()
            if text.next_character() == "]":
                text.expect("]")
                break
            text.expect(",")
    if text.next_character():
        raise _broken(path, text.offset, "expected the end of the file after the array's closing bracket")


class _Text:
    """A window on the text of a file that moves forward only. `offset`: bytes before it in the file."""

    def __init__(self, path: Path, file: IO[bytes], offset: int):
        self.path, self.offset = path, offset
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._window, self._at, self._ended = "", 0, False

    def next_character(self) -> str:
        """The next that is not blank, without moving past it; "" at the end of the file."""
        while True:
            start = self._at
            while self._at < len(self._window) and self._window[self._at] in _BLANKS:
                self._at += 1
            self.offset += self._at - start
            if self._at < len(self._window):
                return self._window[self._at]
            if self._ended:
                return ""
            self._read(READ_BYTES)

    def expect(self, character: str) -> None:
        found = self.next_character()
        if found != character:
            what = f"found {found!r}" if found else "the file ends"
            raise _broken(self.path, self.offset, f"expected {character!r}, {what}")
        self._at += 1
        self.offset += 1

    def value(self) -> Entry:
        self.next_character()
        step = READ_BYTES
        while True:
            try:
                value, end = _decoder.raw_decode(self._window, self._at)
                # A number may continue past the end of the window, even "1" in "1.5".
                after = self._window[end : end + 1]
                if self._ended or (after and (self._window[end - 1] in '}]"' or after in f",]{_BLANKS}")):
                    break
                problem = "the file ends"
            except (ValueError, RecursionError) as error:
                problem = getattr(error, "msg", str(error))
            if self._ended or len(self._window) - self._at > MAX_ENTRY_BYTES:
                raise _broken(self.path, self.offset, f"the entry that starts there is not JSON: {problem}")
            self._read(step)
            step *= 2
        raw = self._window[self._at : end].encode()
        entry = Entry(self.offset, raw, value)
        self._at = end
        self.offset += len(raw)
        return entry

    def _read(self, count: int) -> None:
        data = self._file.read(count)
        self._ended = not data
        try:
            more = self._decode(data, self._ended)
        except UnicodeDecodeError as error:
            raise _broken(self.path, self._file.tell() - len(data) + error.start, "the text is not UTF-8") from None
        self._window = self._window[self._at :] + more
        self._at = 0


def _broken(path: Path, offset: int, problem: str) -> UserError:
    return UserError(
        f"{path} is damaged at byte {offset:,}: {problem}. "
        "Expected a JSON array of LLaVA records, or one record a line."
    )
