"""A sweep of real, tiny runs that is killed at ten random moments ends with the same files and the same table."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from ablate.core.config import to_data
from ablate.runs.folder import RunFiles
from ablate.tables import collect, table
from ablate.tables.csv_files import COSTS, wide_csv

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = 10


@pytest.fixture
def sweep(configure, benchmark_root, tmp_path):
    """Starts the runner of two connectors with two seeds, seeing and blind, into a folder; two runs at a time."""
    asked = [f"evaluation.root={benchmark_root}", "evaluation.benchmarks=[vqav2, gqa]", "evaluation.answering=generate"]
    config = configure(*asked, "train.max_steps=120", "train.checkpoint_every=10", "evaluation.batch_size=1")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(to_data(config)))
    content = {
        "program": "ablate",
        "method": "grid",
        "command": ["ablate", "train", "--config", "base.yaml", "group=tiny", "${args_no_hyphens}"],
        "parameters": {
            "connector.name": {"values": ["linear", "mlp"]},
            "seed": {"values": [0, 1]},
            "blind": {"values": [False, True]},
        },
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))

    def start(root: Path) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "ablate", "sweep", str(tmp_path / "sweep.yaml"), "--jobs", "2", "--root", str(root)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in listed.stdout.split()]


def what_counts(root: Path) -> dict:
    """Weights and answers of every run, and the table but for times, memory and commits that were made meanwhile."""
    group = root / "tiny"
    found = {}
    for run in collect([group]):
        assert run.state == "finished"
        kept = [RunFiles(run.folder).weights, *sorted(run.folder.glob("predictions/*.jsonl"))]
        found |= {f"{run.folder.name}/{path.name}": path.read_bytes() for path in kept}
    rows = list(csv.DictReader(wide_csv(table(group)).splitlines()))
    skipped = (*COSTS, "marks", "run_differently")
    return {**found, "table": [{key: value for key, value in row.items() if key not in skipped} for row in rows]}


def steps(root: Path) -> int:
    """Training steps of all runs so far."""
    return sum(len(path.read_bytes().splitlines()) for path in root.glob("tiny/*/train.jsonl"))


def test_killed_at_ten_random_moments_the_sweep_ends_with_the_same_table(sweep, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    text, _ = (process := sweep(undisturbed)).communicate()
    assert process.returncode == 0, text
    drawn = random.Random(0)
    process = sweep(killed)
    for moment in sorted(drawn.sample(range(1, steps(undisturbed) - 30), KILLS)):
        while steps(killed) < moment:  # a machine of any speed is killed at the same steps
            if process.poll() is not None:
                process = sweep(killed)
            time.sleep(0.02)
        if process.poll() is not None:
            process = sweep(killed)
        victim = drawn.choice([process.pid, *children(process.pid)])
        with suppress(ProcessLookupError):  # it has ended this instant
            os.kill(victim, drawn.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        if victim == process.pid:
            process.communicate()
    for _ in range(3):
        text, _ = process.communicate() if process.poll() is None else ("", None)
        if process.returncode == 0:
            break
        process = sweep(killed)
    text, _ = process.communicate() if process.poll() is None else (text, None)
    assert process.returncode == 0, text
    assert what_counts(killed) == what_counts(undisturbed)
