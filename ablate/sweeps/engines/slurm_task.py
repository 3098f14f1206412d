"""One task of an array job: works on its run, and puts it back into the queue where the time limit ended it.

python -m ablate.sweeps.engines.slurm_task RECORD.json
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ablate.core.files import read_mapping
from ablate.runs.folder import RunFiles
from ablate.sweeps.engines.attempts import Attempt
from ablate.sweeps.engines.base import SOME_FAILED, Work, nodes_of, processes
from ablate.sweeps.engines.environment import environment_of
from ablate.sweeps.engines.runner import Runner
from ablate.sweeps.engines.stopping import SIGNALS, stop_signals
from ablate.sweeps.manifest import record_failure
from ablate.sweeps.plan import PlannedRun
from ablate.sweeps.schema import load_sweep
from ablate.tables import default_console

NO_PROGRESS = "It reached its time limit without a new checkpoint, and would again: set engine.time to a longer one."


def main(record_file: str) -> int:
    """Returns the exit status of the task: 0 if its run is finished or is to continue, see `Engine.run` for others."""
    record = read_mapping(Path(record_file)) or {}
    described = record["runs"][int(os.environ["SLURM_ARRAY_TASK_ID"])]
    run = PlannedRun(
        described["label"], {}, tuple(described["arguments"]), Path(described["folder"]), described["settings"]
    )
    work = Work(
        sweep=load_sweep(record["path"]),
        overrides=(),
        planned=(run,),
        runs=(run,),
        console=default_console(),
        again=("sbatch", record_file),
        threads=record["threads"],
        rerun=record["rerun"],
        retries=record["retries"],
        # Back in the queue after its node was lost: that node's lock counts until its owner has been silent for long.
        wait=int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0,
        launcher=tuple(record["launcher"]),
    )
    saved = _saved(run)
    environment = environment_of(1, work.threads, work.runs)
    with stop_signals((*SIGNALS, signal.SIGUSR1)) as stop:
        runner = _TaskRunner(work, environment, lambda each: [*_gang(each, work.threads), *work.launcher])
        runner.run(stop)
    runner.report(stop.signum)
    if stop.signum != signal.SIGUSR1 or runner.finished:
        return runner.status(stop.signum)
    if _saved(run) == saved:
        record_failure(run.folder, 128 + stop.signum, [NO_PROGRESS])
        print(NO_PROGRESS, flush=True)
        return SOME_FAILED
    return _requeue()


class _TaskRunner(Runner):
    """Gives srun the signal that it hands on to its tasks: SIGINT is a question to srun itself."""

    def send(self, active: Attempt, signum: int) -> None:
        gang = processes(active.run) > 1
        if gang and signum == signal.SIGINT:
            active.process.send_signal(signal.SIGTERM)
        else:
            super().send(active, signum)


def _gang(run: PlannedRun, threads: int) -> Sequence[str]:
    """What starts all processes of a run at once; nothing for one."""
    number, nodes = processes(run), nodes_of(run)
    if number == 1:
        return ()
    ranks = (f"--nodes={nodes}", f"--ntasks={number}", f"--ntasks-per-node={number // nodes}")
    return ("srun", *ranks, f"--cpus-per-task={threads}", "--kill-on-bad-exit=1")


def _saved(run: PlannedRun) -> int:
    """A number that another checkpoint changes."""
    checkpoint = RunFiles(run.folder).checkpoint
    return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0


def _requeue() -> int:
    task = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    done = subprocess.run(["scontrol", "requeue", task], capture_output=True, text=True)
    print(f"Task {task} continues from its checkpoint, back in the queue. {done.stderr.strip()}", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
