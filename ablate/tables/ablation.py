"""The ablation table as numbers: rows of runs that differ in nothing but the seed, each against a baseline row.

Statistics are those of `ablate.evaluation.statistics`; scores are fractions in [0, 1] here and percent where they are
shown.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from ablate.core.errors import UserError, unknown_name
from ablate.evaluation.benchmarks import of_a_release
from ablate.evaluation.files import collector_paused
from ablate.evaluation.statistics import MEAN, Analysis, Comparison, Estimate, Scores, mean_estimate
from ablate.evaluation.statistics.design import Design
from ablate.runs.identity import NEUTRAL, blind_key, within
from ablate.tables import comparability
from ablate.tables.comparability import Held
from ablate.tables.results import READ_SIZE, Predictions, Run, State, states
from ablate.tables.verdicts import (
    CONFIDENCE,
    BlindCheck,
    Equivalence,
    Margin,
    SizeCheck,
    Verdict,
    against_baseline,
    blind_checks,
    margin_notes,
    size_checks,
    verdict,
)
from ablate.tables.verdicts import margin as choose_margin

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_DETAILS = 3  # settings in a row's name
MOST_DIFFERENCES = 6  # settings in a note
MOST_ROWS_NAMED = 8  # in a note
PREFERRED_BASELINES = ("mlp", "linear")
BLIND = " (blind)"  # after the name of a row whose visual tokens were zeroed

OTHER_SETTINGS, NOT_ALIKE, RUN_DIFFERENTLY = "*", "‡", "§"
MARKS = {
    OTHER_SETTINGS: "settings besides the connector differ from the baseline's",
    NOT_ALIKE: "questions, scoring, training data or starting weights differ from the baseline's",
    RUN_DIFFERENTLY: "code, packages, precision, hardware or steps differ, digests are missing, or files were edited",
}

# Settings that do not tell rows apart: those without effect, and what a row averages over.
IGNORED_SETTINGS = ("seed", *NEUTRAL)
# What an ablation varies on purpose: not counted when a row's other settings are compared with the baseline's.
_VARIED = ("connector", "blind")


@dataclass(frozen=True)
class Cell:
    """A row's score on one task, or its mean over the tasks.

    Attributes:
        estimate: the mean and its interval, None where there are no predictions.
        mean: the score; from result.json where there is no estimate.
        found, expected: questions scored, and questions of the whole benchmark.
        partial: fewer questions than the benchmark has, or fewer runs than were planned.
        logs: whose files its answers are read from ("lmms-eval"), where the model was not asked here.
        difference: against the baseline row, with the interval that the verdict is read from.
        equivalence: whether that interval lies within the table's margin, or on one side of its end.
    """

    mean: float
    estimate: Estimate | None = None
    found: int = 0
    expected: int = 0
    partial: bool = False
    logs: tuple[str, ...] = ()
    difference: Comparison | None = None
    equivalence: Equivalence = ""

    @property
    def verdict(self) -> Verdict:
        """Better and worse may be within the margin too; what is neither, and not equivalent, is unresolved."""
        found = verdict(self.difference)
        return "equivalent" if (found, self.equivalence) == ("unresolved", "equivalent") else found


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
        held: reasons against a comparison with the baseline (a blind row: with the row that it belongs to).
        forced: compared despite such reasons.
        shared: a blind row that is the control of several connectors' rows.
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
    held: Held = field(default_factory=Held)
    forced: bool = False
    shared: bool = False

    @property
    def marks(self) -> str:
        """Marks after the name, wherever the row is shown: see `MARKS`."""
        differently = self.held.marked or self.held.unknown or any(run.edited for run in self.runs)
        shown = {OTHER_SETTINGS: self.differs, NOT_ALIKE: self.held.refused, RUN_DIFFERENTLY: differently}
        return "".join(mark for mark, found in shown.items() if found)

    def compared(self, task: str) -> bool:
        """Whether the row's scores on this task (or "mean") may be compared with its reference row's."""
        return self.forced or not self.held.of(task)

    @property
    def read_size(self) -> int | None:
        """The size of the connector that was read, where the runs were trained for another one or for several."""
        return self.settings.get(READ_SIZE)

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
        rows: the baseline's connector first; a blind row follows the row it belongs to, those of several come last.
        baseline: the name of the row that the others are compared with.
        constant, majority: task (and "mean") -> the score of always giving one answer, as a fraction.
        metrics: task -> what is measured.
        splits: task -> which split, for the published benchmarks.
        states: how many runs are finished, failed, unfinished, not started.
        notes: what a reader must know before believing the table.
        groups: the folders that hold the run folders.
        blind_checks: each row against its own blind run.
        sizes: of connectors that were trained for several sizes, each one that was read. Their rows are compared with
            no baseline.
        margin: the largest difference that counts as none.
        held: which rows are not like the baseline, and in what; part of the notes.
        chosen: why the baseline is this row, if the user did not name one.
        corpus: the tasks whose score is a metric of all answers together: outside the mean and without verdicts.
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
    held: tuple[str, ...] = ()
    chosen: str = ""
    corpus: tuple[str, ...] = ()
    sizes: tuple[SizeCheck, ...] = ()

    @cached_property
    def _by_name(self) -> dict[str, Row]:
        return {row.name: row for row in self.rows}

    def row(self, name: str) -> Row:
        return self._by_name[name]

    def refused(self, row: Row) -> tuple[str, ...]:
        """The columns in which a row has scores that are not compared with the baseline's."""
        if row.blind or row.read_size is not None or row.name == self.baseline:
            return ()
        return tuple(column for column in row.cells if column not in self.corpus and not row.compared(column))

    @property
    def averaged(self) -> tuple[str, ...]:
        """The tasks that are means over questions, on which rows are compared."""
        return tuple(task for task in self.tasks if task not in self.corpus)

    @cached_property
    def marks(self) -> str:
        """What the marks after the rows' names mean."""
        used = {mark for row in self.rows for mark in row.marks}
        text = "; ".join(f"{mark} {meaning}" for mark, meaning in MARKS.items() if mark in used)
        return f"{text}: see the notes." if text else ""

    def to_frame(self, *, wide: bool = False) -> "DataFrame":
        """As a pandas DataFrame, nothing rounded: the columns of table.csv, or of table_wide.csv if `wide`.

        Scores, intervals and differences are in percent. One line for each row and task, or for each row if `wide`.

        Raises:
            UserError: pandas is not installed.
        """
        from ablate.tables.csv_files import long_lines, wide_lines
        from ablate.tables.frames import frame

        return frame(wide_lines(self) if wide else long_lines(self))

    def __repr__(self) -> str:
        return f"AblationTable({len(self.rows)} rows, {self.summary()}; print it, or to_frame())"

    def __str__(self) -> str:
        from ablate.tables.text import plain_text

        return plain_text(self)

    def _repr_html_(self) -> str:
        from ablate.tables.html import table_html

        return table_html(self)

    def summary(self) -> str:
        """How much of it is there: "34 of 36 runs finished, 2 failed"."""
        others = [f"{count} {state}" for state, count in self.states.items() if state != "finished"]
        return ", ".join([f"{self.states.get('finished', 0)} of {sum(self.states.values())} runs finished", *others])


