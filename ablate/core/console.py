"""How far a run is: a bar in a terminal, plain lines elsewhere, and a small file that the sweep runner reads."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from ablate.core.files import write_json

PROGRESS_FILE = "progress.json"


class Reporter:
    """Shows the phases of one run, one after another.

    Args:
        folder: where `progress.json` goes, `{"phase", "step", "steps", "eta_seconds"}`; None: nowhere.
        console: where to show the progress; None: nowhere (ranks other than the first).
        every: seconds between two plain lines, where the console is no terminal.
    """

    def __init__(self, folder: Path | None, console: Console | None, *, every: float = 10.0) -> None:
        self.folder, self.console, self.every = folder, console, every

    def say(self, message: str) -> None:
        if self.console is not None:
            self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def phase(self, name: str, steps: int, start: int = 0) -> Phase:
        """Begin a phase of `steps` steps, of which an earlier attempt has done `start`: `with reporter.phase(...)`."""
        return Phase(self, name, steps, start)


class Phase:
    """One phase. Call `update` as often as you like: it shows something now and then only."""

    def __init__(self, reporter: Reporter, name: str, steps: int, start: int) -> None:
        self.reporter, self.name, self.steps, self.start, self.done = reporter, name, steps, start, start
        self._began = time.monotonic()
        self._file_written = self._line_printed = self._drawn = float("-inf")
        self._bar: Progress | None = None
        if reporter.console is not None and reporter.console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=reporter.console,
                auto_refresh=False,  # a thread that draws would be there when processes are forked
            )
            self._task = self._bar.add_task(name, total=steps, completed=start, text="")
            self._bar.start()
        self.update(start)

    def update(self, done: int, steps: int | None = None, text: str = "") -> None:
        """`done` of `steps` steps are done; `text` says more about the last one ("loss 2.31")."""
        self.done, self.steps = done, self.steps if steps is None else steps
        now = time.monotonic()
        last = done >= self.steps
        if self.reporter.folder is not None and (last or now - self._file_written >= 1.0):
            self._file_written = now
            state = {"phase": self.name, "step": done, "steps": self.steps, "eta_seconds": self.eta_seconds()}
            write_json(self.reporter.folder / PROGRESS_FILE, state)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.steps, text=text)
            if last or now - self._drawn >= 0.1:
                self._drawn = now
                self._bar.refresh()
        elif done > self.start and (last or now - self._line_printed >= self.reporter.every):
            self._line_printed = now
            self.reporter.say(" · ".join(filter(None, [f"{self.name} {done}/{self.steps}", text, self._left()])))

    def eta_seconds(self) -> float | None:
        """Seconds until this phase ends, at the mean pace of this attempt; None before the first step."""
        if self.done >= self.steps:
            return 0.0
        if self.done <= self.start:
            return None
        pace = (time.monotonic() - self._began) / (self.done - self.start)
        return round(pace * (self.steps - self.done), 1)

    def close(self) -> None:
        """Leave the terminal to others."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> Phase:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _left(self) -> str:
        return "" if not (eta := self.eta_seconds()) else f"{duration(eta)} left"


def duration(seconds: float) -> str:
    """`42s`, `3m07s`, `2h05m`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
