"""Works through the runs of a sweep on this machine.

Every run is a process of its own (`ablate train ...`), so a crash, a leak or a killed worker stays in that run. The
file system is the only state: a run is done if its result.json says so, it is taken while its lock is held, and all
others are still to do. So any number of runners, on any number of machines, may work on one folder.
"""

import shlex
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path

from ablate.core.locks import RunLock, is_locked
from ablate.core.sources import set_aside
from ablate.runs.folder import RunFiles, is_finished, read_result
from ablate.sweeps.display import Display, SweepStatus, count_runs, duration, expected_seconds, sweep_seconds
from ablate.sweeps.engines import attempts
from ablate.sweeps.engines.attempts import (
    Attempt,
    how_it_ended,
    is_trained_elsewhere,
    log_tail,
    may_end_otherwise,
    where_it_continues,
)
from ablate.sweeps.engines.base import ELSEWHERE, OK, SOME_FAILED, Work, changed, headline
from ablate.sweeps.engines.environment import Environment
from ablate.sweeps.engines.stopping import Stop
from ablate.sweeps.manifest import record_failure
from ablate.sweeps.plan import PlannedRun

# How long a training may take to end cleanly: the first to finish its step and save, the second to unwind.
GRACE_SECONDS = (60.0, 15.0)


class Runner:
    """Works through `runs`; afterwards `finished`, `failed`, `busy` and `left` say what became of each."""

    def __init__(self, work: Work, environment: Environment, launcher: Callable[[PlannedRun], Sequence[str]]) -> None:
        """
        Args:
            environment: of the runs; it has as many jobs as run at the same time.
            launcher: of a run, the program that is given its arguments.
        """
        self.work, self.environment, self.launcher = work, environment, launcher
        self.jobs = environment.jobs
        self.retried: Counter[Path] = Counter()
        self.display = Display(work.console)
        self.left: deque[PlannedRun] = deque(work.runs)
        self.active: list[Attempt] = []
        self.finished: list[PlannedRun] = []
        self.failed: list[PlannedRun] = []
        self.busy: list[tuple[PlannedRun, str]] = []  # with who runs them
        self.seconds: dict[str, list[float]] = {}  # per kind of run
        self.started = time.monotonic()

    def run(self, stop: Stop) -> None:
        self._skip_finished()
        with self.display:
            try:
                while (self.left or self.active or (self.work.wait and self.busy)) and not stop.signum:
                    self._start_runs()
                    self._collect_ended()
                    self._show()
                    if not self.left and not self.active:
                        self._return_to_abandoned()
                    if self.active or self.busy:
                        time.sleep(attempts.POLL_SECONDS)
            finally:
                self._stop_active(stop)

    def report(self, signum: int) -> None:
        """Say how the sweep ended, and what to do next."""
        line = self.display.line
        for run, owner in self.busy:
            line(f"  {run.label}: {owner} runs it", "yellow")
        for run in self.failed:
            line(f"  {run.label}: failed, log {RunFiles(run.folder).log}", "red")
        counts = [f"{len(self.finished)} of {len(self.work.runs)} runs finished"]
        counts += [f"{len(self.failed)} failed"] if self.failed else []
        counts += [f"{len(self.busy)} running elsewhere"] if self.busy else []
        ended = "interrupted" if signum else "ended"
        took = duration(time.monotonic() - self.started)
        line(f"Sweep {self.work.sweep.name} {ended} after {took}: {', '.join(counts)}.", "bold")
        if self.left or self.failed:
            line(f"Continue with:  {shlex.join(self.work.again)}")

    def status(self, signum: int) -> int:
        """The exit status, see `Engine.run`."""
        if signum:
            return 128 + signum
        return SOME_FAILED if self.failed else ELSEWHERE if self.busy else OK

    def _skip_finished(self) -> None:
        outdated: dict[str, list[PlannedRun]] = {}
        for run in self.work.runs:
            if is_finished(run.folder) and (modules := ", ".join(changed(run))):
                outdated.setdefault(modules, []).append(run)
            if self.work.is_done(run):
                self._note_finished(run)
        done = set(map(id, self.finished))
        self.left = deque(run for run in self.left if id(run) not in done)
        skipped = f", {len(self.finished)} already finished" if self.finished else ""
        together = f", {self.jobs} at a time" if self.jobs > 1 and len(self.left) > 1 else ""
        runs = count_runs(len(self.work.runs))
        self.display.line(f"Sweep {self.work.sweep.name}: {runs}{skipped}{together}", "bold")
        for modules, whose in outdated.items():
            count = "1 finished run was" if len(whose) == 1 else f"{len(whose)} finished runs were"
            do = "run again" if self.work.rerun else "skipped; --rerun runs them again and keeps the old folders"
            self.display.line(f"  {count} made before {modules} changed: {do}", "yellow")

    def _note_finished(self, run: PlannedRun, seconds: float | None = None) -> None:
        self.finished.append(run)
        if seconds is None:
            cost = (read_result(run.folder) or {}).get("cost", {})
            seconds = cost.get("train_seconds", 0) + cost.get("eval_seconds", 0)
        if seconds:
            self.seconds.setdefault(run.kind, []).append(seconds)

    def _start_runs(self) -> None:
        while self.left and len(self.active) < self.jobs:
            run = self.left.popleft()
            lock = RunLock(RunFiles(run.folder).sweep_lock)
            if not lock.acquire():
                self.busy.append((run, lock.owner()))
                continue
            if self.work.is_done(run):  # by another runner, since we looked
                lock.release()
                self._note_finished(run)
                continue
            if is_locked(RunFiles(run.folder).lock):
                lock.release()
                self.busy.append((run, "a training of an earlier runner"))
                continue
            try:
                self._start(run, lock)
            except BaseException:
                lock.release()
                raise

    def _start(self, run: PlannedRun, lock: RunLock) -> None:
        if is_finished(run.folder):
            self.display.line(f"  {run.label}: the old run is {set_aside(run.folder)}", "dim")
        slot = min(set(range(self.jobs)) - {active.slot for active in self.active})
        environment = self.environment.for_slot(slot)
        self.active.append(Attempt.start(run, lock, slot, self.launcher(run), environment))
        self.display.line(f"  {run.label}: started{where_it_continues(run.folder)}", "dim")

    def _collect_ended(self) -> None:
        for active in list(self.active):
            active.lock.refresh()
            if active.process.poll() is not None:
                self._end(active)

    def _end(self, active: Attempt) -> None:
        self.active.remove(active)
        run = active.run
        active.end_other_ranks()
        if is_finished(run.folder):
            active.lock.release()
            self._note_finished(run, active.elapsed)
            self.display.line(f"  {run.label}: finished in {duration(active.elapsed)}{headline(run.folder)}", "green")
            return
        if is_trained_elsewhere(run.folder):
            # A runner was killed before it noted what it had started: that training is still at work.
            active.lock.release()
            self.busy.append((run, "a training of an earlier runner"))
            return
        tail = log_tail(RunFiles(run.folder).log)
        record_failure(run.folder, active.process.returncode, tail)
        active.lock.release()
        if self.retried[run.folder] < self.work.retries and may_end_otherwise(active.process.returncode, tail):
            self.retried[run.folder] += 1
            self.left.append(run)
            how = how_it_ended(active.process.returncode)
            self.display.line(
                f"  {run.label}: {how}; tried again ({self.retried[run.folder]} of {self.work.retries})", "yellow"
            )
            return
        self.failed.append(run)
        how = how_it_ended(active.process.returncode)
        self.display.line(f"  {run.label}: failed after {duration(active.elapsed)} ({how})", "bold red")
        for text in tail:
            self.display.line(f"    │ {text}", "red")

    def _return_to_abandoned(self) -> None:
        """Runs that another runner had taken: it may have finished them since, or died over them."""
        waiting, self.busy = self.busy, []
        for run, owner in waiting:
            if self.work.is_done(run):
                self._note_finished(run)
            elif RunLock(RunFiles(run.folder).sweep_lock).is_taken() or is_locked(RunFiles(run.folder).lock):
                self.busy.append((run, owner))
            else:
                self.left.append(run)

    def _stop_active(self, stop: Stop) -> None:
        """End what runs: SIGINT (finish the step, save), then SIGTERM, then SIGKILL.

        Further signals change nothing, as a scheduler and a wrapper send the same request twice; SIGQUIT does.
        """
        if not self.active:
            return
        if stop.signum and not stop.at_once:
            self.display.line(r"Stopping: each run finishes its step and saves. Ctrl-\ stops at once.", "yellow")
        steps = [(signal.SIGINT, GRACE_SECONDS[0]), (signal.SIGTERM, GRACE_SECONDS[1]), (signal.SIGKILL, 10.0)]
        for signum, grace in steps:
            if stop.at_once and signum != signal.SIGKILL:
                continue
            for active in self.active:
                self.send(active, signum)
            deadline = time.monotonic() + grace
            while (
                self._still_running() and time.monotonic() < deadline and (signum == signal.SIGKILL or not stop.at_once)
            ):
                time.sleep(attempts.POLL_SECONDS)
            if not self._still_running():
                break
        for active in self.active:
            active.lock.release()
            if is_finished(active.run.folder):
                self._note_finished(active.run)
            else:
                self.left.appendleft(active.run)
        self.active = []

    def send(self, active: Attempt, signum: int) -> None:
        """Signal a run in progress."""
        active.send(signum)

    def _still_running(self) -> bool:
        return any(active.process.poll() is None for active in self.active)

    def _show(self) -> None:
        running, statuses = [], []
        for active in self.active:
            progress = active.progress()
            expected = expected_seconds(active.run.kind, self.seconds)
            running.append((active.elapsed, active.seconds_left(progress, expected)))
            statuses.append(active.status(progress))
        waiting = [expected_seconds(run.kind, self.seconds) for run in self.left]
        self.display.update(
            SweepStatus(
                name=self.work.sweep.name,
                total=len(self.work.runs),
                finished=len(self.finished),
                failed=len(self.failed),
                elapsed=time.monotonic() - self.started,
                remaining=sweep_seconds(running, waiting, self.jobs),
                running=statuses,
            )
        )
