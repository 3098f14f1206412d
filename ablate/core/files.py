"""Files that are either complete or not there, and locks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ablate.core.errors import UserError

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

    A device or a pipe, such as /dev/null, is written to as it is: a file must not take its place.

    Raises:
        UserError: it cannot be written, such as on a full disk.
    """
    if _is_special(path):
        with open(path, "wb") as file:
            yield file
        return
    try:
        # A part of the name: the whole may leave no place for more characters.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.", suffix=".tmp")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.{_ON_THE_WAY.get(error.errno or 0, '')}") from None
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


def _is_special(path: Path) -> bool:
    """Whether something is there that is neither a file nor a folder."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def clear_leftovers(folder: Path) -> None:
    """Remove the unfinished files that killed writers left below `folder`. No other process may be writing there."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    # Non-finite numbers are no JSON; readers in other languages refuse them.
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in the file, or None if there is no such file or it is not JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def read_mapping(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file, or None if it has none (missing, unreadable, being written, or another type)."""
    try:
        content = read_json(path)
    except OSError:
        return None
    return content if isinstance(content, dict) else None


class JsonLines:
    """A log that grows by a line; lines are numbered by their `step`.

    Args:
        path: the file.
        after: the step from which the run continues: lines of later steps, and a line cut short by a kill, go.
    """

    def __init__(self, path: Path, after: int = 0) -> None:
        kept = [line for line in read_lines(path) if line["step"] <= after]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        # Line-buffered: a line is in the file when `append` returns.
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - closed by close()

    def append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; a last line cut short by a kill does not count."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn "no space left on device" into advice. Nothing finished is lost, as files are replaced whole."""
    try:
        yield
    except (OSError, RuntimeError, UserError) as error:
        # torch's zip writer hides the OSError of a full disk behind a RuntimeError about its own position in the file.
        cause: BaseException | None = error
        while cause is not None and getattr(cause, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        free = shutil.disk_usage(existing_parent(folder)).free
        raise UserError(
            f"No space left on the disk of {folder} ({free / 1e6:.0f} MB free). Finished runs and the last checkpoint "
            "are intact: free some space, or move with root=FOLDER, and run the same command again."
        ) from error


def existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
