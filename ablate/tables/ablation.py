"""The ablation table as numbers: rows of runs that differ in nothing but the seed, each against a baseline row.

Statistics are those of `ablate.evaluation.statistics`; scores are fractions in [0, 1] here and percent where they are
shown.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np

from ablate.errors import UserError, unknown_name
from ablate.evaluation.benchmarks import DEMO_TASKS
from ablate.evaluation.statistics import MEAN, Analysis, Comparison, Estimate, Scores
from ablate.settings import NEUTRAL
from ablate.tables.results import Run, State, states
from ablate.tables.verdicts import (
    CONFIDENCE,
    BlindCheck,
    Equivalence,
    Margin,
    Verdict,
    against_baseline,
    blind_checks,
    margin_notes,
    verdict,
)
from ablate.tables.verdicts import margin as choose_margin

MOST_DETAILS = 3  # settings in a row's name
MOST_DIFFERENCES = 6  # settings in a note
PREFERRED_BASELINES = ("mlp", "linear")
BLIND = " (blind)"  # after the name of a row whose visual tokens were zeroed

# Settings that do not tell rows apart: those without effect, and what a row averages over.
IGNORED_SETTINGS = ("seed", *NEUTRAL)
# What an ablation varies on purpose: not counted when a row's other settings are held against the baseline's.
_VARIED = ("connector", "blind")


@dataclass(frozen=True)
class Cell:
    """A row's score on one task, or its mean over the tasks.

    Attributes:
        estimate: the mean and its interval, None where there are no predictions.
        mean: the score; from result.json where there is no estimate.
        found, expected: questions scored, and questions of the whole benchmark.
        partial: fewer questions than the benchmark has, or fewer runs than were planned.
        difference: against the baseline row, with the interval that the verdict is read from.
        equivalence: whether that interval lies within the table's margin, or on one side of its end.
    """

    mean: float
    estimate: Estimate | None = None
    found: int = 0
    expected: int = 0
    partial: bool = False
    difference: Comparison | None = None
    equivalence: Equivalence = ""

    @property
    def verdict(self) -> Verdict:
        return verdict(self.difference)


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: unique in the table: the connector, and what else sets it apart from other rows of that connector.
        runs: the finished ones that count, one a seed.
        planned: seeds that should be there, finished or not.
        failed: how many of those that are not finished failed.
        cells: task (or "mean") -> cell.
        differs: setting -> (here, in the baseline row), for settings that the ablation does not vary.
        duplicates: finished runs left out because another run has their settings and seed.
    """

    name: str
    connector: str
    blind: bool
    settings: Mapping[str, Any]
    runs: tuple[Run, ...]
    planned: int
    failed: int = 0
    cells: Mapping[str, Cell] = field(default_factory=dict)
    differs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    duplicates: tuple[Run, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    def cost(self, key: str) -> float | None:
        """The median over the runs of a cost in result.json; None where no run has it."""
        values = [run.cost[key] for run in self.runs if run.cost.get(key) is not None]
        return median(values) if values else None


@dataclass(frozen=True)
class AblationTable:
    """Everything that is shown.

    Attributes:
        tasks: in the order of the evaluation.
        rows: the baseline's connector first; a blind row follows the row it belongs to.
        baseline: the name of the row that the others are compared with.
        constant, majority: task (and "mean") -> the score of always giving one answer, as a fraction.
        metrics: task -> what is measured.
        splits: task -> which split, for the published benchmarks.
        states: how many runs are finished, failed, unfinished, not started.
        notes: what a reader must know before believing the table.
        groups: the folders that hold the run folders.
        blind_checks: each row against its own blind run.
        margin: the largest difference that counts as none.
    """

    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    baseline: str
    constant: Mapping[str, float]
    majority: Mapping[str, float]
    metrics: Mapping[str, str]
    splits: Mapping[str, str]
    states: Mapping[State, int]
    notes: tuple[str, ...]
    groups: tuple[str, ...]
    blind_checks: tuple[BlindCheck, ...]
    margin: Margin

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def summary(self) -> str:
        """How much of it is there: "34 of 36 runs finished, 2 failed"."""
        others = [f"{count} {state}" for state, count in self.states.items() if state != "finished"]
        return ", ".join([f"{self.states.get('finished', 0)} of {sum(self.states.values())} runs finished", *others])


def ablation_table(runs: Sequence[Run], baseline: str = "", margin: float | None = None) -> AblationTable:
    """Group the runs into rows and compare every row with the baseline's.

    Args:
        runs: see `ablate.tables.collect`.
        baseline: a row's name, or a connector; mlp, linear or the first row if empty.
        margin: percentage points within which rows count as equal; the one that the runs were started with if None.

    Raises:
        UserError: no finished run, or no such baseline.
    """
    if not any(run.state == "finished" for run in runs):
        raise UserError(f"None of these {len(runs)} runs has finished, so there is no table yet.")
    tasks = _tasks(runs)
    rows = _rows(runs)
    analysis = _analysis(rows, tasks)
    rows = [replace(row, cells=_cells(row, tasks, analysis)) for row in rows]
    reference = _baseline(rows, baseline)
    rows = [replace(row, differs=differing_settings(row.settings, reference.settings)) for row in rows]
    chosen = choose_margin(runs, margin)
    rows = _compare_all(rows, reference, analysis, chosen)
    rows.sort(key=lambda row: (row.connector != reference.connector, row.connector, _bare_name(row), row.blind))
    constant = _answer_baselines(runs, tasks, "constant")
    twins = {row.name: twin.name for row in rows if not row.blind and (twin := blind_twin(row, rows))}
    return AblationTable(
        tasks=tasks,
        rows=tuple(rows),
        baseline=reference.name,
        constant=constant,
        majority=_answer_baselines(runs, tasks, "majority"),
        metrics=_metrics(runs),
        splits=_splits(runs, tasks),
        states=states(runs),
        notes=(*_notes(runs, rows, tasks, reference), *margin_notes(runs, chosen)),
        groups=tuple(dict.fromkeys(str(run.folder.parent) for run in runs)),
        blind_checks=blind_checks(analysis, twins, tasks, constant),
        margin=chosen,
    )


def analysed(runs: Sequence[Run], baseline: str = "") -> tuple[Analysis, str, list[str]]:
    """The analysis of the runs' rows, the baseline's name, and the sighted rows that are compared with it.

    Raises:
        UserError: no finished run, or no such baseline.
    """
    if not any(run.state == "finished" for run in runs):
        raise UserError(f"None of these {len(runs)} runs has finished, so nothing can be learnt from them.")
    tasks, rows = _tasks(runs), _rows(runs)
    reference = _baseline(rows, baseline)
    names = [row.name for row in rows if row.runs and not row.blind and row.name != reference.name]
    return _analysis(rows, tasks), reference.name, names


def _analysis(rows: Sequence[Row], tasks: Sequence[str]) -> Analysis:
    """Blind rows are a kind of their own: without the image, seeds may matter far less."""
    scores = {row.name: _all_scores(row, tasks) for row in rows}
    return Analysis(scores, tasks, {row.name: row.blind for row in rows})


def row_key(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What runs of one row have in common: all settings but the ignored ones, in a form that can be compared."""
    return tuple(sorted((key, repr(value)) for key, value in settings.items() if not _within(key, IGNORED_SETTINGS)))


def differing_settings(here: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings with other values in two rows, apart from the connector, blindness and those that change nothing."""
    skipped = (*IGNORED_SETTINGS, *_VARIED)
    keys = [key for key in sorted({*here, *there}) if not _within(key, skipped)]
    return {key: (here.get(key), there.get(key)) for key in keys if here.get(key) != there.get(key)}


def _within(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


# -- Rows -------------------------------------------------------------------------------------------------------------


def _rows(runs: Sequence[Run]) -> list[Row]:
    grouped: dict[tuple, list[Run]] = {}
    for run in runs:
        grouped.setdefault(row_key(run.settings), []).append(run)
    rows = []
    for members in grouped.values():
        newest_first = sorted((run for run in members if run.state == "finished"), key=lambda run: -run.finished_at)
        kept: dict[int, Run] = {}
        for run in newest_first:
            kept.setdefault(run.seed, run)
        unfinished = {run.seed: run for run in members if run.state != "finished" and run.seed not in kept}
        rows.append(
            Row(
                name="",
                connector=members[0].connector,
                blind=members[0].blind,
                settings={
                    key: value for key, value in members[0].settings.items() if not _within(key, IGNORED_SETTINGS)
                },
                runs=tuple(kept[seed] for seed in sorted(kept)),
                planned=len(kept) + len(unfinished),
                failed=sum(run.state == "failed" for run in unfinished.values()),
                duplicates=tuple(run for run in newest_first if run is not kept[run.seed]),
            )
        )
    return [replace(row, name=name) for row, name in zip(rows, _names(rows), strict=True)]


def _names(rows: Sequence[Row]) -> list[str]:
    """The connector; for several rows of one connector, also the settings that set them apart."""
    names: list[str] = []
    for row in rows:
        alike = [other.settings for other in rows if other.connector == row.connector]
        keys = sorted({key for settings in alike for key in settings if not _within(key, (*IGNORED_SETTINGS, "blind"))})
        varying = [key for key in keys if len({repr(settings.get(key)) for settings in alike}) > 1]
        details = [f"{key.removeprefix('connector.fields.')}={_brief(row.settings.get(key))}" for key in varying]
        if len(details) > MOST_DETAILS:
            details[MOST_DETAILS:] = [f"and {len(details) - MOST_DETAILS} more"]
        names.append(" ".join([row.connector, *details]) + (BLIND if row.blind else ""))
    repeated = {name: 0 for name in names if names.count(name) > 1}
    for i, name in enumerate(names):
        if name in repeated:
            repeated[name] += 1
            names[i] = f"{name} #{repeated[name]}"
    return names


def _brief(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_brief, value))}]"
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)


