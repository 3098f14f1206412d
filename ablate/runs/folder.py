"""A run on disk: its name, its folder, where it came from, and how to load it again.

<root>/<group>/<run id>/
    config.yaml         the resolved config
    provenance.json     what made the run: code revision, packages, machine, hashes of config and data
    train.jsonl         one line per optimizer step
    rejects.jsonl       samples that were skipped, each with the reason; other ranks than the first: rejects-rank1.jsonl
    features.json       whether the frozen encoder's features are kept on disk, and why
    checkpoints/        last.ckpt while the run trains: weights, optimizer, position
    training.json       what training cost and where it ended, once it has
    model.safetensors   the whole connector and everything else that learned
    predictions/        one file per benchmark, one line per question (written by the evaluation)
    result.json         scores and costs, written last: the run is finished
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.core import config as config_io
from ablate.core.errors import UserError
from ablate.core.files import read_json, write_json
from ablate.core.sources import sealed
from ablate.runs.config import RunConfig
from ablate.runs.identity import run_digest, run_id

RESULT_SCHEMA = 1
CHECKPOINT_SUFFIX = ".ckpt"

SCORES_FILE = "scores.json"  # in the folders that `ablate eval` writes


@dataclass(frozen=True)
class RunFiles:
    """The paths in a run's folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def provenance(self) -> Path:
        return self.folder / "provenance.json"

    @property
    def steps(self) -> Path:
        return self.folder / "train.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

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
        return self.folder / "model.safetensors"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"


def is_finished(folder: Path | str) -> bool:
    result = read_json(RunFiles(Path(folder)).result)
    return isinstance(result, dict) and result.get("status") == "finished"


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
            raise UserError(f"{path} is not a run's folder: there is no config.yaml in it.")
        if not files.weights.exists() and files.checkpoint.exists():
            raise UserError(
                f"{path} has not been trained to its end. Its last checkpoint can be used as it is: {files.checkpoint}"
            )
        return Trained(files, files.weights)
    for folder in (path.parent, path.absolute().parent.parent):
        if (files := RunFiles(folder)).config.exists():
            return Trained(files, path)
    raise UserError(
        f"{path} stands alone: what model it is of is said by the run's config.yaml, which must be beside it or one "
        "folder above."
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
    names = [path.name for path in kept] + [f"predictions/{task}.jsonl" for task in scores]
    write_json(files.result, sealed(result, files.folder, names))