@dataclass(frozen=True)
class _Analysed:
    """Rows that know what they may be compared with, and their scores.

    Attributes:
        corpus: the tasks that are scored over all answers together, and are no part of the analysis.
        whole: all scores.
        comparable: of the rows that are not blind, the scores that may be compared with the baseline's.
        twins: row -> its blind row, where the two may be compared.
        sizes: without their differences.
    """

    tasks: tuple[str, ...]
    corpus: tuple[str, ...]
    rows: tuple[Row, ...]
    known: Mapping[str, comparability.Facts]
    reference: Row
    chosen: str
    whole: Analysis
    comparable: Analysis
    twins: Mapping[str, str]
    sizes: tuple[SizeCheck, ...]

    @property
    def compared(self) -> list[str]:
        """The rows that have something to compare with the baseline."""
        return [row for row, found in self.comparable.samples.items() if found and row != self.reference.name]


@collector_paused()
def ablation_table(
    runs: Sequence[Run],
    baseline: str = "",
    margin: float | None = None,
    *,
    force: bool = False,
    vary: Iterable[str] = (),
) -> AblationTable:
    """Group the runs into rows and compare every row with the baseline's.

    Args:
        runs: see `ablate.tables.collect`.
        baseline: a row's name, or a connector; by default the row whose settings most rows share.
        margin: percentage points within which rows count as equal; the one that the runs were started with if None.
        force: compare rows although they were asked other questions, trained on other data, or started otherwise.
        vary: settings in which rows are meant to differ, besides those that their sweep varies.

    Raises:
        UserError: no finished run, or no such baseline.
    """
    chosen = choose_margin(runs, margin)
    found = _analysed(runs, baseline, force, tuple(vary))
    tasks, reference = found.tasks, found.reference
    averaged = tuple(task for task in tasks if task not in found.corpus)
    rows = [replace(row, cells=_cells(row, tasks, averaged, found.whole)) for row in found.rows]
    rows = _compare_all(rows, found, chosen)
    rows.sort(key=lambda row: (row.shared, row.connector != reference.connector, row.connector, *_place(row)))
    constant = _answer_baselines(runs, averaged, "constant")
    held = tuple(_notes_on_comparability(rows, reference.name))
    return AblationTable(
        tasks=tasks,
        rows=tuple(rows),
        baseline=reference.name,
        constant=constant,
        majority=_answer_baselines(runs, averaged, "majority"),
        metrics=_metrics(runs),
        splits=_splits(runs, tasks),
        states=states(runs),
        notes=(*_notes(runs, rows, found, held), *margin_notes(runs, chosen)),
        groups=tuple(dict.fromkeys(str(run.folder.parent) for run in runs)),
        blind_checks=blind_checks(found.whole, found.twins, averaged, constant),
        margin=chosen,
        held=held,
        chosen=found.chosen,
        corpus=found.corpus,
        sizes=size_checks(found.whole, found.sizes),
    )


