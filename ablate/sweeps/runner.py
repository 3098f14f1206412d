"""The local runner: a sweep without a server.

Every run is a process of its own (`ablate train ...`), so a crash, a leak or a killed worker stays in that run. The
file system is the only state: a run is done if its result.json says so, it is taken while its lock is held, and all
others are still to do. So any number of runners, on any number of machines, may work on one folder.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ablate.core.console import PROGRESS_FILE
from ablate.core.errors import UserError
from ablate.core.files import read_mapping
from ablate.core.locks import RunLock, is_locked
from ablate.core.sources import changed_sources, set_aside
from ablate.runs.folder import RunFiles, is_finished, read_result
from ablate.sweeps.display import Display, RunStatus, SweepStatus, duration, expected_seconds, sweep_seconds
from ablate.sweeps.environment import Environment, environment_of
from ablate.sweeps.expand import shard
from ablate.sweeps.listing import list_runs, say_cap
from ablate.sweeps.manifest import clear_failure, record_failure, write_manifest
from ablate.sweeps.plan import PlannedRun, Resolver, adapted, plan, resolve_with_training
from ablate.sweeps.schema import Sweep, load_sweep
from ablate.sweeps.sharing import say_shared, share_runs
from ablate.tables import Run, collect, default_console, show
from ablate.tables.results import READ_SIZE

LOG_TAIL_LINES = 15
POLL_SECONDS = 0.2
LOCK_SECONDS = 2.0  # that processes may take to end which have been killed
# How long a training may take to end cleanly: the first to finish its step and save, the second to unwind.
GRACE_SECONDS = (60.0, 15.0)

OK, SOME_FAILED, ELSEWHERE = 0, 1, 4


def run_sweep(
    path: Path | str,
    only: Sequence[str] = (),
    shard_spec: str = "",
    jobs: int = 1,
    overrides: Sequence[str] = (),
    root: Path | str | None = None,
    *,
    baseline: str = "",
    prepare: Callable[[Any], None] | None = None,
    table: bool = True,
    rerun: bool = False,
    dry_run: bool = False,
    retries: int = 0,
    wait: bool = False,
    console: Console | None = None,
    resolve: Resolver = resolve_with_training,
    launcher: Sequence[str] = (sys.executable, "-m", "ablate.cli"),
) -> int:
    """Run what is left of a sweep and print its table.

    Args:
        path: the sweep file.
        only: connectors to run, see `plan`.
        shard_spec: "i/N" for the i-th of N machines, from 0; "" for all runs.
        jobs: how many runs at the same time. Each has its own GPUs, as many as the largest run takes; jobs beyond the
            number of GPUs share them, which is said.
        overrides: `key=value` for every run, see `plan`.
        root: the folder under which runs are written, the config's if None.
        baseline: the table's row that the others are compared with.
        prepare: called once with a run's config before the first run, to make what all runs share.
        table: whether to print and save the table at the end.
        rerun: run finished runs again if the source that they were made of has changed; the old folders are kept.
        dry_run: list the runs, and run and write nothing.
        retries: how often a run is tried again that a signal has ended, or for which memory was too small. Others would
            fail the same way.
        wait: wait for the runs that other runners have, and take up those that they leave.
        console: where to print; standard output if None.
        resolve: how arguments become a run's folder and settings.
        launcher: the program that is given a run's arguments.

    Returns:
        0 if all runs are finished; 1 if one has failed; 4 if other runners still have some; 128 + signal (130 for
        Ctrl-C) if interrupted.

    Raises:
        UserError: before anything runs, for a mistake in the file or in the arguments.
    """
    console = console or default_console()
    if jobs < 1:
        raise UserError(f"jobs: got {jobs}, expected 1 or more.")
    if retries < 0:
        raise UserError(f"retries: got {retries}, expected 0 or more.")
    sweep = load_sweep(path)
    with console.status("Checking the config of every run"):
        planned = plan(sweep, only=only, overrides=overrides, root=root, resolve=resolve)
    shared = share_runs(planned, earlier=not rerun)
    planned = list(shared.runs)
    mine = shard(planned, shard_spec)
    say_cap(adapted(sweep, only, overrides)[0], console)
    say_shared(shared, console)
    if dry_run:
        list_runs(mine, console)
        return OK
    write_manifest(sweep, planned)
    runner = _Runner(
        sweep, mine, jobs, console, launcher, environment_of(jobs, mine), rerun=rerun, retries=retries, wait=wait
    )
    if (gpus := {gpu for slot in runner.environment.slots for gpu in slot}) and len(gpus) < jobs:
        console.print(f"{jobs} jobs share {len(gpus)} GPU{'s' if len(gpus) > 1 else ''}: their memory must suffice.")
    if prepare and (left := [run for run in mine if not runner.is_done(run)]):
        prepare(left[0].config)
    with _stop_signals() as stop:
        runner.run(stop)
    again = _command_line(sweep, only, shard_spec, jobs, overrides, root, baseline, retries)
    runner.report(stop.signum, shlex.join([*again, *["--rerun"] * rerun, *["--wait"] * wait]))
    if table:
        # With the sweep's other connectors, trained by an earlier call under the same settings.
        others = share_runs(plan(sweep, overrides=overrides, root=root, resolve=resolve)).runs if only else ()
        _print_table(planned, others, baseline, console)
    if stop.signum:
        return 128 + stop.signum
    return SOME_FAILED if runner.failed else ELSEWHERE if runner.busy else OK


@dataclass
class _Active:
    """A run in progress."""

    run: PlannedRun
    process: subprocess.Popen
    lock: RunLock
    slot: int
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started


@dataclass
class _Stop:
    """The signal that asked for an end; `at_once`: without saving."""

    signum: int = 0
    at_once: bool = False


class _Runner:
    """Works through `runs`; afterwards `finished`, `failed`, `busy` and `left` say what became of each."""

    def __init__(
        self,
        sweep: Sweep,
        runs: Sequence[PlannedRun],
        jobs: int,
        console: Console,
        launcher: Sequence[str],
        environment: Environment,
        *,
        rerun: bool = False,
        retries: int = 0,
        wait: bool = False,
    ) -> None:
        self.rerun, self.retries, self.wait = rerun, retries, wait
        self.retried: Counter[Path] = Counter()
        self.sweep, self.runs, self.jobs, self.launcher, self.environment = sweep, runs, jobs, launcher, environment
        self.display = Display(console)
        self.left: deque[PlannedRun] = deque(runs)
        self.active: list[_Active] = []
        self.finished: list[PlannedRun] = []
        self.failed: list[PlannedRun] = []
        self.busy: list[tuple[PlannedRun, str]] = []  # with who runs them
        self.seconds: dict[str, list[float]] = {}  # per kind of run
        self.started = time.monotonic()

    def run(self, stop: _Stop) -> None:
        self._skip_finished()
        with self.display:
            try:
                while (self.left or self.active or (self.wait and self.busy)) and not stop.signum:
                    self._start_runs()
                    self._collect_ended()
                    self._show()
                    if not self.left and not self.active:
                        self._return_to_abandoned()
                    if self.active or self.busy:
                        time.sleep(POLL_SECONDS)
            finally:
                self._stop_active(stop)

    def is_done(self, run: PlannedRun) -> bool:
        return is_finished(run.folder) and not (self.rerun and _changed(run))

    def report(self, signum: int, command: str) -> None:
        """Say how the sweep ended, and what to do next."""
        line = self.display.line
        for run, owner in self.busy:
            line(f"  {run.label}: {owner} runs it", "yellow")
        for run in self.failed:
            line(f"  {run.label}: failed, log {RunFiles(run.folder).log}", "red")
        counts = [f"{len(self.finished)} of {len(self.runs)} runs finished"]
        counts += [f"{len(self.failed)} failed"] if self.failed else []
        counts += [f"{len(self.busy)} running elsewhere"] if self.busy else []
        ended = "interrupted" if signum else "ended"
        line(
            f"Sweep {self.sweep.name} {ended} after {duration(time.monotonic() - self.started)}: {', '.join(counts)}.",
            "bold",
        )
        if self.left or self.failed:
            line(f"Continue with:  {command}")

    def _skip_finished(self) -> None:
        changed: dict[str, list[PlannedRun]] = {}
        for run in self.runs:
            if is_finished(run.folder) and (modules := ", ".join(_changed(run))):
                changed.setdefault(modules, []).append(run)
            if self.is_done(run):
                self._note_finished(run)
        done = set(map(id, self.finished))
        self.left = deque(run for run in self.left if id(run) not in done)
        skipped = f", {len(self.finished)} already finished" if self.finished else ""
        together = f", {self.jobs} at a time" if self.jobs > 1 and len(self.left) > 1 else ""
        runs = "1 run" if len(self.runs) == 1 else f"{len(self.runs)} runs"
        self.display.line(f"Sweep {self.sweep.name}: {runs}{skipped}{together}", "bold")
        for modules, whose in changed.items():
            count = "1 finished run was" if len(whose) == 1 else f"{len(whose)} finished runs were"
            do = "run again" if self.rerun else "skipped; --rerun runs them again and keeps the old folders"
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
            if self.is_done(run):  # by another runner, since we looked
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
        run.folder.mkdir(parents=True, exist_ok=True)
        clear_failure(run.folder)
        # A progress file of an earlier attempt would be taken for this one's.
        (run.folder / PROGRESS_FILE).unlink(missing_ok=True)
        command = [*self.launcher, *run.arguments]
        with open(RunFiles(run.folder).log, "a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment.for_slot(slot),
                # A terminal sends Ctrl-C to its whole process group; the runner alone decides how a training ends.
                process_group=0,
            )
        lock.set_child(process.pid)
        self.active.append(_Active(run, process, lock, slot))
        self.display.line(f"  {run.label}: started{_where_it_continues(run.folder)}", "dim")

    def _collect_ended(self) -> None:
        for active in list(self.active):
            active.lock.refresh()
            if active.process.poll() is not None:
                self._end(active)

    def _end(self, active: _Active) -> None:
        self.active.remove(active)
        run = active.run
        # Other ranks of a run whose first one has died would live on.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(active.process.pid, signal.SIGKILL)
        if is_finished(run.folder):
            active.lock.release()
            self._note_finished(run, active.elapsed)
            self.display.line(f"  {run.label}: finished in {duration(active.elapsed)}{_headline(run.folder)}", "green")
            return
        if _is_trained_elsewhere(run.folder):
            # A runner was killed before it noted what it had started: that training is still at work.
            active.lock.release()
            self.busy.append((run, "a training of an earlier runner"))
            return
        tail = _log_tail(RunFiles(run.folder).log)
        record_failure(run.folder, active.process.returncode, tail)
        active.lock.release()
        if self.retried[run.folder] < self.retries and _may_end_otherwise(active.process.returncode, tail):
            self.retried[run.folder] += 1
            self.left.append(run)
            how = _how_it_ended(active.process.returncode)
            self.display.line(
                f"  {run.label}: {how}; tried again ({self.retried[run.folder]} of {self.retries})", "yellow"
            )
            return
        self.failed.append(run)
        how = _how_it_ended(active.process.returncode)
        self.display.line(f"  {run.label}: failed after {duration(active.elapsed)} ({how})", "bold red")
        for text in tail:
            self.display.line(f"    │ {text}", "red")

    def _return_to_abandoned(self) -> None:
        """Runs that another runner had taken: it may have finished them since, or died over them."""
        waiting, self.busy = self.busy, []
        for run, owner in waiting:
            if self.is_done(run):
                self._note_finished(run)
            elif RunLock(RunFiles(run.folder).sweep_lock).is_taken() or is_locked(RunFiles(run.folder).lock):
                self.busy.append((run, owner))
            else:
                self.left.append(run)

    def _stop_active(self, stop: _Stop) -> None:
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
                _send(active.process, signum)
            deadline = time.monotonic() + grace
            while (
                self._still_running() and time.monotonic() < deadline and (signum == signal.SIGKILL or not stop.at_once)
            ):
                time.sleep(POLL_SECONDS)
            if not self._still_running():
                break
        for active in self.active:
            active.lock.release()
            if is_finished(active.run.folder):
                self._note_finished(active.run)
            else:
                self.left.appendleft(active.run)
        self.active = []

    def _still_running(self) -> bool:
        return any(active.process.poll() is None for active in self.active)

    def _show(self) -> None:
        statuses, running = [], []
        for active in self.active:
            progress = read_mapping(active.run.folder / PROGRESS_FILE) or {}
            left = _seconds_left(active, progress, expected_seconds(active.run.kind, self.seconds))
            running.append((active.elapsed, left))
            statuses.append(_run_status(active, progress))
        waiting = [expected_seconds(run.kind, self.seconds) for run in self.left]
        self.display.update(
            SweepStatus(
                name=self.sweep.name,
                total=len(self.runs),
                finished=len(self.finished),
                failed=len(self.failed),
                elapsed=time.monotonic() - self.started,
                remaining=sweep_seconds(running, waiting, self.jobs),
                running=statuses,
            )
        )


def _changed(run: PlannedRun) -> list[str]:
    """The modules of the run's source that are others now."""
    if run.config is None:
        return changed_sources((read_mapping(RunFiles(run.folder).provenance) or {}).get("sources"))
    from ablate.runs.provenance import out_of_date

    return out_of_date(run.config)


