"""The engine for a SLURM cluster: an array job with a task for each run.

A task works on its run as the local engine does (lock, log, failure, retries), so a run is the same wherever it ran. A
run of several processes is started by `srun`, a task a process. Signals have one owner, the task of the array: it asks
the training to save, and asks SLURM to put the run back in the queue where the time limit was the reason. Lightning's
own requeue is never used: it sees no SLURM, or a step whose signals it does not get first.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ablate.core.errors import UserError
from ablate.core.files import read_mapping, write_json
from ablate.core.launchers import without_launcher
from ablate.runs.folder import RunFiles, is_finished
from ablate.sweeps.display import count_runs
from ablate.sweeps.engines.base import ELSEWHERE, OK, SOME_FAILED, Engine, Work, nodes_of, processes, register
from ablate.sweeps.plan import PlannedRun

FOLDER = "slurm"  # in a sweep's group folder
WAIT_SECONDS = 5.0
COMMAND_SECONDS = 60.0


@register("slurm")
class Slurm(Engine):
    """An array job of SLURM, a task a run; `--jobs` limits how many run at the same time.

    The same command again submits what is left: runs that are finished, or that a job has already, are left out. The
    scripts, the list of runs and the tasks' output are in GROUP/slurm/, each run's log in its own folder. The folder
    of runs, the data and the Python environment must be visible on the nodes.

    Args:
        time: limit of a run, in SLURM's form: "04:00:00" or "1-00:00:00"; "" for the partition's. A run that reaches it
            saves, goes back into the queue and continues there.
        partition: where the jobs go; "" for the cluster's default.
        gpus: of each process; -1 for one, and none where `train.accelerator` is cpu.
        memory: of each node, in SLURM's form: "32G"; "" for the default.
        signal_seconds: how long before its time limit a run is asked to save.
        options: other options of sbatch without their hyphens, such as {account: vision, constraint: a100}.
        setup: shell lines before each run, such as [module load cuda].
    """

    def __init__(
        self,
        *,
        time: str = "",
        partition: str = "",
        gpus: int = -1,
        memory: str = "",
        signal_seconds: int = 120,
        options: Mapping[str, str | int] | None = None,
        setup: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.time, self.partition, self.gpus, self.memory = time, partition, gpus, memory
        self.signal_seconds, self.options, self.setup = signal_seconds, dict(options or {}), list(setup)

    def run(self, work: Work) -> int:
        held = self.held(work.runs)
        left = [run for run in work.unfinished() if run.folder not in held]
        for run in work.runs:
            if run.folder in held:
                work.console.print(Text(f"  {run.label}: {held[run.folder]}", style="yellow"))
        if left:
            work.prepare_runs()
            for runs in _alike(left):
                job = self._submit(work, runs)
                work.console.print(Text(f"Submitted job {job}: {count_runs(len(runs))}, logs in {_folder(runs[0])}"))
        if work.wait:
            return self._wait(work)
        finished = sum(work.is_done(run) for run in work.runs)
        work.console.print(f"{finished} of {count_runs(len(work.runs))} finished.", style="bold")
        if finished < len(work.runs):
            again = shlex.join(work.again)
            work.console.print(Text(f"How they are: {again} --dry-run\nWhat is left, again: {again}"), soft_wrap=True)
        return OK if finished == len(work.runs) else ELSEWHERE

    def stop(self, runs: Sequence[PlannedRun], console: Console) -> int:
        tasks = self._tasks(runs)
        if not tasks:
            return OK
        # To the batch step, which is the run's runner: it saves and does not go back into the queue.
        pending = [task for task, (_, state) in tasks.items() if state == "PENDING"]
        running = [task for task in tasks if task not in pending]
        if pending:
            _slurm("scancel", *pending)
        if running:
            _slurm("scancel", "--batch", "--signal=INT", *running)
        console.print(f"Asked {len(tasks)} task{'s' if len(tasks) > 1 else ''} of SLURM to stop.")
        return OK

    def held(self, runs: Sequence[PlannedRun]) -> Mapping[Path, str]:
        return {folder: f"in job {task}, {state}" for task, (folder, state) in self._tasks(runs).items()}

    def _tasks(self, runs: Sequence[PlannedRun]) -> dict[str, tuple[Path, str]]:
        """The tasks that SLURM has of these runs -> the run's folder and the task's state."""
        wanted = {str(run.folder.resolve()): run.folder for run in runs}
        jobs = {}
        for group in dict.fromkeys(run.folder.parent for run in runs):
            for file in (group / FOLDER).glob("*.json"):
                record = read_mapping(file) or {}
                if job := record.get("job"):
                    jobs[str(job)] = [each["folder"] for each in record["runs"]]
        if not jobs:
            return {}
        tasks = {}
        listed = _slurm("squeue", "--noheader", "--array", "--format=%F %K %T", "--user", str(os.getuid()))
        for line in listed.splitlines():
            job, index, state = line.split()
            folder = jobs.get(job, [])[int(index)] if index.isdecimal() and job in jobs else None
            if folder in wanted:
                tasks[f"{job}_{index}"] = (wanted[folder], state)
        return tasks

    def _submit(self, work: Work, runs: Sequence[PlannedRun]) -> str:
        folder = _folder(runs[0])
        folder.mkdir(parents=True, exist_ok=True)
        number = next(number for number in range(10**6) if not (folder / f"{number}.json").exists())
        record = folder / f"{number}.json"
        content = {
            "sweep": work.sweep.name,
            "path": str(work.sweep.path),
            "threads": work.threads,
            "rerun": work.rerun,
            "retries": work.retries,
            "launcher": list(work.launcher),
            "runs": [
                {
                    "label": run.label,
                    "arguments": list(run.arguments),
                    "folder": str(run.folder.resolve()),
                    "settings": dict(run.settings),
                }
                for run in runs
            ],
        }
        write_json(record, content)
        script = folder / f"{number}.sh"
        script.write_text("\n".join(self._script(work, runs, record.resolve())) + "\n", encoding="utf-8")
        # sbatch gives its variables to the job, where those of a job around us would be taken for the job's own.
        environment = {
            key: value for key, value in without_launcher(os.environ).items() if not key.startswith("SLURM_J")
        }
        answer = _slurm("sbatch", "--parsable", str(script), environment=environment)
        job = answer.strip().partition(";")[0]
        write_json(record, content | {"job": job})
        return job

    def _script(self, work: Work, runs: Sequence[PlannedRun], record: Path) -> Iterator[str]:
        number, nodes = processes(runs[0]), nodes_of(runs[0])
        on_cpu = runs[0].settings.get("train.accelerator") == "cpu"
        gpus = (0 if on_cpu else 1) if self.gpus < 0 else self.gpus
        most = f"%{work.jobs}" if work.jobs else ""
        yield "#!/bin/bash"
        lines = {
            "job-name": f"ablate-{work.sweep.name}",
            "array": f"0-{len(runs) - 1}{most}",
            "output": f"{record.parent}/%A_%a.out",
            "open-mode": "append",
            "nodes": nodes,
            "ntasks-per-node": number // nodes,
            "cpus-per-task": work.threads,
            "gres": f"gpu:{gpus * number // nodes}" if gpus else "",
            "time": self.time,
            "partition": self.partition,
            "mem": self.memory,
            "signal": f"B:USR1@{self.signal_seconds}",
        }
        for name, value in {**lines, **self.options}.items():
            if value != "":
                yield f"#SBATCH --{name}={value}"
        yield "#SBATCH --requeue"
        yield from self.setup
        yield f"cd {shlex.quote(os.getcwd())}"
        # exec: the task itself, and no shell, gets the signals of the batch step.
        yield f"exec {shlex.quote(sys.executable)} -u -m ablate.sweeps.engines.slurm_task {shlex.quote(str(record))}"

    def _wait(self, work: Work) -> int:
        shown: dict[Path, str] = {}
        while True:
            held = self.held(work.runs)
            for run in work.runs:
                state = "finished" if is_finished(run.folder) else held.get(run.folder, "")
                if state and shown.get(run.folder, state) != state:
                    work.console.print(Text(f"  {run.label}: {state}"), soft_wrap=True)
                shown[run.folder] = state
            if not held:
                break
            time.sleep(WAIT_SECONDS)
        left = [run for run in work.runs if not is_finished(run.folder)]
        for run in left:
            work.console.print(Text(f"  {run.label}: not finished, log {RunFiles(run.folder).log}", style="red"))
        if left:
            work.console.print(Text(f"Continue with:  {shlex.join(work.again)}"), soft_wrap=True)
        return SOME_FAILED if left else OK


def _alike(runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Runs that take the same machines: an array's tasks are all alike."""
    groups: dict[tuple, list[PlannedRun]] = {}
    for run in runs:
        keys = ("train.devices", "train.num_nodes", "train.accelerator")
        groups.setdefault((run.folder.parent, *(run.settings.get(key) for key in keys)), []).append(run)
    return list(groups.values())


def _folder(run: PlannedRun) -> Path:
    return run.folder.parent / FOLDER


def _slurm(program: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What one of SLURM's programs answers.

    Raises:
        UserError: it is not there, does not answer, or refuses.
    """
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=COMMAND_SECONDS, env=environment
        )
    except FileNotFoundError:
        raise UserError(
            f"{program} is not on this machine: run this on a login node of the cluster, or without --engine slurm."
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{program} did not answer within {COMMAND_SECONDS:.0f} s. Try again later.") from None
    if done.returncode:
        words = re.sub(r"\s+", " ", done.stderr).strip()
        raise UserError(f"{program} refused ({words or f'exit status {done.returncode}'}).")
    return done.stdout
