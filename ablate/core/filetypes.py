"""What a file is, by its first bytes: users give, and servers send, all kinds of files in place of the one wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HEAD_BYTES = 512

Kind = Literal["pointer", "page", "archive", "tar", "zip", "data", "pickle"]


@dataclass(frozen=True)
class FileType:
    """A kind of file.

    Attributes:
        what: as in "the file is ...".
        advice: what to do about it, `{path}` standing for the file; "" where that depends on what was wanted.
    """

    kind: Kind
    what: str
    advice: str = ""

    def describe(self, path: Path, otherwise: str) -> str:
        """`what: advice`; `otherwise` is the advice of a reader who wants another kind of data."""
        return f"{self.what}: {self.advice.format(path=path) or otherwise}"


_PAGE = FileType("page", "a web page (HTML)", "a download was answered with it; download the file itself")
_XML = FileType("page", "XML, perhaps a server's error message", "look into it, and download the file itself")
_IMAGE, _PICKLE = FileType("data", "an image"), FileType("pickle", "a Python pickle")
_BINARY = {
    b"\x1f\x8b": FileType("archive", "a gzip archive", "unpack it with gunzip -k {path}"),
    b"BZh": FileType("archive", "a bzip2 archive", "unpack it with bunzip2 -k {path}"),
    b"\xfd7zXZ\0": FileType("archive", "an xz archive", "unpack it with unxz -k {path}"),
    b"\x28\xb5\x2f\xfd": FileType("archive", "a zstandard archive", "unpack it with zstd -d {path}"),
    b"7z\xbc\xaf\x27\x1c": FileType("archive", "a 7-Zip archive", "unpack it with 7z x {path}"),
    b"Rar!": FileType("archive", "a RAR archive", "unpack it with unrar x {path}"),
    b"PK\x03\x04": FileType("zip", "a ZIP archive", "unpack it with unzip {path}"),
    b"/annex/objects/": FileType(
        "pointer", "a git-annex pointer, not the file itself", "run `git annex get` where it comes from"
    ),
    b"\x00\x05\x16\x07": FileType(
        "data", "what macOS keeps about a file (AppleDouble)", "use the file without the ._ in its name"
    ),
    b"PAR1": FileType("data", "a Parquet table"),
    b"ARROW1": FileType("data", "an Arrow table"),
    b"SQLite format 3": FileType("data", "an SQLite database"),
    b"\x93NUMPY": FileType("data", "a NumPy array"),
    b"\x89HDF\r\n\x1a\n": FileType("data", "an HDF5 file"),
    b"GGUF": FileType("data", "a GGUF file, made for llama.cpp"),
    b"%PDF": FileType("data", "a PDF"),
    b"\x89PNG": _IMAGE,
    b"\xff\xd8\xff": _IMAGE,
    **{bytes([0x80, protocol]): _PICKLE for protocol in (2, 3, 4, 5)},
}
# In any case, after a byte order mark and blanks.
_TEXT = {
    b"version https://git-lfs": FileType(
        "pointer", "a git-lfs pointer, not the file itself", "run `git lfs pull` where it comes from"
    ),
    b"<!doctype html": _PAGE,
    b"<html": _PAGE,
    b"<head": _PAGE,
    b"<?xml": _XML,
    b"<error": _XML,
}
_TAR = FileType("tar", "a tar archive", "unpack it with tar -xf {path}")


def identify(head: bytes) -> FileType | None:
    """The type of a file that begins with `head` (its first `HEAD_BYTES`, or all), or None if it is unknown."""
    for magic, found in _BINARY.items():
        if head.startswith(magic):
            return found
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    for magic, found in _TEXT.items():
        if text.startswith(magic):
            return found
    return _TAR if head[257:262] == b"ustar" else None


def type_of(path: Path) -> FileType | None:
    """`identify` for a file on disk. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return identify(file.read(HEAD_BYTES))