def _run_status(active: _Active, progress: Mapping[str, Any]) -> RunStatus:
    steps, step = progress.get("steps") or 0, progress.get("step") or 0
    activity = f"{progress['phase']} {step}/{steps}" if progress.get("phase") else "starting"
    if loss := _last_loss(active.run.folder):
        activity += f" · loss {loss:.3f}"
    return RunStatus(active.run.label, active.elapsed, activity, step / steps if steps else None)


def _seconds_left(active: _Active, progress: Mapping[str, Any], expected: float | None) -> float | None:
    phase = progress.get("eta_seconds")
    guesses = [guess for guess in (phase, None if expected is None else expected - active.elapsed) if guess is not None]
    return max(0.0, *guesses) if guesses else None


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


def _where_it_continues(folder: Path) -> str:
    return ", from its checkpoint" if RunFiles(folder).checkpoint.exists() else ""


def _headline(folder: Path) -> str:
    scores = [task["score"] for task in (read_result(folder) or {}).get("scores", {}).values()]
    return f", mean of {len(scores)} tasks {sum(scores) / len(scores):.1f}" if scores else ""


def _how_it_ended(returncode: int) -> str:
    if returncode < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-returncode).name
            return f"killed by {name}" + (": out of memory?" if name == "SIGKILL" else "")
    return "it ended without a result.json" if returncode == 0 else f"exit status {returncode}"