def _bare_name(row: Row) -> str:
    return row.name.replace(BLIND, "")


def blind_twin(row: Row, rows: Iterable[Row]) -> Row | None:
    """The row that differs from this one in nothing but that it was blind."""
    wanted = row_key({**row.settings, "blind": True})
    return next((other for other in rows if other.blind and row_key(other.settings) == wanted), None)


def _baseline(rows: Sequence[Row], name: str) -> Row:
    """The row that the others are compared with; blind rows only if asked for by their name."""
    candidates = [row for row in rows if row.runs]
    if name:
        for row in candidates:
            if row.name == name:
                return row
    sighted = [row for row in candidates if not row.blind] or candidates
    for wanted in [name] if name else PREFERRED_BASELINES:
        for row in sorted(sighted, key=lambda row: (-len(row.runs), row.name)):
            if row.connector == wanted:
                return row
    if name:
        raise unknown_name("baseline", name, {row.name for row in candidates} | {row.connector for row in sighted})
    return min(sighted, key=lambda row: row.name)


# -- Scores -----------------------------------------------------------------------------------------------------------


def _tasks(runs: Sequence[Run]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(task for run in runs for task in run.scores))


def _cells(row: Row, tasks: Sequence[str], analysis: Analysis) -> dict[str, Cell]:
    cells: dict[str, Cell] = {}
    for task in tasks:
        scored = [run.scores[task] for run in row.runs if task in run.scores]
        if not scored:
            continue
        estimated = analysis.estimate(row.name, task, CONFIDENCE) if task in analysis.samples[row.name] else None
        cells[task] = Cell(
            mean=estimated.mean if estimated else float(np.mean([entry["score"] for entry in scored])) / 100,
            estimate=estimated,
            found=min(entry["n"] for entry in scored),
            expected=max(entry["n_expected"] for entry in scored),
            partial=len(scored) < row.planned or any(entry["partial"] for entry in scored),
        )
    if tasks and all(task in cells for task in tasks):
        estimated = analysis.estimate(row.name, MEAN, CONFIDENCE) if MEAN in analysis.samples[row.name] else None
        cells[MEAN] = Cell(
            mean=estimated.mean if estimated else float(np.mean([cells[task].mean for task in tasks])),
            estimate=estimated,
            found=sum(cells[task].found for task in tasks),
            expected=sum(cells[task].expected for task in tasks),
            partial=any(cells[task].partial for task in tasks),
        )
    return cells


