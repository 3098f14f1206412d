"""What an engine is asked to do, and what it must do: the contract behind `ablate sweep FILE --engine NAME`."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

from ablate.core.errors import UserError
from ablate.core.registry import Registry
from ablate.runs.folder import RunFiles, is_finished, read_result
from ablate.sweeps.plan import PlannedRun
from ablate.sweeps.schema import Sweep

# Exit statuses: all runs are finished; one has failed; some are still to come, on other machines or in a queue.
OK, SOME_FAILED, ELSEWHERE = 0, 1, 4
LAUNCHER = (sys.executable, "-m", "ablate.cli")


@dataclass(frozen=True)
class Work:
    """The runs that an engine is asked for, and how.

    Attributes:
        sweep: with the connectors and the values that were asked for.
        overrides: `key=value` for every run; they are in the runs' arguments too.
        planned: all runs of the sweep, in order. Empty where only W&B's server knows them.
        runs: those of them that are asked for now.
        console: where to print.
        again: the command that continues, as arguments.
        jobs: runs at the same time; None where the engine is to choose.
        threads: of each process of a run. They change the last bits of a result on the CPU, so they are one number for
            a whole sweep, whichever engine runs it.
        rerun: run finished runs again if the source that they were made of has changed.
        retries: how often a run is tried again that a signal has ended, or for which memory was too small.
        wait: wait until no other process or machine has one of the runs.
        prepare: called once with a run's config before the first run, to make what all runs share.
        launcher: the program that is given a run's arguments.
    """

    sweep: Sweep
    overrides: Sequence[str]
    planned: Sequence[PlannedRun]
    runs: Sequence[PlannedRun]
    console: Console
    again: Sequence[str] = ()
    jobs: int | None = None
    threads: int = 1
    rerun: bool = False
    retries: int = 0
    wait: bool = False
    prepare: Callable[[Any], None] | None = None
    launcher: Sequence[str] = LAUNCHER

    def unfinished(self) -> list[PlannedRun]:
        return [run for run in self.runs if not self.is_done(run)]

    def is_done(self, run: PlannedRun) -> bool:
        return is_finished(run.folder) and not (self.rerun and changed(run))

    def prepare_runs(self) -> None:
        """Make what the unfinished runs share, if there are any."""
        if self.prepare and (left := self.unfinished()):
            self.prepare(left[0].config)


class Engine(ABC):
    """How the runs of a sweep get machines.

    The fields of its constructor are options of `ablate sweep`: `engine.NAME=VALUE`, or the lines of the file given by
    `--engine FILE.yaml`. The file system is the only state of a sweep: a run is finished if its result.json says so,
    and taken while its lock is held. So another engine may continue what one has begun, and two may share a sweep.
    """

    needs_plan: ClassVar[bool] = True
    """Whether the runs must be known in advance; where not, a sweep may have a method that only W&B's server runs."""

    def __init__(self) -> None:  # noqa: B027  an engine without options
        pass

    def default_threads(self, jobs: int | None, runs: Sequence[PlannedRun]) -> int:
        """Threads of each process, where neither the user nor an earlier run of the sweep says how many."""
        return 1

    @abstractmethod
    def run(self, work: Work) -> int:
        """Run what is left of the work, or hand it on to machines that will.

        Returns:
            0 if all runs that were asked for are finished, 1 if one has failed, 4 if some are elsewhere, 128 + signal
            if interrupted.

        Raises:
            UserError: before anything runs, for what is missing.
        """

    def stop(self, runs: Sequence[PlannedRun], console: Console) -> int:
        """Ask those of the runs that this engine has to save and stop, and say how many.

        Returns:
            0 if all were asked, 4 if some are out of reach.
        """
        return OK

    def held(self, runs: Sequence[PlannedRun]) -> Mapping[Path, str]:
        """The folders of those of the runs that wait in a queue of this engine, each with a word on its state."""
        return {}


registry: Registry[type[Engine]] = Registry(
    "engine", base=Engine, package="ablate.sweeps.engines", entry_points="ablate.engines"
)
register = registry.register


def processes(run: PlannedRun) -> int:
    """Processes of a run: one a device on each of its nodes."""
    return int(run.settings.get("train.devices", 1)) * nodes_of(run)


def nodes_of(run: PlannedRun) -> int:
    return int(run.settings.get("train.num_nodes", 1))


def changed(run: PlannedRun) -> list[str]:
    """The modules of a finished run's source that are others now."""
    if run.config is None:
        from ablate.core.files import read_mapping
        from ablate.core.sources import changed_sources

        return changed_sources((read_mapping(RunFiles(run.folder).provenance) or {}).get("sources"))
    from ablate.runs.provenance import out_of_date

    return out_of_date(run.config)


def headline(folder: Path) -> str:
    """The mean of a finished run's tasks, as the end of a line; nothing where there is none."""
    scores = [task["score"] for task in (read_result(folder) or {}).get("scores", {}).values()]
    return f", mean of {len(scores)} tasks {sum(scores) / len(scores):.1f}" if scores else ""


def at_least(name: str, value: int | None, least: int) -> None:
    """Raises UserError if the value is below."""
    if value is not None and value < least:
        raise UserError(f"{name}: got {value}, expected {least} or more.")
