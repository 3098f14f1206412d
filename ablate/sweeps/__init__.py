"""Sweeps: one YAML in W&B's own schema, run here without a server or by W&B's agents.

sweep = load_sweep("experiments/sweeps/demo.yaml")
expand(sweep, only={"seed": [0]})                       # the runs: dotted config keys -> values
run_sweep("experiments/sweeps/demo.yaml", ["msc_csm"])  # trains what is left, prints the table
"""

from pathlib import Path
from typing import Any

from ablate.sweeps.expand import expand, shard
from ablate.sweeps.schema import Sweep, load_sweep

__all__ = ["Sweep", "expand", "load_sweep", "run_sweep", "shard", "stop_sweep"]


def run_sweep(path: Path | str, *arguments: Any, **options: Any) -> int:
    """Run what is left of a sweep and print its table; see `ablate.sweeps.operations.run_sweep`."""
    # Imported here: to read a sweep file, the engines are not needed.
    from ablate.sweeps import operations

    return operations.run_sweep(path, *arguments, **options)


def stop_sweep(path: Path | str, *arguments: Any, **options: Any) -> int:
    """Ask those who run a sweep to save and stop; see `ablate.sweeps.operations.stop_sweep`."""
    from ablate.sweeps import operations

    return operations.stop_sweep(path, *arguments, **options)