def analysed(runs: Sequence[Run], baseline: str = "") -> tuple[Analysis, str, list[str]]:
    """The analysis of the rows that may be compared with the baseline, the baseline's name, and theirs.

    Raises:
        UserError: no finished run, or no such baseline.
    """
    found = _analysed(runs, baseline, force=False, vary=())
    return found.comparable, found.reference.name, found.compared


def _analysed(runs: Sequence[Run], baseline: str, force: bool, vary: Sequence[str]) -> _Analysed:
    if not any(run.state == "finished" for run in runs):
        raise UserError(f"None of these {len(runs)} runs has finished, so there is nothing to show yet.")
    tasks, rows = _tasks(runs), _rows(runs)
    corpus = {task for run in runs for task, entry in run.scores.items() if entry.get("corpus")}
    averaged = tuple(task for task in tasks if task not in corpus)
    known = {row.name: comparability.facts(row.runs, tasks) for row in rows}
    reference, chosen = _baseline(rows, baseline, known)
    rows = _hold(rows, reference, known, force, vary)
    rows = [replace(row, held=replace(row.held, apart=frozenset(corpus))) for row in rows]
    by_name = {row.name: row for row in rows}
    reference = by_name[reference.name]
    twins = {name: twin.name for name, twin in blind_twins(rows).items() if by_name[name].runs and twin.runs}

    def may_be_compared(row: str, other: str) -> bool:
        held = comparability.hold(known[row], known[other], other, vary)
        return not replace(held, apart=frozenset(corpus)).of(MEAN)

    designs: dict[tuple[int, ...], tuple[Predictions, Design]] = {}
    scores = {row.name: _all_scores(row, averaged, designs) for row in rows}
    # Rows that are not like the others are a kind of their own, as are blind ones: their seeds may vary otherwise.
    odd = {row.name for row in rows if not row.compared(MEAN)}
    odd |= {twins[name] for name in odd & twins.keys()}
    allowed = {
        row.name: {task: part for task, part in scores[row.name].items() if row.compared(task)}
        for row in rows
        if (not row.blind and row.read_size is None) or row.name == reference.name
    }
    sizes = [
        replace(each, trained=each.trained if force or may_be_compared(each.read, each.trained) else "")
        if each.trained
        else each
        for each in _sizes(rows)
    ]
    return _Analysed(
        tasks,
        tuple(task for task in tasks if task in corpus),
        tuple(rows),
        known,
        reference,
        chosen,
        Analysis(scores, averaged, {row.name: (row.blind, row.name in odd, row.read_size) for row in rows}),
        Analysis(allowed, averaged, {row.name: row.blind for row in rows}),
        {name: twin for name, twin in twins.items() if force or may_be_compared(twin, name)},
        tuple(sizes),
    )


def _hold(
    rows: Sequence[Row], reference: Row, known: Mapping[str, comparability.Facts], force: bool, vary: Sequence[str]
) -> list[Row]:
    """Each row with the reasons against comparing it with the baseline; a blind row's, against comparing it with its
    seeing row.
    """
    by_name = {row.name: row for row in rows}
    seeing: dict[str, Row] = {}
    for name, twin in blind_twins(rows).items():
        if twin.name not in seeing or name == reference.name:
            seeing[twin.name] = by_name[name]
    held_rows = []
    for row in rows:
        other = seeing.get(row.name, reference)
        held = Held()
        if row.runs and other.runs and other.name != row.name:
            held = comparability.hold(known[row.name], known[other.name], other.name, vary)
        differs = differing_settings(row.settings, reference.settings, _varied_settings(row, reference, vary))
        held_rows.append(replace(row, held=held, differs=differs, forced=force and bool(held.refused)))
    return held_rows


