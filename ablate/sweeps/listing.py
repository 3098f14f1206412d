"""A sweep's runs as a list, without running any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ablate.core.locks import RunLock, is_locked
from ablate.runs.folder import RunFiles, is_finished
from ablate.sweeps.expand import grid_size
from ablate.sweeps.plan import PlannedRun
from ablate.sweeps.schema import Sweep


def say_cap(sweep: Sweep, console: Console) -> None:
    if sweep.method == "grid" and sweep.run_cap is not None and sweep.run_cap < (size := grid_size(sweep)):
        console.print(
            f"run_cap keeps the first {sweep.run_cap} of the grid's {size:,} runs, so rows may have fewer seeds than "
            "others, or none.",
            style="yellow",
        )


def list_runs(runs: Sequence[PlannedRun], console: Console, held: Mapping[Path, str]) -> None:
    """Each run with what has become of it, the visual tokens of an image, and its folder.

    Args:
        held: the folders of runs that wait in an engine's queue, each with a word on its state.
    """
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    grid.add_column("run")
    grid.add_column("state")
    grid.add_column("visual\ntokens", justify="right", vertical="bottom")
    grid.add_column("folder", overflow="fold")
    counts: Counter[str] = Counter()
    for run in runs:
        state = _state(run)
        if state != "running" and run.folder in held:
            state = held[run.folder]
        counts["queued" if state == held.get(run.folder) else state] += 1
        tokens = "" if run.visual_tokens is None else f"{run.visual_tokens:,}"
        grid.add_row(Text(run.label), Text(state), tokens, Text(str(run.folder)))
    console.print(grid)
    console.print(
        f"{len(runs)} runs: {', '.join(f'{count} {state}' for state, count in counts.items())}.", style="bold"
    )


def _state(run: PlannedRun) -> str:
    if is_finished(run.folder):
        return "finished"
    if RunLock(RunFiles(run.folder).sweep_lock).is_taken() or is_locked(RunFiles(run.folder).lock):
        return "running"
    if has_failed(run):
        return "failed"
    return "unfinished" if run.folder.is_dir() else "not started"


def has_failed(run: PlannedRun) -> bool:
    """Whether the run's last attempt failed; a run that is under way is none."""
    return RunFiles(run.folder).failure.is_file()