def _all_scores(row: Row, tasks: Sequence[str]) -> dict[str, Scores]:
    """Task -> scores, where the predictions are there."""
    return {task: found for task in tasks if (found := _scores(row, task)) is not None}


def _scores(row: Row, task: str) -> Scores | None:
    """The row's scores on a task, a row a seed, over the questions that all its runs have answered."""
    runs = [run for run in row.runs if task in run.scores]
    parts = [(run.seed, run.predictions(task)) for run in runs]
    parts = [(seed, part) for seed, part in parts if part is not None]
    if not parts or len(parts) < len(runs):
        return None
    common = parts[0][1].ids
    for seed, part in parts:
        if len(np.unique(part.ids)) < len(part.ids):
            raise UserError(f"{row.name}, seed {seed}, {task}: a question id occurs twice among the predictions.")
        common = common[np.isin(common, part.ids)]
    if len(common) == 0:
        raise UserError(f"{row.name}, {task}: its seeds have no question in common. Evaluate them on the same data.")
    values = []
    for _, part in parts:
        place = {question: i for i, question in enumerate(part.ids)}
        order = np.array([place[question] for question in common])
        values.append(part.scores[order])
    # The columns that describe the questions, in the order of the last run's.
    return Scores(
        np.stack(values),
        clusters=part.images[order],
        weights=part.weights[order],
        question_ids=common,
        seeds=tuple(seed for seed, _ in parts),
    )


