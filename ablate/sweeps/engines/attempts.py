"""One attempt at a run: a process that trains it, what it says, and how it ended."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablate.core.console import PROGRESS_FILE
from ablate.core.files import read_mapping
from ablate.core.locks import RunLock, is_locked
from ablate.runs.folder import RunFiles
from ablate.sweeps.display import RunStatus
from ablate.sweeps.manifest import clear_failure
from ablate.sweeps.plan import PlannedRun

POLL_SECONDS = 0.2
LOG_TAIL_LINES = 15
LOCK_SECONDS = 2.0  # that processes may take to end which have been killed


@dataclass
class Attempt:
    """A run in progress, as a process of this one, under the run's lock."""

    run: PlannedRun
    process: subprocess.Popen
    lock: RunLock
    slot: int
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def start(
        cls, run: PlannedRun, lock: RunLock, slot: int, launcher: Sequence[str], environment: Mapping[str, str]
    ) -> "Attempt":
        """Start the run's process; its output goes to the run's log, after the command."""
        run.folder.mkdir(parents=True, exist_ok=True)
        clear_failure(run.folder)
        # A progress file of an earlier attempt would be taken for this one's.
        (run.folder / PROGRESS_FILE).unlink(missing_ok=True)
        command = [*launcher, *run.arguments]
        with open(RunFiles(run.folder).log, "a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # A terminal sends Ctrl-C to its whole process group; the runner alone decides how a training ends.
                process_group=0,
            )
        lock.set_child(process.pid)
        return cls(run, process, lock, slot)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def send(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if signum in (signal.SIGKILL, signal.SIGTERM):
                os.killpg(self.process.pid, signum)
            else:
                # To the training alone: it ends its own workers, which need not all print a traceback.
                self.process.send_signal(signum)

    def end_other_ranks(self) -> None:
        """Those of a run whose first rank has died would live on."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def progress(self) -> Mapping[str, Any]:
        """What the run says of itself, for `status` and `seconds_left`."""
        return read_mapping(self.run.folder / PROGRESS_FILE) or {}

    def status(self, progress: Mapping[str, Any]) -> RunStatus:
        """What the run does now."""
        steps, step = progress.get("steps") or 0, progress.get("step") or 0
        activity = f"{progress['phase']} {step}/{steps}" if progress.get("phase") else "starting"
        if loss := _last_loss(self.run.folder):
            activity += f" · loss {loss:.3f}"
        return RunStatus(self.run.label, self.elapsed, activity, step / steps if steps else None)

    def seconds_left(self, progress: Mapping[str, Any], expected: float | None) -> float | None:
        """By its own estimate, or by what a run of its kind takes; None while neither is known."""
        guesses = (progress.get("eta_seconds"), None if expected is None else expected - self.elapsed)
        known = [guess for guess in guesses if guess is not None]
        return max(0.0, *known) if known else None


def _last_loss(folder: Path) -> float | None:
    """The loss in the last whole line of train.jsonl."""
    try:
        with open(RunFiles(folder).steps, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError, AttributeError):
            if isinstance(loss := json.loads(line).get("loss"), int | float):
                return float(loss)
    return None


def where_it_continues(folder: Path) -> str:
    return ", from its checkpoint" if RunFiles(folder).checkpoint.exists() else ""


def how_it_ended(returncode: int) -> str:
    if returncode < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-returncode).name
            return f"killed by {name}" + (": out of memory?" if name == "SIGKILL" else "")
    return "it ended without a result.json" if returncode == 0 else f"exit status {returncode}"


def may_end_otherwise(returncode: int, tail: Sequence[str]) -> bool:
    """A signal or full memory may be another program's doing; what a run itself complains of is there again."""
    return returncode < 0 or any("memory is full" in line for line in tail)


def is_trained_elsewhere(folder: Path) -> bool:
    """Whether another training holds the run's lock; what is left of ours gives it back as it ends."""
    deadline = time.monotonic() + LOCK_SECONDS
    while is_locked(RunFiles(folder).lock):
        if time.monotonic() > deadline:
            return True
        time.sleep(POLL_SECONDS)
    return False


def log_tail(path: Path) -> list[str]:
    """The last lines of this attempt."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("$ ")]
    attempt = [line.rstrip() for line in lines[starts[-1] + 1 if starts else 0 :]]
    return [line for line in attempt if line][-LOG_TAIL_LINES:]
