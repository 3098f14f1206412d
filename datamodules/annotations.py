"""LLaVA's annotation files, read entry by entry: a JSON array of any length, or JSON Lines.

Memory holds a few entries at a time, whatever the length of the file. Parsing is the standard library's.
"""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ablate.errors import UserError

READ_BYTES = 1 << 20
# An entry beyond this is not one, but a mistake in the file that makes two of its halves look like one.
MAX_ENTRY_BYTES = 64 << 20
_BLANKS = " \t\r\n"
_decoder = json.JSONDecoder()


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
        with path.open("rb") as file:
            start = 3 if file.read(3) == codecs.BOM_UTF8 else 0
            file.seek(start)
            first = file.read(READ_BYTES).lstrip()[:1]
            file.seek(start)
            yield from _array(path, file, start) if first == b"[" else _lines(path, file, start)
    except OSError as error:
        raise UserError(f"Cannot read the annotations {path}: {error.strerror}.") from None


def _lines(path: Path, file: IO[bytes], offset: int) -> Iterator[Entry]:
    while line := file.readline(MAX_ENTRY_BYTES):
        if raw := line.strip():
            try:
                yield Entry(offset + line.index(raw), raw, json.loads(raw))
            except (ValueError, RecursionError) as error:
                raise _broken(path, offset, f"the line that starts there is not JSON: {error}") from None
        offset += len(line)


def _array(path: Path, file: IO[bytes], offset: int) -> Iterator[Entry]:
    """The elements of the array, and nothing else before or behind it.

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
                # A number may go on where the window ends, even "1" in "1.5".
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