def _varied_settings(row: Row, reference: Row, vary: Sequence[str]) -> tuple[str, ...]:
    return (*vary, *(key for run in (*row.runs, *reference.runs) for key in run.varies))


def row_key(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What runs of one row have in common: all settings but the ignored ones, in a form that can be compared."""
    return tuple(sorted((key, repr(value)) for key, value in settings.items() if not within(key, IGNORED_SETTINGS)))


def differing_settings(
    here: Mapping[str, Any], there: Mapping[str, Any], varied: Iterable[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Settings with other values in two rows, apart from the connector, blindness, what is `varied` on purpose, and
    those that change nothing."""
    skipped = (*IGNORED_SETTINGS, *_VARIED, *sorted(set(varied)))
    differing = [key for key in {*here, *there} if here.get(key) != there.get(key)]
    return {key: (here.get(key), there.get(key)) for key in sorted(differing) if not within(key, skipped)}


# -- Rows -------------------------------------------------------------------------------------------------------------


def _rows(runs: Sequence[Run]) -> list[Row]:
    grouped: dict[tuple, list[Run]] = {}
    for run in runs:
        grouped.setdefault(row_key(run.settings), []).append(run)
    rows = []
    for members in grouped.values():
        newest_first = sorted((run for run in members if run.state == "finished"), key=lambda run: -run.finished_at)
        first: dict[int, Run] = {}
        for run in newest_first:
            first.setdefault(run.seed, run)
        kept = {seed: run.with_predictions() for seed, run in first.items()}
        unfinished = {run.seed: run for run in members if run.state != "finished" and run.seed not in kept}
        rows.append(
            Row(
                name="",
                connector=members[0].connector,
                blind=members[0].blind,
                settings={
                    key: value for key, value in members[0].settings.items() if not within(key, IGNORED_SETTINGS)
                },
                runs=tuple(kept[seed] for seed in sorted(kept)),
                planned=len(kept) + len(unfinished),
                failed=sum(run.state == "failed" for run in unfinished.values()),
                duplicates=tuple(run for run in newest_first if run is not first[run.seed]),
            )
        )
    rows = [replace(row, name=name) for row, name in zip(rows, _names(rows), strict=True)]
    return _with_shared_names(rows)


def _names(rows: Sequence[Row]) -> list[str]:
    """The connector; for several rows of one connector, also the settings that set them apart."""
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        alike.setdefault(row.connector, []).append(row.settings)
    varying = {connector: _varying(settings) for connector, settings in alike.items()}
    names: list[str] = []
    for row in rows:
        keys = varying[row.connector]
        details = [detail for key in keys if (detail := _detail(key, row.settings.get(key)))]
        if len(details) > MOST_DETAILS:
            details[MOST_DETAILS:] = [f"and {len(details) - MOST_DETAILS} more"]
        names.append(" ".join([row.connector, *details]) + (BLIND if row.blind else ""))
    counts = Counter(names)
    repeated = {name: 0 for name in names if counts[name] > 1}
    for i, name in enumerate(names):
        if name in repeated:
            repeated[name] += 1
            names[i] = f"{name} #{repeated[name]}"
    return names


def _detail(key: str, value: Any) -> str:
    sizes = {READ_SIZE: "read at", "connector.size": "trained for"}
    if key in sizes:
        return "" if value is None else f"{sizes[key]} {value}"
    return f"{key.removeprefix('connector.fields.')}={_brief(value)}"


def _varying(alike: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which rows of one connector differ, apart from blindness."""
    keys = dict.fromkeys(key for settings in alike for key in settings)
    skipped = (*IGNORED_SETTINGS, "blind")
    return [
        key
        for key in sorted(keys)
        if not within(key, skipped) and len({repr(settings.get(key)) for settings in alike}) > 1
    ]


def _brief(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_brief, value))}]"
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)


def _place(row: Row) -> tuple:
    """Among the rows of one connector: as it is, then as it was read at its sizes, then as it was trained for each."""
    trained = row.settings.get("connector.size")
    kind, size = (1, row.read_size) if row.read_size is not None else (2, trained) if trained is not None else (0, 0)
    return kind, -size, _bare_name(row), row.blind


def _bare_name(row: Row) -> str:
    return row.name.replace(BLIND, "")


def _sizes(rows: Sequence[Row]) -> list[SizeCheck]:
    """Each connector of several sizes as it was trained, then as it was read, by size."""
    by_key = {row_key(row.settings): row for row in rows if row.runs}
    found = []
    for row in rows:
        if (size := row.read_size) is None:
            continue
        settings = {key: value for key, value in row.settings.items() if key != READ_SIZE}
        home = by_key.get(row_key(settings))
        trained = by_key.get(row_key({**settings, "connector.size": size}))
        found.append(SizeCheck(home.name if home else row.connector, size, row.name, trained.name if trained else ""))
    homes = {each.row for each in found} & {row.name for row in rows}
    found += [SizeCheck(home, None, home) for home in homes]
    return sorted(found, key=lambda each: (each.row, -math.inf if each.size is None else -each.size))


def _with_shared_names(rows: Sequence[Row]) -> list[Row]:
    """Blind rows that are the control of another connector's row are named after what they have in common."""
    by_name = {row.name: row for row in rows}
    twins = blind_twins(rows).items()
    of_others = {twin.name for name, twin in twins if not _same_connector(by_name[name], twin)}
    shared = [row for row in rows if row.name in of_others]
    varying = [key for key in _varying([row.settings for row in shared]) if not within(key, ("connector",))]
    names = {}
    for row in shared:
        details = [f", {key}={_brief(row.settings.get(key))}" for key in varying[:MOST_DETAILS]]
        names[row.name] = f"blind, {row.cost('visual_tokens'):g} tokens{''.join(details)}"
    names = {old: new for old, new in names.items() if list(names.values()).count(new) == 1}
    return [replace(row, name=names.get(row.name, row.name), shared=row.name in of_others) for row in rows]


def _same_connector(row: Row, other: Row) -> bool:
    def connector(row: Row) -> dict[str, Any]:
        return {key: value for key, value in row.settings.items() if within(key, ("connector",))}

    return connector(row) == connector(other)


def blind_twins(rows: Iterable[Row]) -> dict[str, Row]:
    """Row -> the blind row that is its control: with the same settings, or else one that computes the same.

    See `ablate.runs.identity.blind_key`.
    """
    rows = list(rows)
    blind = {row_key(row.settings): row for row in rows if row.blind and row.runs}
    alike: dict[str, Row] = {}
    for row in rows:
        if row.blind and (key := _blind_key(row)):
            alike.setdefault(key, row)
    twins = {}
    for row in rows:
        if row.blind:
            continue
        twin = blind.get(row_key({**row.settings, "blind": True})) or alike.get(_blind_key(row) or "")
        if twin is not None:
            twins[row.name] = twin
    return twins


def _blind_key(row: Row) -> str | None:
    tokens = row.cost("visual_tokens")
    if tokens is None or any(run.train.get("trained_sizes", "largest") != "largest" for run in row.runs):
        return None
    return blind_key(row.settings, int(tokens))


def _baseline(rows: Sequence[Row], name: str, known: Mapping[str, comparability.Facts]) -> tuple[Row, str]:
    """The row that the others are compared with, and why it is that one where there was a choice. Blind rows only if
    asked for by their name.

    Of the rows that `name` leaves: the one whose settings and facts most rows share; then mlp, linear; then the one
    with most runs; then that with the best mean, so that no row is called better for a poor choice.
    """
    candidates = [row for row in rows if row.runs]
    if name:
        for row in candidates:
            if row.name == name:
                return row, ""
    sighted = [row for row in candidates if not row.blind] or candidates
    if name and not any(row.connector == name for row in sighted):
        raise unknown_name("baseline", name, {row.name for row in candidates} | {row.connector for row in sighted})
    key = {row.name: _shared_key(row, known[row.name]) for row in sighted}
    sharing = Counter(key.values())
    preferred = {connector: place for place, connector in enumerate(PREFERRED_BASELINES)}

    def order(row: Row) -> tuple:
        scores = [entry["score"] for run in row.runs for entry in run.scores.values()]
        mean = float(np.mean(scores)) if scores else -1.0
        place = preferred.get(row.connector, len(preferred))
        return -sharing[key[row.name]], place, -len(row.runs), -mean, row.name

    left = sorted((row for row in sighted if not name or row.connector == name), key=order)
    best = left[0]
    others = sharing[key[best.name]] - 1
    if len([row for row in left if row.connector == best.connector]) == 1:
        if len(left) == 1 or best.connector in preferred:
            return best, ""
        reasons = ("most rows share its settings", "", "it has most runs", "it has the best mean", "it comes first")
        decisive = next(place for place, (a, b) in enumerate(zip(order(best), order(left[1]), strict=True)) if a != b)
        return best, f"the baseline is {best.name}, as {reasons[decisive]}; --baseline NAME takes another"
    shared = f"{others} other row{'s share' if others != 1 else ' shares'} its settings"
    kin = f"of several {best.connector} rows"
    return best, f"the baseline is {best.name}, {kin}: {shared}; --baseline NAME takes another"


def _shared_key(row: Row, known: comparability.Facts) -> tuple:
    """Rows with the same one may be compared: settings but the connector, and what was asked and trained on."""
    skipped = (*IGNORED_SETTINGS, *_VARIED)
    settings = tuple(sorted((key, repr(value)) for key, value in row.settings.items() if not within(key, skipped)))
    marked = {fact.name for fact in comparability.MARKED}
    return settings, tuple(sorted((key, repr(set(v))) for key, v in known.recorded.items() if key[0] not in marked))


# -- Scores -----------------------------------------------------------------------------------------------------------


def _tasks(runs: Sequence[Run]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(task for run in runs for task in run.scores))


def _cells(row: Row, tasks: Sequence[str], averaged: Sequence[str], analysis: Analysis) -> dict[str, Cell]:
    """The row's scores on all tasks, and on the mean of those that are averaged."""
    samples = analysis.samples[row.name]
    cells: dict[str, Cell] = {}
    for task in tasks:
        scored = [run.scores[task] for run in row.runs if task in run.scores]
        if not scored:
            continue
        estimated = analysis.estimate(row.name, task, CONFIDENCE) if task in samples else None
        if task not in averaged:
            estimated = mean_estimate([_estimate_of(entry) for entry in scored], CONFIDENCE)
        cells[task] = Cell(
            mean=estimated.mean if estimated else float(np.mean([entry["score"] for entry in scored])) / 100,
            estimate=estimated,
            found=min(entry["n"] for entry in scored),
            expected=max(entry["n_expected"] for entry in scored),
            partial=len(scored) < row.planned or any(entry["partial"] for entry in scored),
            logs=tuple(dict.fromkeys(filter(None, (comparability.answers_log(run, task) for run in row.runs)))),
        )
    if averaged and all(task in cells for task in averaged):
        estimated = analysis.estimate(row.name, MEAN, CONFIDENCE) if MEAN in samples else None
        cells[MEAN] = Cell(
            mean=estimated.mean if estimated else float(np.mean([cells[task].mean for task in averaged])),
            estimate=estimated,
            found=sum(cells[task].found for task in averaged),
            expected=sum(cells[task].expected for task in averaged),
            partial=any(cells[task].partial for task in averaged),
        )
    return cells


def _estimate_of(entry: Mapping[str, Any]) -> Estimate:
    """A run's own score with its interval, as its result has it."""
    details = entry.get("details", {})
    se, images = details.get("se"), details.get("n_images", 0)
    low, high = entry.get("low", 0.0) / 100, entry.get("high", 100.0) / 100
    se = float("inf") if se is None else se / 100
    return Estimate(entry["score"] / 100, low, high, se, images - 1, CONFIDENCE, entry["n"], images, 1)


def _all_scores(
    row: Row, tasks: Sequence[str], designs: dict[tuple[int, ...], tuple[Predictions, Design]]
) -> dict[str, Scores]:
    """Task -> scores, where the predictions are there. Rows that answered the same questions share one of `designs`."""
    scores = {}
    for task in tasks:
        if (found := _scores(row, task)) is None:
            continue
        values, part, seeds = found
        scores[task] = Scores(values, part.images, part.weights, question_ids=part.ids, seeds=seeds)
        key = id(part.ids), id(part.images), id(part.weights)
        # `part` is held, so that no other array takes its id.
        if key not in designs:
            designs[key] = part, scores[task].design
        scores[task].sharing(designs[key][1])
    return scores


def _scores(row: Row, task: str) -> tuple[np.ndarray, Predictions, tuple[int, ...]] | None:
    """The row's scores on a task (runs, questions), over the questions that all its runs have answered; what describes
    these questions; and the runs' seeds."""
    runs = [run for run in row.runs if task in run.scores]
    parts = [found for run in runs if (found := run.predictions(task)) is not None]
    seeds = tuple(run.seed for run in runs)
    if not parts or len(parts) < len(runs):
        return None
    for ids in {id(part.ids): part.ids for part in parts}.values():
        if len(set(ids.tolist())) < len(ids):
            seed = next(seed for seed, part in zip(seeds, parts, strict=True) if part.ids is ids)
            raise UserError(f"{row.name}, seed {seed}, {task}: a question id occurs twice among the predictions.")
    if all(part.ids is parts[0].ids for part in parts):
        return np.stack([part.scores for part in parts]), parts[-1], seeds
    common = parts[0].ids
    for part in parts:
        common = common[np.isin(common, part.ids)]
    if len(common) == 0:
        raise UserError(f"{row.name}, {task}: its seeds have no question in common. Evaluate them on the same data.")
    values = []
    for part in parts:
        place = {question: i for i, question in enumerate(part.ids)}
        order = np.array([place[question] for question in common])
        values.append(part.scores[order])
    # The columns that describe the questions, in the order of the last run's.
    return np.stack(values), Predictions(common, part.images[order], values[-1], part.weights[order]), seeds


def _answer_baselines(runs: Sequence[Run], tasks: Sequence[str], kind: str) -> dict[str, float]:
    """The score of always giving one answer, as the evaluation recorded it, per task, and on the mean of `tasks`."""
    scores: dict[str, float] = {}
    for run in runs:
        for task, entry in run.scores.items():
            if (value := entry.get("baselines", {}).get(kind)) is not None:
                scores.setdefault(task, value / 100)
    if tasks and all(task in scores for task in tasks):
        scores[MEAN] = sum(scores[task] for task in tasks) / len(tasks)
    return scores


def _splits(runs: Sequence[Run], tasks: Sequence[str]) -> dict[str, str]:
    """Papers report test servers' scores and validation scores under one name. The demo's sets have no published
    splits.
    """
    found = {task: entry.get("details", {}).get("split", "") for run in runs for task, entry in run.scores.items()}
    return {task: found[task] for task in tasks if found[task] and of_a_release(task)}


def _metrics(runs: Sequence[Run]) -> dict[str, str]:
    return {
        task: entry.get("metric", "") + ", over the corpus" * bool(entry.get("corpus"))
        for run in runs
        for task, entry in run.scores.items()
    }


# -- Comparisons ------------------------------------------------------------------------------------------------------


def _compare_all(rows: Sequence[Row], found: _Analysed, margin: Margin) -> list[Row]:
    """The rows with every sighted one's differences to the baseline."""
    differences = against_baseline(found.comparable, found.compared, found.reference.name)

    def compared(row: Row, column: str, cell: Cell) -> Cell:
        difference = differences.get((row.name, column))
        if difference is None:
            return cell
        return replace(cell, difference=difference, equivalence=difference.equivalence(margin.points / 100))

    return [
        replace(row, cells={column: compared(row, column, cell) for column, cell in row.cells.items()}) for row in rows
    ]


# -- Notes ------------------------------------------------------------------------------------------------------------


def _notes(runs: Sequence[Run], rows: Sequence[Row], found: _Analysed, held: Iterable[str]) -> Iterable[str]:
    """What a reader must know before believing the table."""
    if found.chosen:
        yield found.chosen
    if not found.tasks:
        yield "no run has scores (evaluation.benchmarks is empty): `ablate eval --run RUN --benchmarks A,B` scores one"
    if found.corpus:
        names = ", ".join(found.corpus)
        yield f"{names}: scored over all answers together, so outside the mean and without verdicts"
    yield from held
    if any(row.held.refused and not row.forced for row in rows):
        yield "--force compares such rows anyway; --vary KEY names a setting in which rows are meant to differ"
    yield from _notes_on_completeness(rows, found.tasks)
    yield from _notes_on_seeds(rows, found.reference)
    for row in rows:
        yield from _notes_on_agreement(row, found.tasks)
    for what, names in _together(rows, _differences):
        yield f"{names}: more than the connector differs from the baseline: {what}"
    for row in rows:
        for run in row.duplicates:
            yield f"{row.name}: two runs with seed {run.seed}; the newer counts, {run.folder} does not"
    yield from _notes_on_runs(rows, found.known)
    yield from _notes_on_provenance(runs)


def _together(rows: Sequence[Row], describe: Callable[[Row], Iterable[str]]) -> list[tuple[str, str]]:
    """(description, names of the rows that have it), so that what holds for many rows is said once."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for text in describe(row):
            found.setdefault(text, []).append(row.name)
    every = len(rows) if len(rows) > 2 else 0
    return [(text, "all rows" if len(names) == every else _listed(names)) for text, names in found.items()]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_ROWS_NAMED} more rows" if len(names) > MOST_ROWS_NAMED else ""
    return ", ".join(names[:MOST_ROWS_NAMED]) + more


def _notes_on_comparability(rows: Sequence[Row], baseline: str) -> Iterable[str]:
    def refused(row: Row) -> Iterable[str]:
        if reasons := row.held.reasons():
            other = "its sighted runs" if row.blind else baseline
            how = f"compared with {other} because of --force" if row.forced else f"not compared with {other}"
            yield f"{how}: {'; '.join(reasons)}"

    def marked(row: Row) -> Iterable[str]:
        if row.held.marked:
            yield f"run differently from {'its sighted runs' if row.blind else baseline}: {'; '.join(row.held.marked)}"
        if row.held.unknown:
            names = ", ".join(row.held.unknown)
            yield f"not recorded for both rows: {names}; assumed to be equal where the settings are"

    def unpaired(row: Row) -> Iterable[str]:
        for task, cell in row.cells.items():
            if cell.difference and cell.difference.n_unpaired:
                counts = f"{cell.difference.n_questions:,} questions that both answered"
                yield f"{task}: compared on the {counts}; {cell.difference.n_unpaired:,} left out"

    found = _together(rows, refused)
    for text, names in [*found, *_together(rows, unpaired)]:
        yield f"{names}: {text}"
    yield from (f"{names}: {text}" for text, names in _together(rows, marked))


def _notes_on_runs(rows: Sequence[Row], known: Mapping[str, comparability.Facts]) -> Iterable[str]:
    """What is said of single runs: where their scores are from, and what has changed since."""

    def from_evaluations(row: Row) -> Iterable[str]:
        for run in row.runs:
            for evaluation in {each.folder: each for each in run.evaluations.values()}.values():
                tasks = [task for task, each in run.evaluations.items() if each.folder == evaluation.folder]
                own = {**run.settings, "evaluation.precision": "float32"}
                asked = evaluation.provenance.get("evaluation", {})
                others = {f"evaluation.{key}": value for key, value in asked.items()}
                skipped = ("evaluation.benchmarks", "evaluation.root", "evaluation.batch_size", "evaluation.device")
                differs = [
                    f"{key} {_brief(value)} instead of {_brief(own[key])}"
                    for key, value in others.items()
                    if key in own and own[key] != value and key not in skipped
                ]
                other = f"; other than the run: {', '.join(differs)}" if differs else ""
                read = (evaluation.provenance.get("answers_read_from") or {}).get("name")
                how = f"answers read from {read}" if read else "`ablate eval`"
                if row.read_size is None or other:  # a row that is nothing but such evaluations need not name them
                    yield f"seed {run.seed}: {', '.join(tasks)} from {evaluation} ({how}{other})"

    def described(row: Row) -> Iterable[str]:
        yield from comparability.own_differences(known[row.name])
        seeds: dict[str, list[str]] = {}
        for run in row.runs:
            for text in (*comparability.record_notes(run), *run.warnings):
                seeds.setdefault(text, []).append(str(run.seed))
        for text, which in seeds.items():
            yield text if len(which) == len(row.runs) else f"seed {', '.join(which)}: {text}"

    for describe in (from_evaluations, described):
        yield from (f"{names}: {text}" for text, names in _together(rows, describe))


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
            yield f"not evaluated on {', '.join(missing)}{', so it has no mean' * (MEAN not in row.cells)}"
        if bare := [task for task in tasks if (cell := row.cells.get(task)) and cell.estimate is None]:
            yield f"no predictions kept for {', '.join(bare)}, so no interval"

    for describe in (unfinished, truncated, lacking):
        yield from (f"{names}: {text}" for text, names in _together(rows, describe))


def _notes_on_seeds(rows: Sequence[Row], reference: Row) -> Iterable[str]:
    if alone := [row.name for row in rows if len(row.runs) == 1]:
        names = "all rows" if len(alone) == len(rows) > 2 else _listed(alone)
        yield f"{names}: one seed: other seeds unknown, so no verdict; the interval covers images alone"

    def seeds(row: Row) -> Iterable[str]:
        compared = any(cell.difference for cell in row.cells.values())
        if compared and len(row.runs) > 1 and row.seeds != reference.seeds:
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
                f"{100 * cell.estimate.mean:.2f} (shown); was only one of them rewritten?"
            )


def _notes_on_provenance(runs: Sequence[Run]) -> Iterable[str]:
    finished = [run for run in runs if run.state == "finished" and run.provenance]
    data = {repr(run.provenance.get("data")) for run in finished}
    if len(data) > 1:
        yield f"the runs were trained on {len(data)} different versions of the data (see their provenance.json)"
    commits = {commit for run in finished if (commit := (run.provenance.get("code") or {}).get("commit"))}
    if len(commits) > 1:
        yield f"the runs come from {len(commits)} revisions of the code: {', '.join(sorted(c[:8] for c in commits))}"
    if any((run.provenance.get("code") or {}).get("dirty") for run in finished):
        yield "some runs come from code with uncommitted changes (see their provenance.json)"
    machines = {
        repr([(run.provenance.get("machine") or {}).get(key) for key in ("processor", "gpus")]) for run in finished
    }
    if len(machines) > 1:
        yield f"the runs ran on {len(machines)} kinds of machine: compare their times with care"
