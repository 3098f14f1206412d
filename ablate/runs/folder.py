"""A run on disk: its name, its folder, where it came from, and how to load it again.

<root>/<group>/<run id>/
    config.yaml         the resolved config
    provenance.json     what made the run: code revision, packages, machine, hashes of config and data
    train.jsonl         one line per optimizer step
    rejects.jsonl       samples that were skipped, each with the reason; other ranks than the first: rejects-rank1.jsonl
    features.json       whether the frozen encoder's features are kept on disk, and why
    checkpoints/        last.ckpt while the run trains: weights, optimizer, position
    training.json       costs of the training and its last step, written at its end
    model.safetensors   the whole connector and all other trained weights
    predictions/        one file per benchmark, one line per question (written by the evaluation)
    log.txt             of a run of a sweep: what it printed
    failed.json         of a run of a sweep: how the last attempt ended, until it is tried again
    progress.json       progress (ablate.core.console)
    result.json         scores and costs, written last: the run is finished
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.core import config as config_io
from ablate.core.errors import UserError
from ablate.core.files import read_json, read_mapping, write_json
from ablate.core.sources import sealed
from ablate.runs.identity import run_digest, run_id

if TYPE_CHECKING:  # which loads PyTorch; tables and sweeps need the names of files alone
    from ablate.runs.config import RunConfig

RESULT_SCHEMA = 1
CHECKPOINT_SUFFIX = ".ckpt"
CONFIG_FILE, PROVENANCE_FILE, RESULT_FILE = "config.yaml", "provenance.json", "result.json"
WEIGHTS_FILE = "model.safetensors"
SCORES_FILE = "scores.json"  # in the folders that `ablate eval` writes, next to `predictions`
PLAN_FILE = "plan.json"  # in a group's folder: the runs that a sweep is made of
_PREDICTIONS = "predictions"


@dataclass(frozen=True)
class RunFiles:
    """The paths in a run's folder."""

    folder: Path

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"

    @property
    def sweep_lock(self) -> Path:
        """Of the sweep runner that has the run; outside the folder, which a run may be moved from."""
        return self.folder.parent / ".locks" / f"{self.folder.name}.lock"

    @property
    def config(self) -> Path:
        return self.folder / CONFIG_FILE

    @property
    def provenance(self) -> Path:
        return self.folder / PROVENANCE_FILE

    @property
    def steps(self) -> Path:
        return self.folder / "train.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / f"last{CHECKPOINT_SUFFIX}"

    @property
    def training(self) -> Path:
        return self.folder / "training.json"

    @property
    def rejects(self) -> Path:
        return self.folder / "rejects.jsonl"

    @property
    def features(self) -> Path:
        return self.folder / "features.json"

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS_FILE

    @property
    def predictions(self) -> Path:
        return self.folder / _PREDICTIONS

    @property
    def result(self) -> Path:
        return self.folder / RESULT_FILE

    @property
    def failure(self) -> Path:
        return self.folder / "failed.json"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def scores(self) -> Path:
        return self.folder / SCORES_FILE


def prediction_name(task: str) -> str:
    """The name of a task's predictions within the folder, as digests have it."""
    return f"{_PREDICTIONS}/{task}.jsonl"


def read_result(folder: Path | str) -> dict[str, Any] | None:
    """A finished run's result.json, or None.

    Raises:
        UserError: if it was written by a newer version.
    """
    path = RunFiles(Path(folder)).result
    result = read_mapping(path)
    if result is None or result.get("status") != "finished":
        return None
    if result.get("schema", RESULT_SCHEMA) > RESULT_SCHEMA:
        raise UserError(f"{path} has schema {result['schema']}; this version reads {RESULT_SCHEMA}. Upgrade.")
    return result


def is_finished(folder: Path | str) -> bool:
    return read_result(folder) is not None


@dataclass(frozen=True)
class Trained:
    """A trained model on disk: the run that it is of, and the file with its weights."""

    run: RunFiles
    weights: Path


def find_trained(path: Path | str) -> Trained:
    """What a user means by a run: its folder, or a weights file or checkpoint in it or in its `checkpoints` folder.

    Raises:
        UserError: there is no run's config where it would be.
    """
    path = Path(path)
    if not path.is_file():
        files = RunFiles(path)
        if not files.config.exists():
            raise UserError(f"{path} is not a run's folder: there is no {CONFIG_FILE} in it.")
        if not files.weights.exists() and files.checkpoint.exists():
            raise UserError(
                f"{path} has not been trained to its end. Its last checkpoint can be used as it is: {files.checkpoint}"
            )
        return Trained(files, files.weights)
    for folder in (path.parent, path.absolute().parent.parent):
        if (files := RunFiles(folder)).config.exists():
            return Trained(files, path)
    raise UserError(
        f"{path} has no config: the run's {CONFIG_FILE}, which describes its model, must be next to it or one folder "
        "above."
    )


def write_result(files: RunFiles, config: RunConfig, scores: Mapping[str, Any], eval_seconds: float) -> None:
    """Write result.json, which makes the run a finished one, with the digests of the run's other files."""
    training = read_json(files.training)
    result = {
        "schema": RESULT_SCHEMA,
        "status": "finished",
        "run_id": run_id(config),
        "group": config.group,
        "connector": config.connector.name,
        "seed": config.seed,
        "blind": config.blind,
        "digest": run_digest(config),
        "settings": json.loads(json.dumps(config_io.flatten(config))),
        "scores": dict(scores),
        "cost": {**training["cost"], "eval_seconds": round(eval_seconds, 3)},
        "train": training["train"],
    }
    kept = [files.config, files.provenance, files.training, files.weights]
    names = [path.name for path in kept] + [prediction_name(task) for task in scores]
    write_json(files.result, sealed(result, files.folder, names))
