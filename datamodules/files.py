"""Files that are either complete or not there, and locks."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ablate.errors import UserError

# What a write can fail with. Other errors within the block come from what the caller was reading.
WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the name `path` only once it is on disk in full.

    Raises:
        UserError: it cannot be written, such as on a full disk.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep colleagues out
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in WRITE_ERRORS:
            raise UserError(f"Cannot write {path}: {error.strerror}. Nothing finished is lost; run again.") from None
        raise


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