def _answer_baselines(runs: Sequence[Run], tasks: Sequence[str], kind: str) -> dict[str, float]:
    """The score of always giving one answer, as the evaluation recorded it, per task and on the mean."""
    scores: dict[str, float] = {}
    for run in runs:
        for task, entry in run.scores.items():
            if (value := entry.get("baselines", {}).get(kind)) is not None:
                scores.setdefault(task, value / 100)
    if tasks and all(task in scores for task in tasks):
        scores[MEAN] = sum(scores[task] for task in tasks) / len(tasks)
    return scores


def _splits(runs: Sequence[Run], tasks: Sequence[str]) -> dict[str, str]:
    """Papers report test servers' scores and validation scores under one name. The demo's sets are nobody else's."""
    found = {task: entry.get("details", {}).get("split", "") for run in runs for task, entry in run.scores.items()}
    return {task: found[task] for task in tasks if found[task] and task not in DEMO_TASKS}


def _metrics(runs: Sequence[Run]) -> dict[str, str]:
    return {task: entry.get("metric", "") for run in runs for task, entry in run.scores.items()}


# -- Comparisons ------------------------------------------------------------------------------------------------------


def _compare_all(rows: Sequence[Row], reference: Row, analysis: Analysis, margin: Margin) -> list[Row]:
    """The rows with every sighted one's differences to the baseline."""
    names = [row.name for row in rows if row.name != reference.name and not row.blind]
    found = against_baseline(analysis, names, reference.name)

    def compared(row: Row, column: str, cell: Cell) -> Cell:
        difference = found.get((row.name, column))
        if difference is None:
            return cell
        return replace(cell, difference=difference, equivalence=difference.equivalence(margin.points / 100))

    return [
        replace(row, cells={column: compared(row, column, cell) for column, cell in row.cells.items()}) for row in rows
    ]


# -- Notes ------------------------------------------------------------------------------------------------------------


def _notes(runs: Sequence[Run], rows: Sequence[Row], tasks: Sequence[str], reference: Row) -> Iterable[str]:
    """What a reader must know before believing the table."""
    yield from _notes_on_completeness(rows, tasks)
    yield from _notes_on_seeds(rows, reference)
    for row in rows:
        yield from _notes_on_agreement(row, tasks)
    for what, names in _together(rows, _differences):
        yield f"{names}: more than the connector differs from the baseline: {what}"
    for row in rows:
        for run in row.duplicates:
            yield f"{row.name}: two runs with seed {run.seed}; the newer counts, {run.folder} does not"
    yield from _notes_on_provenance(runs)


