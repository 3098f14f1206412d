"""The environment of a sweep's runs on this machine: cores, GPUs, and no trace of what started the sweep."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablate.core.errors import UserError
from ablate.core.launchers import without_launcher
from ablate.sweeps.plan import PlannedRun


@dataclass(frozen=True)
class Environment:
    """The environment of the runs. jobs: at the same time; slots: the GPUs of each job, where there are any."""

    base: Mapping[str, str]
    jobs: int = 1
    slots: tuple[tuple[str, ...], ...] = ()

    def for_slot(self, slot: int) -> dict[str, str]:
        environment = dict(self.base)
        if self.slots:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.slots[slot])
        return environment


def environment_of(jobs: int, threads: int, runs: Sequence[PlannedRun]) -> Environment:
    """The environment of that many runs at the same time, each process with `threads` threads.

    Raises:
        UserError: runs of several GPUs, and not enough of them.
    """
    # PYTHONUNBUFFERED: the last words of a killed run are in its log.
    environment = without_launcher(os.environ) | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)}
    # Set by an agent of W&B around us; a run that believed it would report to that sweep.
    environment.pop("WANDB_SWEEP_ID", None)
    if "WANDB_MODE" not in environment and any(run.settings.get("logger.wandb") == "auto" for run in runs):
        # Asked once: otherwise every run would wait for a server that does not answer.
        from ablate.training.loggers import server_answers

        environment["WANDB_MODE"] = "online" if server_answers() else "offline"
    return Environment(environment, jobs, _gpu_slots(_cuda_devices(), jobs, runs) if jobs > 1 else ())


def _gpu_slots(gpus: Sequence[str], jobs: int, runs: Sequence[PlannedRun]) -> tuple[tuple[str, ...], ...]:
    """The GPUs of each job: as many as the largest run takes, not shared unless each takes one. Without GPUs: none.

    Raises:
        UserError: runs of several GPUs, and not enough of them.
    """
    on_gpus = [run for run in runs if run.settings.get("train.accelerator", "auto") != "cpu"]
    if not gpus or not on_gpus:
        return ()
    needed = max(int(run.settings.get("train.devices", 1)) for run in on_gpus)
    if needed == 1:
        return tuple((gpus[slot % len(gpus)],) for slot in range(jobs))
    if jobs * needed > len(gpus):
        most = len(gpus) // needed
        raise UserError(
            f"--jobs {jobs} with runs of {needed} GPUs (train.devices) takes {jobs * needed}, but there are "
            f"{len(gpus)}. Use {f'--jobs {most}, or ' if most else ''}a lower train.devices."
        )
    return tuple(tuple(gpus[slot * needed : (slot + 1) * needed]) for slot in range(jobs))


def _cuda_devices() -> tuple[str, ...]:
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(device.strip() for device in visible.split(",") if device.strip())
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU "))
