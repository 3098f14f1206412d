"""Run folders as a table reads them: result.json, the predictions of every question, and what is not finished yet."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from ablate.errors import UserError

RESULT_FILE = "result.json"
CONFIG_FILE = "config.yaml"
PROVENANCE_FILE = "provenance.json"
PLAN_FILE = "plan.json"  # in a group folder: the runs that a sweep is made of
FAILURE_FILE = "failed.json"  # in a run folder: how the last attempt ended
SCHEMA = 1

State = Literal["finished", "failed", "unfinished", "not started"]


@dataclass(frozen=True)
class Predictions:
    """The scores of one run on one task, a column a question.

    Attributes:
        ids: (questions,) unique question ids, text.
        images: (questions,) the image of each question, text.
        scores: (questions,) float64 in [0, 1].
        weights: (questions,) float64 > 0.
    """

    ids: NDArray[np.str_]
    images: NDArray[np.str_]
    scores: NDArray[np.float64]
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One run folder, or one that a sweep has planned. Scores are in percent, as result.json has them."""

    folder: Path
    run_id: str
    connector: str
    seed: int
    blind: bool
    state: State
    settings: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    finished_at: float = 0.0

    def predictions(self, task: str) -> Predictions | None:
        """The scores of each question of a task, or None if the file is missing.

        Raises:
            UserError: for a line that is not what the evaluation writes.
        """
        path = self.folder / "predictions" / f"{task}.jsonl"
        if not path.is_file():
            return None
        ids, images, scores, weights = [], [], [], []
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    record = json.loads(line)
                    ids.append(str(record["id"]))
                    images.append(str(record["image"]))
                    scores.append(float(record["score"]))
                    weights.append(float(record.get("weight", 1.0)))
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"{path}, line {number}: not a prediction ({error!r}). Evaluate again.") from None
        if not ids:
            return None
        return Predictions(np.array(ids), np.array(images), np.array(scores), np.array(weights))


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file, or None if there is none (missing, being written, or something else)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_result(folder: Path) -> dict[str, Any] | None:
    """A finished run's result.json, or None.

    Raises:
        UserError: if it was written by a newer version.
    """
    result = read_json(folder / RESULT_FILE)
    if result is None or result.get("status") != "finished":
        return None
    if result.get("schema", SCHEMA) > SCHEMA:
        raise UserError(f"{folder / RESULT_FILE} has schema {result['schema']}; this version reads {SCHEMA}. Upgrade.")
    return result


def is_finished(folder: Path) -> bool:
    """Whether the run in this folder is done."""
    return read_result(folder) is not None


def collect(folders: Iterable[Path | str]) -> list[Run]:
    """All runs in these folders: each may be a run, a group of runs, or a folder of groups.

    Runs that a sweep planned, or that began, and did not finish are there too, with their state.

    Raises:
        UserError: if a folder does not exist or has no runs.
    """
    runs: dict[Path, Run] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"No folder {folder}. Give run folders, a group of them, or the folder of all groups.")
        found = list(_find(folder, depth=2))
        if not found:
            raise UserError(
                f"No runs in {folder}: no {RESULT_FILE}, {CONFIG_FILE} or {PLAN_FILE} there. Train one first."
            )
        for run in found:
            runs.setdefault(run.folder.resolve(), run)
    return sorted(runs.values(), key=lambda run: (run.connector, run.blind, run.seed, str(run.folder)))


def latest_group(root: Path | str) -> Path:
    """The group of runs under `root` in which something was written last.

    Raises:
        UserError: if there is none.
    """
    groups = {path.parent.parent for name in (RESULT_FILE, CONFIG_FILE) for path in Path(root).glob(f"*/*/{name}")}
    if not groups:
        raise UserError(f"No runs under {root} yet. Train some, or give the folders.")
    return max(groups, key=lambda group: max(run.stat().st_mtime for run in group.iterdir() if run.is_dir()))


def _find(folder: Path, depth: int) -> Iterator[Run]:
    if _has_run(folder):
        if run := _read_run(folder):
            yield run
        return
    planned = read_json(folder / PLAN_FILE) or {}
    for entry in planned.get("runs", []):
        if not _has_run(folder / entry["run_id"]):
            yield _unfinished(folder / entry["run_id"], entry["settings"])
    if depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _find(child, depth - 1)


def _has_run(folder: Path) -> bool:
    return (folder / RESULT_FILE).is_file() or (folder / CONFIG_FILE).is_file()


def _read_run(folder: Path) -> Run | None:
    result = read_result(folder)
    if result is None:
        try:
            settings = dict(_flatten(yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))))
        except (OSError, yaml.YAMLError, TypeError, AttributeError):
            return None
        return _unfinished(folder, settings)
    return Run(
        folder=folder,
        run_id=result["run_id"],
        connector=result["connector"],
        seed=result["seed"],
        blind=result["blind"],
        state="finished",
        settings=result["settings"],
        scores=result["scores"],
        cost=result["cost"],
        provenance=read_json(folder / PROVENANCE_FILE) or {},
        finished_at=(folder / RESULT_FILE).stat().st_mtime,
    )


def _unfinished(folder: Path, settings: Mapping[str, Any]) -> Run:
    if (folder / FAILURE_FILE).is_file():
        state: State = "failed"
    else:
        state = "unfinished" if folder.is_dir() else "not started"
    return Run(
        folder=folder,
        run_id=folder.name,
        connector=str(settings.get("connector.name", "?")),
        seed=int(settings.get("seed", 0)),
        blind=bool(settings.get("blind", False)),
        state=state,
        settings=settings,
    )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def states(runs: Sequence[Run]) -> dict[State, int]:
    """How many runs are in each state; states without runs are left out."""
    order: tuple[State, ...] = ("finished", "failed", "unfinished", "not started")
    counts = {state: sum(run.state == state for run in runs) for state in order}
    return {state: count for state, count in counts.items() if count}
