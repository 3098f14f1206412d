"""The ablation table of 1,000 runs x 6 tasks x 500 questions, from run folders to the saved files.

The folders are as training and evaluation write them, with every line of the predictions in full. Times are of the
processor (one core), whatever else the machine does. A fifth of the runs beside it shows that the time grows with the
number of runs, not with its square.
"""

import io
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console

from ablate.core.config import flatten
from ablate.core.sources import sealed
from ablate.demo import TASKS as DEMO_TASKS
from ablate.runs.config import RunConfig
from ablate.tables import show, table

CONNECTORS = ("linear", "mlp", "msc_basic_bsm", "msc_basic_csm", "msc_bsm", "msc_csm")
TASKS, QUESTIONS, IMAGES = sorted(DEMO_TASKS)[:6], 500, 250
RUNS, GOAL_SECONDS = 1_000, 20.0


def write_run(group: Path, number: int, seeds: int, plain: dict) -> None:
    """The `number`-th run: connectors and learning rates, so many seeds each."""
    row, seed = divmod(number, seeds)
    connector, rate = CONNECTORS[row % len(CONNECTORS)], 1e-5 * (1 + row // len(CONNECTORS))
    rng = random.Random(f"{row} {seed}")
    folder = group / f"{connector}-r{row}-s{seed}"
    (folder / "predictions").mkdir(parents=True)
    settings = {**plain, "connector.name": connector, "train.learning_rate": rate, "seed": seed}
    scores = {}
    for task in TASKS:
        records = []
        for question in range(QUESTIONS):
            right = float(rng.random() < 0.4 + 0.02 * (row % len(CONNECTORS)))
            image = f"demo-{question % IMAGES:06d}"
            records.append(
                {
                    "id": f"{task}-{question}",
                    "image": image,
                    "file": f"{image}.jpg",
                    "question": "What is to the left of the striped animal that stands beside the fence?",
                    "prediction": "a dog",
                    "answer": ["a dog", "dog", "brown dog"],
                    "score": right,
                    "weight": 1.0,
                    "type": "other",
                    "group": "seen",
                }
            )
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "predictions" / f"{task}.jsonl").write_text(text)
        mean = 100 * sum(record["score"] for record in records) / QUESTIONS
        scores[task] = {
            "score": mean,
            "metric": "accuracy",
            "n": QUESTIONS,
            "n_expected": QUESTIONS,
            "partial": False,
            "baselines": {"constant": 20.0, "majority": 25.0},
            "details": {"split": "demo", "mode": "official", "prompt": "official", "answering": "generate"},
        }
    result = {
        "schema": 1,
        "status": "finished",
        "run_id": folder.name,
        "group": group.name,
        "connector": connector,
        "seed": seed,
        "blind": False,
        "digest": "0" * 64,
        "settings": settings,
        "scores": scores,
        "cost": {"connector_parameters": 1_000_000, "train_seconds": 60.0},
        "train": {"steps": 100},
    }
    sealed_result = sealed(result, folder, [f"predictions/{task}.jsonl" for task in TASKS])
    (folder / "result.json").write_text(json.dumps(sealed_result))


def seconds_of_table(root: Path, runs: int, seeds: int, plain: dict) -> float:
    group = root / f"{runs}-{seeds}"
    for number in range(runs):
        write_run(group, number, seeds, plain)
    started = time.process_time()
    show(table([group]), console=Console(file=io.StringIO(), width=120))
    return time.process_time() - started


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    plain = json.loads(json.dumps(flatten(RunConfig())))
    with tempfile.TemporaryDirectory() as folder:
        seconds_of_table(Path(folder), 4, 1, plain)  # imports
        for seeds in (5, 1):
            few = seconds_of_table(Path(folder), runs // 5, seeds, plain)
            whole = seconds_of_table(Path(folder), runs, seeds, plain)
            shape = f"{runs // seeds:,} rows of {seeds} seed{'s' * (seeds > 1)}"
            print(f"{runs:,} runs x {len(TASKS)} tasks x {QUESTIONS} questions, {shape}: {whole:.1f} s of CPU")
            print(f"  {whole / few:.1f} times what a fifth of them takes (linear: 5)")
    print(f"goal: {GOAL_SECONDS:.0f} s for {RUNS:,} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
