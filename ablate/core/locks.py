"""A lock file per run, so that two sweep runners on one folder never run the same run at once.

The lock is a small JSON file made with O_EXCL, which is atomic on local and on network file systems. It names the
processes of the runner and of the training. A lock is stale, and is taken over, when

- it was made in this process namespace since the last start of this machine, and neither process lives any more (a
  killed runner leaves its training running: that run is still taken), or
- it was made elsewhere and nobody refreshed it for `HEARTBEAT_LOST` seconds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ablate.core.errors import UserError
from ablate.core.files import write_json

# Seconds between two signs of life, and after how many without one the owner on another machine counts as gone. The
# second is far longer: a suspended laptop or a stuck file server must not start a run twice.
HEARTBEAT = 10.0
HEARTBEAT_LOST = 600.0

_PLACE = ("host", "boot", "namespace")  # where process numbers mean the same


class RunLock:
    """The lock of one run. Use `acquire`, then `refresh` now and then, then `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # What is in the file while it is ours; a lock taken over by another has another token.
        self._content = _who_am_i() | {"token": secrets.token_hex(8), "child": None, "child_started": None}
        self._held = False
        self._refreshed = 0.0

    def acquire(self) -> bool:
        """Take the lock if it is free or stale. False: another process has this run (`owner` names it)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._held = self._create() or (self._is_stale() and self._take_over())
        self._refreshed = time.monotonic()
        return self._held

    def set_child(self, pid: int) -> None:
        """Name the process that does the work, so that the lock outlives a killed runner."""
        self._content |= {"child": pid, "child_started": _start_time(pid)}
        self._replace()

    def refresh(self) -> None:
        """A sign of life for runners on other machines; cheap to call often."""
        if self._held and time.monotonic() - self._refreshed > HEARTBEAT:
            self._refreshed = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
        if self._held and (self._read() or {}).get("token") == self._content["token"]:
            self.path.unlink(missing_ok=True)
        self._held = False

    def owner(self) -> str:
        """Who holds the lock, for a message."""
        content = self._read() or {}
        return f"process {content.get('pid', '?')} on {content.get('host', '?')}"

    def process_here(self) -> int | None:
        """The process to ask for an end: the runner, or its training if it is dead; None if they are elsewhere."""
        content, here = self._read() or {}, _who_am_i()
        if any(content.get(key) != here[key] for key in _PLACE):
            return None
        return _living(content)

    def is_taken(self) -> bool:
        """Whether a process has this run now; takes nothing."""
        return self.path.exists() and not self._is_stale()

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            json.dump(self._content, file)
        return True

    def _replace(self) -> None:
        """Rewrite the lock atomically: a reader sees the old content or the new one."""
        write_json(self.path, self._content)

    def _read(self) -> dict[str, Any] | None:
        """The content; {} if unreadable (its maker died between creating and writing), None if there is no lock."""
        try:
            content = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _is_stale(self) -> bool:
        content = self._read()
        if content is None:
            return True
        here = _who_am_i()
        if content and all(content.get(key) == here[key] for key in _PLACE):
            return _living(content) is None
        return _age(self.path) > (HEARTBEAT_LOST if content else HEARTBEAT)

    def _take_over(self) -> bool:
        """Replace a stale lock. Of several runners that found it stale, the one that makes the second file wins."""
        guard = self.path.with_name(f"{self.path.name}.takeover")
        with _exclusive(guard) as alone:
            # Between our look and now another runner may have taken it over, or finished and released it.
            if not alone or not self._is_stale():
                return False
            if not self.path.exists():
                return self._create()
            self._replace()
            return True


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[bool]:
    """True for the one process that makes `path`. Held for an instant: one a minute old is left over from a crash."""
    if _age(path) > 60:
        path.unlink(missing_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Seconds since the last change by the file system's own clock, which may differ from ours; 0 if there is none."""
    probe = path.with_name(f".clock.{secrets.token_hex(4)}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _who_am_i() -> dict[str, Any]:
    try:
        # Two containers may share a host name; their process numbers mean nothing to each other.
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    try:
        # Two machines may share a host name, too.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    pid = os.getpid()
    here = {"host": socket.gethostname(), "boot": boot, "namespace": namespace}
    return {**here, "pid": pid, "started": _start_time(pid)}


def _start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot (None where /proc does not tell): reused numbers differ."""
    fields = _stat(pid)
    return fields[19] if fields else None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; [] where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    # The command name, in parentheses, may itself hold spaces and parentheses.
    return stat.rpartition(")")[2].split()


def _living(content: dict[str, Any]) -> int | None:
    """Of a lock of this place, the runner if it lives, else its training if that does."""
    for pid, started in (("pid", "started"), ("child", "child_started")):
        if _is_alive(content.get(pid), content.get(started)):
            return content[pid]
    return None


def _is_alive(pid: int | None, started: str | None) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    fields = _stat(pid)
    # A zombie has ended; only its parent has not asked yet.
    return not fields or (fields[0] != "Z" and started in (None, fields[19]))


@contextmanager
def exclusive(path: Path, *, busy: str = "", waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path`; the system gives it back however the process ends.

    Args:
        waiting: called before another process is waited for.

    Raises:
        UserError: with the message `busy`, if another process holds it; with no message given, wait for it instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        if not _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if busy:
                raise UserError(busy) from None
            if waiting is not None:
                waiting()
            _flock(file, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file `path`, see `exclusive`; takes nothing."""
    try:
        with open(path, "rb") as file:
            return not _flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False


def _flock(file: IO, operation: int) -> bool:
    """False: another process holds the lock, and we were not to wait.

    Raises:
        UserError: the file system has no such locks.
    """
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise
        raise UserError(
            f"The file system of {Path(file.name).parent} has no file locks ({error.strerror}), so two processes could "
            "write one run. Take another folder (root=...), or mount it with flock."
        ) from None
    return True
