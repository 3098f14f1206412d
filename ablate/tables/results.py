"""Run folders as a table reads them: result.json, the predictions of every question, and what is not finished yet.

Scores that `ablate eval` wrote, into a folder within the run's or into one of its own, enter like the run's own.
"""

import functools
import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from ablate.core.errors import UserError
from ablate.core.files import read_mapping
from ablate.core.sources import DIGESTS, REPLACED, file_entry, is_edited
from ablate.runs.folder import (
    CONFIG_FILE,
    PLAN_FILE,
    RESULT_FILE,
    SCORES_FILE,
    WEIGHTS_FILE,
    RunFiles,
    prediction_name,
    read_result,
)

READ_SIZE = "connector.read_size"  # of runs that were read at another size than they were trained for

State = Literal["finished", "failed", "unfinished", "not started"]


@dataclass(frozen=True)
class Predictions:
    """The scores of one run on one task, a column a question. Runs that answered the same questions share the arrays.

    Attributes:
        ids: (questions,) unique question ids, text.
        images: (questions,) the image of each question, text.
        scores: (questions,) float64 in [0, 1].
        weights: (questions,) float64 > 0.
        sha256: of the file.
    """

    ids: NDArray[np.str_]
    images: NDArray[np.str_]
    scores: NDArray[np.float64]
    weights: NDArray[np.float64]
    sha256: str = ""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `ablate eval` has written: scores.json in `folder`, at `at` (seconds since 1970)."""

    folder: Path
    at: float
    provenance: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Any]]
    digests: Mapping[str, str] | None
    edited: bool

    @property
    def file(self) -> Path:
        return RunFiles(self.folder).scores

    @property
    def other_size(self) -> int | None:
        """The size of the connector that was read, where it is not the one that the run was trained for."""
        size = (self.provenance.get("read") or {}).get("size")
        trained = ((self.provenance.get("config") or {}).get("connector") or {}).get("size")
        return size if size != trained else None

    def __str__(self) -> str:
        return f"{self.file} of {time.strftime('%Y-%m-%d %H:%M', time.localtime(self.at))}"


@dataclass(frozen=True)
class Run:
    """One run folder, or one that a sweep has planned. Scores are in percent, as result.json has them.

    Attributes:
        train: what result.json says of the training, such as its `steps`.
        varies: the settings that the sweep of this run varies.
        digests: file -> SHA-256 when the result was written; None for results without digests.
        edited: the files that are not as they were written.
        evaluations: task -> the evaluation that its score is from, where that is not the run's own.
        warnings: what was found while reading and is not in the table.
        read: task -> its predictions, once `with_predictions` has read them.
    """

    folder: Path
    run_id: str
    connector: str
    seed: int
    blind: bool
    state: State
    settings: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    finished_at: float = 0.0
    digest: str = ""
    varies: frozenset[str] = frozenset()
    digests: Mapping[str, str] | None = None
    edited: tuple[str, ...] = ()
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    read: Mapping[str, Predictions | None] = field(default_factory=dict, compare=False, repr=False)

    def predictions(self, task: str) -> Predictions | None:
        """The scores of each question of a task, or None if the file is missing.

        Raises:
            UserError: for a line that is not what the evaluation writes.
        """
        if task in self.read:
            return self.read[task]
        source = self.evaluations.get(task)
        return _read_predictions((source.folder if source else self.folder) / prediction_name(task))

    def asked(self, task: str) -> Mapping[str, Any]:
        """The settings of the evaluation that a task's score is from, without "evaluation."."""
        if source := self.evaluations.get(task):
            return source.provenance.get("evaluation", {})
        return self._own_evaluation

    @functools.cached_property
    def _own_evaluation(self) -> Mapping[str, Any]:
        prefix = "evaluation."
        own = {key.removeprefix(prefix): value for key, value in self.settings.items() if key.startswith(prefix)}
        return {"precision": "float32", **own}

    def with_predictions(self) -> "Run":
        """The run with its predictions read. Tasks whose scores are no numbers in [0, 1] are left out and named;
        files that have changed since the scores were written are added to `edited`."""
        read, scores, warnings, edited = {}, dict(self.scores), list(self.warnings), list(self.edited)
        for task in self.scores:
            read[task] = found = self.predictions(task)
            source = self.evaluations.get(task)
            digests = (source.digests if source else self.digests) or {}
            recorded = digests.get(prediction_name(task))
            if found is None:
                continue
            if not ((found.scores >= 0) & (found.scores <= 1) & np.isfinite(found.weights) & (found.weights > 0)).all():
                warnings.append(f"{task}: a score is no number from 0 to 1, so the task is left out")
                del scores[task], read[task]
            elif recorded and recorded != found.sha256:
                edited.append(prediction_name(task))
        return replace(self, read=read, scores=scores, warnings=tuple(warnings), edited=tuple(edited))


