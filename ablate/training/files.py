"""Files of a run: written whole or not at all, so that a kill at any moment leaves the old file or the new one."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from datamodules.files import atomic_file


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    # Non-finite numbers are no JSON; readers in other languages refuse them.
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any | None:
    """The value in the file, or None if there is no such file or it is not JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


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
def disk_full_told(folder: Path) -> Iterator[None]:
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
