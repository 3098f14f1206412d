"""What torchrun, SLURM's srun and mpirun say to the processes that they start."""

from __future__ import annotations

import os
from collections.abc import Mapping

# Launcher -> (a variable that only it sets, the one with the number of its processes).
_LAUNCHERS = {
    "torchrun": ("TORCHELASTIC_RUN_ID", "WORLD_SIZE"),
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_TASKS"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"),
    "mpiexec": ("PMI_SIZE", "PMI_SIZE"),
}

_OF_A_TASK = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_TASK_PID"),
}
_OF_A_TASK_PREFIXES = ("TORCHELASTIC_", "ROLE_", "SLURM_STEP_", "OMPI_", "PMI_", "PMIX_")


def launched(environment: Mapping[str, str] | None = None) -> tuple[str, int] | None:
    """The launcher that started this process with others beside it, and how many they are; None without one."""
    environment = os.environ if environment is None else environment
    for name, (mark, number) in _LAUNCHERS.items():
        if mark in environment and (count := environment.get(number, "")).isdecimal() and int(count) > 1:
            return name, int(count)
    return None


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that is no task of the launcher around us: it would take itself for our rank."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _OF_A_TASK and not name.startswith(_OF_A_TASK_PREFIXES)
    }