def _is_trained_elsewhere(folder: Path) -> bool:
    """Whether another training holds the run's lock; what is left of ours gives it back as it ends."""
    deadline = time.monotonic() + LOCK_SECONDS
    while is_locked(RunFiles(folder).lock):
        if time.monotonic() > deadline:
            return True
        time.sleep(POLL_SECONDS)
    return False


def _may_end_otherwise(returncode: int, tail: Sequence[str]) -> bool:
    """A signal or full memory may be another program's doing; what a run itself complains of is there again."""
    return returncode < 0 or any("memory is full" in line for line in tail)


def stop_sweep(
    path: Path | str,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    root: Path | str | None = None,
    *,
    console: Console | None = None,
    resolve: Resolver = resolve_with_training,
) -> int:
    """Ask the runners on this machine that have runs of the sweep to stop: each run finishes its step and saves.

    Returns:
        0 if none is left that has one; 4 if runs are another machine's.
    """
    console = console or default_console()
    planned = plan(load_sweep(path), only=only, overrides=overrides, root=root, resolve=resolve)
    asked: set[int] = set()
    elsewhere = []
    for run in share_runs(planned).runs:
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
    console.print(f"Asked {len(asked)} process{'es' if len(asked) != 1 else ''} to stop.")
    for line in elsewhere:
        console.print(Text(f"  {line}: stop it there", style="yellow"))
    return ELSEWHERE if elsewhere else OK


