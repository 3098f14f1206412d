"""The engine for one machine: processes of its own, a fixed number at the same time."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from ablate.core.locks import RunLock
from ablate.core.processes import cores
from ablate.runs.folder import RunFiles
from ablate.sweeps.engines.base import ELSEWHERE, OK, Engine, Work, processes, register
from ablate.sweeps.engines.environment import environment_of
from ablate.sweeps.engines.runner import Runner
from ablate.sweeps.engines.stopping import stop_signals
from ablate.sweeps.plan import PlannedRun


@register("local")
class Local(Engine):
    """Runs on this machine, `--jobs` at the same time.

    Each job has its own GPUs, as many as the largest run takes; jobs beyond the number of GPUs share them, which is
    said. Any number of machines that share a folder may work on one sweep at the same time.
    """

    def default_threads(self, jobs: int | None, runs: Sequence[PlannedRun]) -> int:
        # Runs side by side that each take all cores slow one another down several times over.
        return max(1, cores() // ((jobs or 1) * max((processes(run) for run in runs), default=1)))

    def run(self, work: Work) -> int:
        environment = environment_of(work.jobs or 1, work.threads, work.runs)
        runner = Runner(work, environment, launcher=lambda _: work.launcher)
        _say_contention(environment.jobs, environment.slots, work.threads, work.console)
        work.prepare_runs()
        with stop_signals() as stop:
            runner.run(stop)
        runner.report(stop.signum)
        return runner.status(stop.signum)

    def stop(self, runs: Sequence[PlannedRun], console: Console) -> int:
        asked: set[int] = set()
        elsewhere = []
        for run in runs:
            lock = RunLock(RunFiles(run.folder).sweep_lock)
            if not lock.is_taken():
                continue
            pid = lock.process_here()
            if pid is None:
                elsewhere.append(f"{run.label}: {lock.owner()}")
            elif pid not in asked:
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
        console.print(f"Asked {len(asked)} process{'es' if len(asked) != 1 else ''} on this machine to stop.")
        for line in elsewhere:
            console.print(Text(f"  {line}: stop it there", style="yellow"))
        return ELSEWHERE if elsewhere else OK


def _say_contention(jobs: int, slots: Sequence[Sequence[str]], threads: int, console: Console) -> None:
    if (gpus := {gpu for slot in slots for gpu in slot}) and len(gpus) < jobs:
        console.print(f"{jobs} jobs share {len(gpus)} GPU{'s' if len(gpus) > 1 else ''}: their memory must suffice.")
    if not gpus and jobs * threads > cores():
        console.print(
            f"{jobs} jobs of {threads} threads share {cores()} core{'s' if cores() > 1 else ''} and slow one another "
            "down. A sweep keeps the number of threads that its first runs had, as it changes a result's last bits.",
            style="yellow",
        )