def _together(rows: Sequence[Row], describe: Callable[[Row], Iterable[str]]) -> Iterable[tuple[str, str]]:
    """(description, names of the rows that have it), so that what holds for many rows is said once."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for text in describe(row):
            found.setdefault(text, []).append(row.name)
    return [(text, ", ".join(names)) for text, names in found.items()]


def _differences(row: Row) -> Iterable[str]:
    texts = [f"{key} {_brief(here)} instead of {_brief(there)}" for key, (here, there) in row.differs.items()]
    if len(texts) > MOST_DIFFERENCES:
        texts[MOST_DIFFERENCES:] = [f"and {len(texts) - MOST_DIFFERENCES} more settings (see table_wide.csv)"]
    if texts:
        yield "; ".join(texts)


def _notes_on_completeness(rows: Sequence[Row], tasks: Sequence[str]) -> Iterable[str]:
    def unfinished(row: Row) -> Iterable[str]:
        if len(row.runs) < row.planned:
            failed = f" ({row.failed} failed)" if row.failed else ""
            yield f"{len(row.runs)} of {row.planned} seeds finished{failed}"

    def truncated(row: Row) -> Iterable[str]:
        alike: dict[str, list[str]] = {}
        for task in tasks:
            if (cell := row.cells.get(task)) and cell.found < cell.expected:
                alike.setdefault(f"{cell.found:,} of {cell.expected:,} questions", []).append(task)
        yield from (f"{counts} of {', '.join(which)}" for counts, which in alike.items())

    def lacking(row: Row) -> Iterable[str]:
        if row.runs and (missing := [task for task in tasks if task not in row.cells]):
            yield f"not evaluated on {', '.join(missing)}, so it has no mean"
        if bare := [task for task in tasks if (cell := row.cells.get(task)) and cell.estimate is None]:
            yield f"no predictions kept for {', '.join(bare)}, so no interval"

    for describe in (unfinished, truncated, lacking):
        yield from (f"{names}: {text}" for text, names in _together(rows, describe))


def _notes_on_seeds(rows: Sequence[Row], reference: Row) -> Iterable[str]:
    if alone := [row.name for row in rows if len(row.runs) == 1]:
        yield (
            f"{', '.join(alone)}: one seed: other seeds unknown, so no verdict; the interval covers other images, "
            "not other seeds"
        )

    def seeds(row: Row) -> Iterable[str]:
        if len(row.runs) > 1 and not row.blind and row.seeds != reference.seeds:
            here, there = (", ".join(map(str, seeds)) for seeds in (row.seeds, reference.seeds))
            yield f"seeds {here} against the baseline's {there}; seeds count as independent draws"

    yield from (f"{names}: {text}" for text, names in _together(rows, seeds))


def _notes_on_agreement(row: Row, tasks: Sequence[str]) -> Iterable[str]:
    """What a run reported and what its predictions give may differ by the rounding to two decimals, not by more."""
    for task in tasks:
        reported = [run.scores[task]["score"] for run in row.runs if task in run.scores]
        cell = row.cells.get(task)
        if cell and cell.estimate and abs(cell.estimate.mean - float(np.mean(reported)) / 100) > 2e-4:
            yield (
                f"{row.name}, {task}: result.json says {np.mean(reported):.2f}, the kept predictions give "
                f"{100 * cell.estimate.mean:.2f} (shown); was only one of them written again?"
            )


def _notes_on_provenance(runs: Sequence[Run]) -> Iterable[str]:
    finished = [run for run in runs if run.state == "finished" and run.provenance]
    data = {repr(run.provenance.get("data")) for run in finished}
    if len(data) > 1:
        yield f"the runs were trained on {len(data)} different versions of the data (see their provenance.json)"
    commits = {(run.provenance.get("code") or {}).get("commit") for run in finished} - {None}
    if len(commits) > 1:
        yield f"the runs come from {len(commits)} revisions of the code: {', '.join(sorted(c[:8] for c in commits))}"
    if any((run.provenance.get("code") or {}).get("dirty") for run in finished):
        yield "some runs come from code with uncommitted changes (see their provenance.json)"
    machines = {
        repr([(run.provenance.get("machine") or {}).get(key) for key in ("processor", "gpus")]) for run in finished
    }
    if len(machines) > 1:
        yield f"the runs ran on {len(machines)} kinds of machine: compare their times with care"