def _log_tail(path: Path) -> list[str]:
    """The last lines of this attempt."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("$ ")]
    attempt = [line.rstrip() for line in lines[starts[-1] + 1 if starts else 0 :]]
    return [line for line in attempt if line][-LOG_TAIL_LINES:]


def _send(process: subprocess.Popen, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if signum == signal.SIGINT:
            # To the training alone: it ends its own workers, which need not all print a traceback.
            process.send_signal(signum)
        else:
            os.killpg(process.pid, signum)


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Note SIGINT, SIGTERM and SIGQUIT, which must not break the loop (in the main thread; others get none)."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(signum: int, _frame: object) -> None:
        stop.signum = stop.signum or signum
        stop.at_once = stop.at_once or signum == signal.SIGQUIT

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _command_line(
    sweep: Sweep,
    only: Sequence[str],
    shard_spec: str,
    jobs: int,
    overrides: Sequence[str],
    root: Path | str | None,
    baseline: str,
    retries: int,
) -> list[str]:
    """The same sweep again."""
    options = {
        "--connector": ",".join(only),
        "--shard": shard_spec,
        "--jobs": str(jobs) if jobs > 1 else "",
        "--root": "" if root is None else str(root),
        "--baseline": baseline,
        "--retries": str(retries) if retries else "",
    }
    given = [part for option, value in options.items() if value for part in (option, value)]
    return ["ablate", "sweep", str(sweep.path), *overrides, *given]


def _home(run: Run) -> Path:
    """A run's folder; of one that was read at another size, in whose folder that is written."""
    return (run.folder.parent if READ_SIZE in run.settings else run.folder).resolve()


def _print_table(planned: Sequence[PlannedRun], others: Sequence[PlannedRun], baseline: str, console: Console) -> None:
    """The table of this sweep's runs. Runs of other settings in the same folder are left out."""
    asked, begun = ({run.folder.resolve() for run in runs} for runs in (planned, others))
    groups = sorted({run.folder.parent for run in planned})
    found = collect(groups)
    runs = [run for run in found if (folder := _home(run)) in asked or (folder in begun and run.state != "not started")]
    if not any(run.state == "finished" for run in runs):
        console.print("No run has finished yet, so there is no table.")
        return
    from ablate.tables.ablation import ablation_table  # imports scipy, which takes a second

    try:
        table = ablation_table(runs, baseline)
    except UserError as error:
        if not baseline:
            raise
        # After hours of training, a baseline that is not there is no reason to show nothing.
        console.print(Text(f"{error} Compared with the default instead.", style="yellow"))
        table = ablation_table(runs)
    show(table, console=console)
    if left_out := len(found) - len(runs):
        which = "1 run" if left_out == 1 else f"{left_out} runs"
        folders = " ".join(map(str, groups))
        console.print(Text(f"{which} with other settings left out; `ablate table {folders}` shows all.", style="dim"))
