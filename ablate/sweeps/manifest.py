"""What a sweep leaves in its group folder besides the runs: which runs there should be, and why one failed.

`plan.json` lets a table say "2 of 3 seeds" about runs that never started; `failed.json` in a run folder keeps the end
of its log until the run is tried again. Neither decides what is run: result.json and the locks do.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from ablate.core.files import read_mapping, write_json
from ablate.runs.folder import PLAN_FILE, RunFiles
from ablate.sweeps.plan import PlannedRun
from ablate.sweeps.schema import Sweep


def write_manifest(sweep: Sweep, planned: Sequence[PlannedRun], threads: int) -> None:
    """Add the runs to their groups' plan.json. Runs of earlier plans stay if they were started.

    Args:
        threads: of each process of the runs.
    """
    groups: dict[Path, list[PlannedRun]] = {}
    for run in planned:
        groups.setdefault(run.folder.parent, []).append(run)
    for group, runs in groups.items():
        entries = {
            run.folder.name: {"run_id": run.folder.name, "label": run.label, "settings": dict(run.settings)}
            for run in runs
        }
        old = read_mapping(group / PLAN_FILE) or {}
        for entry in old.get("runs", []):
            if (group / entry["run_id"]).is_dir():
                entries.setdefault(entry["run_id"], entry)
        varies = {key: set(runs) for key, runs in old.get("varies", {}).items()}
        for key in _varied(planned):
            varies.setdefault(key, set()).update(run.folder.name for run in runs)
        write_json(
            group / PLAN_FILE,
            {
                "sweep": sweep.name,
                "file": str(sweep.path),
                "threads": threads,
                "varies": {key: sorted(names & entries.keys()) for key, names in sorted(varies.items())},
                "runs": list(entries.values()),
            },
        )


def pinned_threads(planned: Sequence[PlannedRun]) -> int | None:
    """The threads of each process that the sweep's first runs had; None before there are any."""
    for group in dict.fromkeys(run.folder.parent for run in planned):
        if threads := (read_mapping(group / PLAN_FILE) or {}).get("threads"):
            return threads
    return None


def _varied(planned: Sequence[PlannedRun]) -> set[str]:
    """The parameters with several values among the runs: rows of a table may differ in them."""
    found: dict[str, set[str]] = {}
    for run in planned:
        for key, value in run.values.items():
            found.setdefault(key, set()).add(repr(value))
    return {key for key, values in found.items() if len(values) > 1}


def record_failure(folder: Path, returncode: int, log_tail: Sequence[str]) -> None:
    """Keep how a run ended until it is tried again."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_json(RunFiles(folder).failure, {"returncode": returncode, "at": at, "log_tail": list(log_tail)})


def clear_failure(folder: Path) -> None:
    """Forget an earlier failure: the run is tried again."""
    RunFiles(folder).failure.unlink(missing_ok=True)
