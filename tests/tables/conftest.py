"""Run folders as training and evaluation write them, with scores that a test chooses."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from ablate.core.sources import sealed

TASKS = ("demo_vqa", "demo_gqa", "demo_pope")
CONSTANT = {"demo_vqa": 10.0, "demo_gqa": 20.0, "demo_pope": 50.0, "vqav2": 10.0, "vizwiz": 30.0}
QUESTIONS = 60
PROVENANCE = {
    "data": {"sha256": "d" * 64, "samples": 22},
    "weights": {"encoder": [{"encoder": "x", "sha256": "e" * 64}], "language": []},
    "start_from": None,
}


class RunFolders:
    """Writes runs into one group folder."""

    def __init__(self, group: Path) -> None:
        self.group = group

    def add(
        self,
        connector: str = "mlp",
        seed: int = 0,
        *,
        blind: bool = False,
        level: float | Mapping[str, float] = 0.5,
        questions: int = QUESTIONS,
        tasks: Sequence[str] = TASKS,
        settings: Mapping[str, object] | None = None,
        cost: Mapping[str, object] | None = None,
        provenance: Mapping[str, object] | None = None,
        predictions: bool = True,
        suffix: str = "",
        details: Mapping[str, object] | None = None,
        shift: int = 0,
        train: Mapping[str, object] | None = None,
        old: bool = False,
    ) -> Path:
        """A finished run. `level`: the share of right answers; which ones follows from connector, seed and task.

        `details`: of every task's score. `shift`: the number of the first question. `old`: written before there were
        digests.
        """
        folder = self.group / f"{connector}-s{seed}{'-blind' if blind else ''}{suffix}"
        (folder / "predictions").mkdir(parents=True)
        scores = {}
        for task in tasks:
            share = level if isinstance(level, float) else level[task]
            right = self.answers(connector, seed, blind, task, share)[:questions]
            lines = [
                {"id": f"{task}-{q}", "image": f"{q // 3}.jpg", "score": float(score), "weight": 1.0}
                for q, score in enumerate(right, start=shift)
            ]
            if predictions:
                text = "".join(json.dumps(line) + "\n" for line in lines)
                (folder / "predictions" / f"{task}.jsonl").write_text(text)
            scores[task] = {
                "score": round(100 * float(right.mean()), 2),
                "metric": "accuracy",
                "n": questions,
                "n_expected": QUESTIONS,
                "partial": questions < QUESTIONS,
                "baselines": {"constant": CONSTANT[task], "majority": CONSTANT[task] + 1},
                "details": {"split": "val", **({} if old else {"answers_sha256": f"of {task}"}), **(details or {})},
            }
        own = {"connector.name": connector, "connector.fields": {}, "seed": seed, "blind": blind}
        result = {
            "schema": 1,
            "status": "finished",
            "run_id": folder.name,
            "group": self.group.name,
            "connector": connector,
            "seed": seed,
            "blind": blind,
            "digest": "0" * 64,
            "settings": {"train.learning_rate": 1e-3, "root": str(self.group.parent), **own, **(settings or {})},
            "scores": scores,
            "cost": {
                "connector_parameters": 1_234_567,
                "trainable_parameters": 9_000_000,
                "total_parameters": 12_000_000,
                "visual_tokens": 49,
                "step_seconds": 0.1 + 0.01 * seed,
                "peak_memory_bytes": 1_500_000_000,
                "train_seconds": 60.0,
                "eval_seconds": 5.0,
                **(cost or {}),
            },
            "train": {"steps": 100, "epochs": 1.0, "final_loss": 1.0, **(train or {})},
        }
        (folder / "config.yaml").write_text(f"connector: {{name: {connector}}}\nseed: {seed}\nblind: {blind}\n")
        if provenance or not old:
            (folder / "provenance.json").write_text(json.dumps({**({} if old else PROVENANCE), **(provenance or {})}))
        files = ["config.yaml", "provenance.json", *(f"predictions/{task}.jsonl" for task in tasks)]
        (folder / "result.json").write_text(json.dumps(result if old else sealed(result, folder, files)))
        return folder

    def evaluate(
        self,
        run: Path,
        tasks: Sequence[str] = TASKS,
        where: Path | None = None,
        *,
        level: float = 0.75,
        config: str = "0" * 64,
        weights: Mapping[str, object] | None = None,
        details: Mapping[str, object] | None = None,
        size: int | None = None,
        tokens: int = 49,
        **evaluation: object,
    ) -> Path:
        """What `ablate eval --run RUN` writes, or `ablate eval --run RUN connector.size=SIZE`."""
        out = where or run / (f"eval-size-{size}" if size else "eval")
        result = json.loads((run / "result.json").read_text())
        scratch = RunFolders(out.parent / "scratch")
        twin = scratch.add("mlp", result["seed"], level=level, tasks=tasks, details=details)
        (out / "predictions").mkdir(parents=True)
        for task in tasks:
            (twin / "predictions" / f"{task}.jsonl").rename(out / "predictions" / f"{task}.jsonl")
        content = {
            "provenance": {
                "run": run.name,
                "connector": result["connector"],
                "seed": result["seed"],
                "blind": False,
                "config_sha256": config,
                "config": {"connector": {"name": result["connector"]}, "seed": result["seed"]},
                "weights": weights or {"file": "model.safetensors", "sha256": "w"},
                "evaluation": {"precision": "float32", "max_new_tokens": 128, "limit": None, **evaluation},
                **({"read": {"size": size, "visual_tokens": tokens}} if size else {}),
            },
            "scores": json.loads((twin / "result.json").read_text())["scores"],
        }
        shutil.rmtree(scratch.group)
        files = [f"predictions/{task}.jsonl" for task in tasks]
        (out / "scores.json").write_text(json.dumps(sealed(content, out, files)))
        return out

    @staticmethod
    def answers(connector: str, seed: int, blind: bool, task: str, share: float) -> np.ndarray:
        """Exactly `share` of the answers right, spread by a fixed random order."""
        key = [*connector.encode(), seed, int(blind), *task.encode()]
        order = np.random.default_rng(key).permutation(QUESTIONS)
        return (order < round(share * QUESTIONS)).astype(float)

    def unfinished(self, connector: str, seed: int, *, failed: bool = False, learning_rate: float = 1e-3) -> Path:
        folder = self.group / f"{connector}-s{seed}"
        folder.mkdir(parents=True)
        config = f"connector: {{name: {connector}, fields: {{}}}}\nseed: {seed}\nblind: false\nroot: anywhere\n"
        (folder / "config.yaml").write_text(config + f"train: {{learning_rate: {learning_rate}}}\n")
        if failed:
            (folder / "failed.json").write_text('{"returncode": 1, "log_tail": []}')
        return folder


@pytest.fixture
def runs(tmp_path) -> RunFolders:
    return RunFolders(tmp_path / "runs" / "demo")


@pytest.fixture
def full(runs) -> RunFolders:
    """Three connectors and their blind runs, three seeds each; msc_csm is far better, linear hardly differs."""
    for seed in range(3):
        runs.add("mlp", seed, level=0.5)
        runs.add("linear", seed, level=0.48)
        runs.add("msc_csm", seed, level=0.9)
        for connector in ("mlp", "linear", "msc_csm"):
            runs.add(connector, seed, blind=True, level={task: CONSTANT[task] / 100 for task in TASKS})
    return runs
