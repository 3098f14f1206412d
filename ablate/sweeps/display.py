"""What a sweep shows while it runs: a live panel on a terminal, plain lines elsewhere."""

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

PLAIN_INTERVAL = 30.0  # seconds between lines about a run in progress, where the output is not a terminal


@dataclass(frozen=True)
class RunStatus:
    """One run in progress: its label, seconds since its start, what it does now and which part of it is done."""

    label: str
    elapsed: float
    activity: str = ""
    fraction: float | None = None


@dataclass(frozen=True)
class SweepStatus:
    """The whole sweep at one moment. `remaining` is the expected number of seconds, None while nothing is known."""

    name: str
    total: int
    finished: int
    failed: int
    elapsed: float
    remaining: float | None
    running: Sequence[RunStatus] = ()

    def summary(self) -> str:
        parts = [f"{self.finished} of {self.total} runs"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.remaining is not None and self.running:
            parts.append(f"about {duration(self.remaining)} left")
        return " · ".join(parts)


def count_runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


class Display:
    """Shows a sweep's progress. Use as a context manager; `line` prints something that stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._spinners: dict[str, Spinner] = {}
        self._last_plain = time.monotonic()

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def line(self, text: str, style: str = "") -> None:
        """Print a line above the live panel; it stays when the sweep ends."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def update(self, status: SweepStatus) -> None:
        """Show the present state; call it as often as is convenient."""
        if self._live:
            self._live.update(self._panel(status))
        elif time.monotonic() - self._last_plain >= PLAIN_INTERVAL:
            self._last_plain = time.monotonic()
            for run in status.running:
                self.line(f"  {describe_run(run)} · sweep: {status.summary()}")

    def _panel(self, status: SweepStatus) -> RenderableType:
        # A run that is half done counts half.
        done = status.finished + status.failed + sum(run.fraction or 0.0 for run in status.running)
        runs = Table.grid(padding=(0, 1))
        for run in status.running:
            spinner = self._spinners.setdefault(run.label, Spinner("dots"))
            bar = ProgressBar(total=1.0, completed=run.fraction or 0.0, width=16, pulse=run.fraction is None)
            runs.add_row(spinner, Text(run.label, style="bold"), bar, Text(duration(run.elapsed)), Text(run.activity))
        total = Table.grid(padding=(0, 1))
        total.add_row(
            Text(f"sweep {status.name}", style="bold cyan"),
            ProgressBar(total=status.total, completed=done, width=24),
            Text(f"{status.summary()} · {duration(status.elapsed)} so far"),
        )
        return Group(runs, total)


def describe_run(run: RunStatus) -> str:
    """A run in progress as one plain line."""
    percent = "" if run.fraction is None else f"{run.fraction:.0%}"
    return " · ".join(part for part in (run.label, percent, run.activity, duration(run.elapsed)) if part)


def duration(seconds: float) -> str:
    """75 -> "1:15", 3700 -> "1:01:40", 100000 -> "1 day, 3:46:40"."""
    text = str(timedelta(seconds=max(0, round(seconds))))
    return text.removeprefix("0:").removeprefix("0") if text.startswith("0:") else text


def expected_seconds(kind: str, known: Mapping[str, Sequence[float]]) -> float | None:
    """How long a run of this kind (a connector) takes, from runs that are done; of any kind if none of its own is."""
    alike = known.get(kind) or [seconds for each in known.values() for seconds in each]
    return sum(alike) / len(alike) if alike else None


def sweep_seconds(
    running: Sequence[tuple[float, float | None]], waiting: Sequence[float | None], slots: int
) -> float | None:
    """How long a sweep still takes, when each free slot takes the next run in order.

    Args:
        running: of each run in progress, its seconds so far and those left (None where nothing is known).
        waiting: how long each run takes that has not started, in order (None where nothing is known). It then counts
            with the mean of the other estimates of whole runs.
        slots: runs at the same time.

    Returns:
        Seconds until the last run ends; None where nothing is known of any run.
    """
    whole = [elapsed + left for elapsed, left in running if left is not None]
    whole += [seconds for seconds in waiting if seconds is not None]
    if not whole and (running or waiting):
        return None
    usual = sum(whole) / len(whole) if whole else 0.0
    ends = [max(0.0, usual - elapsed) if left is None else left for elapsed, left in running]
    ends += [0.0] * (slots - len(ends))
    heapq.heapify(ends)
    last = max(ends)
    for seconds in waiting:
        end = heapq.heappop(ends) + (usual if seconds is None else seconds)
        heapq.heappush(ends, end)
        last = max(last, end)
    return last
