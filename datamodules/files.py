"""Files that are either complete or not there, and locks."""

import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ablate.errors import UserError

# What a write can fail with. Other errors within the block come from what the caller was reading.
WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


_SETTLED = 2 * 10**9  # ns: a file that changed less than this ago may change again and keep its time stamp
_hashes: dict[tuple[object, ...], str] = {}


def file_sha256(path: Path | str) -> str:
    """SHA-256 (hex) of a file, read in pieces.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None


def known_sha256(path: Path | str) -> str:
    """`file_sha256`, computed once in this process for as long as the file's size and time of change stay as they are.

    For files that are large or asked about again and again, not for finding damage.
    """
    path = os.path.realpath(path)
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return file_sha256(path)  # which says what is wrong
    key = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if (known := _hashes.get(key)) is None:
        known = file_sha256(path)
        if time.time_ns() - status.st_mtime_ns > _SETTLED:
            _hashes[key] = known
    return known


_ON_THE_WAY = {
    errno.ENOENT: " Make its folder first.",
    errno.ENOTDIR: " A part of the path is a file: choose another one.",
}


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the name `path` only once it is on disk in full.

    Raises:
        UserError: it cannot be written, such as on a full disk.
    """
    try:
        # A part of the name: the whole may leave no place for more characters.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.", suffix=".tmp")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.{_ON_THE_WAY.get(error.errno, '')}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep colleagues out
        try:
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"Cannot write {path}: {error.strerror}. Choose another path.") from None
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in WRITE_ERRORS:
            raise UserError(f"Cannot write {path}: {error.strerror}. Nothing finished is lost; run again.") from None
        raise


def clear_leftovers(folder: Path) -> None:
    """Remove the unfinished files that killed writers left below `folder`, while nobody else writes there."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path, *, busy: str = "") -> Iterator[None]:
    """Hold the lock file `path`; the system gives it back however the process ends.

    Raises:
        UserError: with the message `busy`, if another process holds it; with no message given, wait for it instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise UserError(busy) from None
        yield


_DECOMPRESS = "compressed with {}. Bytes are read from their place in the file, so decompress it: {} {{}}"
_PAGE = "an HTML page, as a download leaves that failed. Download it again."
# The first bytes of files that are often given in place of shards or annotations -> what such a file is, what to do.
_FIRST_BYTES = {
    b"\x1f\x8b": _DECOMPRESS.format("gzip", "gunzip -k"),
    b"BZh": _DECOMPRESS.format("bzip2", "bunzip2 -k"),
    b"\xfd7zXZ\0": _DECOMPRESS.format("xz", "unxz -k"),
    b"\x28\xb5\x2f\xfd": _DECOMPRESS.format("Zstandard", "zstd -d"),
    b"PK\x03\x04": "a ZIP archive. Unpack it: unzip {}",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive. Unpack it: 7z x {}",
    b"PAR1": "a Parquet table. Write its rows as LLaVA records (JSON) and its images as files, and make shards of them "
    "with `ablate data shard`.",
    b"version https://git-lfs": "a git-lfs pointer, not the file itself. Fetch that: git lfs pull",
    b"<!DOCTYPE": _PAGE,
    b"<!doctype": _PAGE,
    b"<html": _PAGE,
}


def what_it_is(path: Path) -> str:
    """What the first bytes say that a file is, and what to do with it, as the end of "... is"; "" for other files."""
    with path.open("rb") as file:
        first = file.read(32)
    found = [what for magic, what in _FIRST_BYTES.items() if first.startswith(magic)]
    return found[0].format(path) if found else ""
