"""The text of a file of unknown origin: unpacked and decoded where there is no doubt, else named for what it is."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ablate.core.errors import UserError
from ablate.core.filetypes import HEAD_BYTES, identify

PACKED_SUFFIXES = (".gz", ".zip", ".bz2", ".xz")
# First bytes -> the format's name and what unpacks it.
_PACKED: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"BZh": ("bzip2", bz2.decompress),
    b"\xfd7zXZ\x00": ("xz", lzma.decompress),
}
_noted: list[list[Path]] = []


@contextmanager
def files_noted() -> Iterator[list[Path]]:
    """The files that are read within the block."""
    _noted.append([])
    try:
        yield _noted[-1]
    finally:
        _noted.pop()


def read_text(path: Path) -> str:
    """UTF-8, UTF-16 or UTF-32, with a byte order mark or not; packed by gzip, bzip2 or xz, or alone in a zip file.

    Raises:
        UserError: it cannot be read, is empty or damaged, or is no text; the message says what it is and what to do.
    """
    for files in _noted:
        files.append(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    data = _unpacked(data, path)
    if not data.strip():
        raise UserError(f"{path} is empty. Was its download cut short?")
    if not data.strip(b"\0"):
        raise UserError(f"{path} holds {len(data):,} zero bytes and nothing else: download it again.")
    if found := identify(data[:HEAD_BYTES]):
        raise UserError(f"{path} is {found.describe(path, 'give the JSON file, or export it as JSON')}.")
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if encoding not in ("utf-8", "utf-8-sig"):
            raise UserError(f"{path} looks like {encoding} and is damaged: {error.reason}.") from None
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = f"byte {error.start} is {error.object[error.start]:#04x} (line {line})"
        raise UserError(f"{path} is not UTF-8 text: {byte}.") from None
    if not text.strip():
        raise UserError(f"{path} is empty. Was its download cut short?")
    return text


def _unpacked(data: bytes, path: Path) -> bytes:
    for magic, (name, unpack) in _PACKED.items():
        if data.startswith(magic):
            try:
                return unpack(data)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise UserError(
                    f"{path} is a damaged {name} file ({error}). Was its download cut short? Download it again."
                ) from None
    return _from_zip(data, path) if data.startswith(b"PK\x03\x04") else data


def _from_zip(data: bytes, path: Path) -> bytes:
    """The only JSON file in it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = [name for name in archive.namelist() if not name.endswith("/")]
            files = [name for name in files if not name.startswith("__MACOSX/")]
            wanted = [name for name in files if name.lower().endswith((".json", ".jsonl"))]
            if len(wanted) != 1:
                held = ", ".join(files[:10]) + (", ..." if len(files) > 10 else "")
                raise UserError(
                    f"{path} is a zip file with {len(wanted)} JSON files, not one: unpack it first. It holds: {held}."
                )
            return archive.read(wanted[0])
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise UserError(
            f"{path} is a damaged zip file ({error}). Was its download cut short? Download it again."
        ) from None
    except RuntimeError as error:  # a password
        raise UserError(f"{path} is a zip file that cannot be read ({error}): unpack it first.") from None