def _read_predictions(path: Path) -> Predictions | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        lines = data.decode().split("\n")
        lines = [line for line in lines if line.strip()]
        records = json.loads(f"[{','.join(lines)}]")  # three times as fast as line by line
        if len(records) != len(lines):
            raise ValueError("a line is not one record")
        scores = np.array([float(record["score"]) for record in records])
        columns = _columns(
            tuple([str(record["id"]) for record in records]),
            tuple([str(record["image"]) for record in records]),
            tuple([float(record.get("weight", 1.0)) for record in records]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_a_prediction(path, data, error) from None
    if not records:
        return None
    ids, images, weights = columns
    return Predictions(ids, images, scores, weights, hashlib.sha256(data).hexdigest())


@functools.lru_cache(maxsize=64)
def _columns(ids: tuple[str, ...], images: tuple[str, ...], weights: tuple[float, ...]) -> tuple[NDArray, ...]:
    arrays = np.array(ids, dtype=np.str_), np.array(images, dtype=np.str_), np.array(weights)
    for array in arrays:
        array.flags.writeable = False  # shared
    return arrays


def _not_a_prediction(path: Path, data: bytes, error: Exception) -> UserError:
    """Which line it is."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            record: Any = json.loads(line) if line.strip() else {"id": "", "image": "", "score": 0}
            str(record["id"]), str(record["image"]), float(record["score"]), float(record.get("weight", 1.0))
        except (ValueError, KeyError, TypeError, AttributeError) as wrong:
            return UserError(f"{path}, line {number}: not a prediction ({wrong!r}). Evaluate again.")
    return UserError(f"{path}: not predictions ({error!r}). Evaluate again.")


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
    runs = _joined(runs)
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


def _find(folder: Path, depth: int, plan: Mapping[str, Any] | None = None) -> Iterator[Run]:
    if _has_run(folder):
        plan = read_mapping(folder.parent / PLAN_FILE) or {} if plan is None else plan
        for run in _read_run(folder):
            yield replace(run, varies=_varies(plan, folder.name))
        return
    if evaluation := _read_evaluation(folder):
        yield _run_of(evaluation)
        return
    plan = read_mapping(folder / PLAN_FILE) or {}
    for entry in plan.get("runs", []):
        if not _has_run(folder / entry["run_id"]):
            unfinished = _unfinished(folder / entry["run_id"], entry["settings"])
            yield replace(unfinished, varies=_varies(plan, entry["run_id"]))
    if depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith(".") and REPLACED not in child.name:
                yield from _find(child, depth - 1, plan)


def _varies(plan: Mapping[str, Any], run_id: str) -> frozenset[str]:
    """What the sweep that planned a run varies."""
    return frozenset(key for key, runs in plan.get("varies", {}).items() if run_id in runs)


def _has_run(folder: Path) -> bool:
    return RunFiles(folder).result.is_file() or RunFiles(folder).config.is_file()


def _read_run(folder: Path) -> Iterator[Run]:
    """The run, and the same run as it was read at each other size."""
    result = read_result(folder)
    if result is None:
        try:
            settings = dict(_flatten(yaml.safe_load(RunFiles(folder).config.read_text(encoding="utf-8"))))
        except (OSError, yaml.YAMLError, TypeError, AttributeError):
            return
        yield _unfinished(folder, settings)
        return
    provenance = read_mapping(RunFiles(folder).provenance) or {}
    digests = result.get(DIGESTS)
    try:
        run = Run(
            folder=folder,
            run_id=result["run_id"],
            connector=result["connector"],
            seed=result["seed"],
            blind=result["blind"],
            state="finished",
            settings=_with_recipe(result["settings"], provenance),
            scores=result["scores"],
            cost=result["cost"],
            train=result.get("train") or {},
            provenance=provenance,
            finished_at=RunFiles(folder).result.stat().st_mtime,
            digest=result.get("digest", ""),
            digests=digests,
            edited=tuple(_edited(folder, result)),
        )
    except KeyError as error:
        raise UserError(f"{RunFiles(folder).result} has no {error}. Delete it, and train the run again.") from None
    numbered, without = _split(run.scores)
    evaluations = [read for path in sorted(folder.glob(f"*/{SCORES_FILE}")) if (read := _read_evaluation(path.parent))]
    yield _with_evaluations(replace(run, scores=numbered, warnings=without), evaluations)
    for evaluation in evaluations:
        if evaluation.other_size is not None:
            yield _read_at(run, evaluation)


def _read_at(run: Run, evaluation: Evaluation) -> Run:
    """A run as an evaluation read it, at another size than it was trained for."""
    tokens = evaluation.provenance["read"]["visual_tokens"]
    own = replace(
        run,
        folder=evaluation.folder,
        settings={**run.settings, READ_SIZE: evaluation.other_size},
        cost={**run.cost, "visual_tokens": tokens},
        scores={},
        warnings=(),
    )
    return _with_evaluations(own, [evaluation], size=evaluation.other_size)


def _with_recipe(settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """Two runs whose starts differ in the seed alone start alike, though not from one folder."""
    recipe = (provenance.get("start_from") or {}).get("recipe")
    return {**settings, "train.start_from": f"recipe {recipe[:8]}"} if recipe else settings


def _split(scores: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The scores that are numbers, and what to say of the others."""
    numbered = {task: entry for task, entry in scores.items() if _is_score(entry)}
    return numbered, tuple(f"{task}: its score is no number, so it is left out" for task in scores.keys() - numbered)


def _is_score(entry: Any) -> bool:
    value = entry.get("score") if isinstance(entry, Mapping) else None
    return isinstance(value, int | float) and math.isfinite(value)


def _edited(folder: Path, result: Mapping[str, Any]) -> Iterator[str]:
    """The run's small files that are not as they were when the result was written. Weights are not read."""
    if is_edited(result):
        yield RESULT_FILE
    for name, digest in (result.get(DIGESTS) or {}).items():
        path = folder / name
        if name.endswith((".json", ".yaml")) and (not path.is_file() or file_entry(path)["sha256"] != digest):
            yield name


# -- What `ablate eval` wrote -----------------------------------------------------------------------------------------


def _read_evaluation(folder: Path) -> Evaluation | None:
    path = RunFiles(folder).scores
    content = read_mapping(path) if path.is_file() else None
    if content is None or "run" not in (content.get("provenance") or {}) or "scores" not in content:
        return None
    numbered, _ = _split(content["scores"])
    return Evaluation(
        folder, path.stat().st_mtime, content["provenance"], numbered, content.get(DIGESTS), is_edited(content)
    )


def _run_of(evaluation: Evaluation) -> Run:
    """A run of which nothing is there but an evaluation."""
    found = evaluation.provenance
    run = Run(
        folder=evaluation.folder,
        run_id=found["run"],
        connector=str(found.get("connector", "?")),
        seed=int(found.get("seed", 0)),
        blind=bool(found.get("blind", False)),
        state="finished",
        settings=dict(_flatten(found.get("config", {}))),
        finished_at=evaluation.at,
        digest=found.get("config_sha256", ""),
    )
    if evaluation.other_size is not None:
        return _read_at(run, evaluation)
    return _with_evaluations(run, [evaluation])


def _joined(runs: Mapping[Path, Run]) -> dict[Path, Run]:
    """Evaluations in folders of their own join the run that they are of, where it is there."""
    own = {(run.run_id, run.digest): path for path, run in runs.items() if run.digest and run.folder.name == run.run_id}
    joined = dict(runs)
    for path, run in runs.items():
        home = own.get((run.run_id, run.digest), path)
        if home != path and run.evaluations:
            evaluations = {each.folder: each for each in run.evaluations.values()}
            if READ_SIZE in run.settings:
                (evaluation,) = evaluations.values()
                joined[path] = _read_at(runs[home], evaluation)
                continue
            joined[home] = _with_evaluations(joined[home], list(evaluations.values()))
            del joined[path]
    return joined


def _with_evaluations(run: Run, evaluations: Sequence[Evaluation], size: int | None = None) -> Run:
    """The run's own score of a task is used, unless it is missing or an evaluation has one of more questions. Of two
    evaluations the one of more questions counts, then the newer. Those at another size than `size` (None: than it was
    trained for) are of another row."""
    scores, sources, warnings, edited = dict(run.scores), dict(run.evaluations), list(run.warnings), list(run.edited)
    for evaluation in sorted(evaluations, key=lambda each: each.at, reverse=True):
        if evaluation.other_size != size:
            continue
        if why := _of_another_model(run, evaluation):
            warnings.append(f"{evaluation} is {why}: not in the table")
            continue
        taken = {
            task: entry
            for task, entry in evaluation.scores.items()
            if task not in scores or entry.get("n", 0) > scores[task].get("n", 0)
        }
        scores |= taken
        sources |= dict.fromkeys(taken, evaluation)
        edited += [str(evaluation.file)] if evaluation.edited and taken else []
        if passed := sorted(evaluation.scores.keys() - taken):
            warnings.append(f"{evaluation} has {', '.join(passed)} too; the score that is shown is another")
    return replace(run, scores=scores, evaluations=sources, warnings=tuple(warnings), edited=tuple(edited))


def _of_another_model(run: Run, evaluation: Evaluation) -> str:
    weights = evaluation.provenance.get("weights") or {}
    trained = (run.digests or {}).get(WEIGHTS_FILE)
    if run.digest and evaluation.provenance.get("config_sha256") not in (None, run.digest):
        return "of other settings than this run's"
    if trained and weights.get("sha256") and trained != weights["sha256"]:
        return f"of other weights ({weights.get('file')})"
    if weights.get("file", WEIGHTS_FILE) != WEIGHTS_FILE:
        return f"of {weights['file']}, not of the weights at the end of the training"
    return ""


def _unfinished(folder: Path, settings: Mapping[str, Any]) -> Run:
    if RunFiles(folder).failure.is_file():
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
    runs = [run for run in runs if READ_SIZE not in run.settings]
    counts = {state: sum(run.state == state for run in runs) for state in order}
    return {state: count for state, count in counts.items() if count}
