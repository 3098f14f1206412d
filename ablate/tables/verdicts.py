"""What a table claims: which rows differ from the baseline, which are equal to it within a margin, and which see.

All of it rests on `ablate.evaluation.statistics.Analysis`. Three families of comparisons are answered for, each as one:
every sighted row against the baseline on the mean and on all tasks; every row against its own blind run on all tasks;
and every size of a connector that was trained for several against the one that was trained for it alone. The chance
that a table makes any false claim in a family is at most 5 %.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from ablate.core.errors import UserError
from ablate.evaluation.statistics import MEAN, Analysis, Comparison
from ablate.tables.results import Run

CONFIDENCE = 0.95
ALPHA = 0.05

Verdict = Literal["better", "worse", "equivalent", "unresolved", "one seed", ""]
Equivalence = Literal["equivalent", "not worse", "not better", ""]
EQUIVALENCES: Mapping[Equivalence, str] = {"equivalent": "≈", "not worse": "≥", "not better": "≤", "": ""}
EQUIVALENT_WORDS: Mapping[Equivalence, str] = {
    "equivalent": "within the margin",
    "not worse": "not worse by more than the margin",
    "not better": "not better by more than the margin",
}


@dataclass(frozen=True)
class Margin:
    """The largest difference that counts as none.

    Attributes:
        points: percentage points; 0 where none was chosen, and then nothing is called equal.
        before: whether the runs were started with it, so that it cannot have been chosen by their scores.
    """

    points: float = 0.0
    before: bool = False

    def __str__(self) -> str:
        return f"{self.points:g} points, {'set before the runs' if self.before else 'chosen afterwards'}"


@dataclass(frozen=True)
class BlindCheck:
    """Does a connector see? Tasks by outcome, for a row and the blind row of the same settings.

    Attributes:
        tasks: where both rows have their questions' scores.
        beats: the row is better than its blind run, by the simultaneous interval over all rows and tasks.
        at_constant: the blind run's interval contains the score of the best constant answer.
        unknown: one of the two has a single seed.
        differences: task -> the paired comparison.
    """

    row: str
    tasks: tuple[str, ...]
    beats: tuple[str, ...]
    at_constant: tuple[str, ...]
    unknown: tuple[str, ...]
    differences: Mapping[str, Comparison]


@dataclass(frozen=True)
class SizeCheck:
    """A connector that was trained for several sizes, at one of them.

    Attributes:
        row: it, as it was trained.
        size: None for the largest, at which `row` itself is scored.
        read: the row of its scores at that size.
        trained: the row that was trained for that size alone, if there is one.
        difference: of their means, `read` minus `trained`, by the simultaneous intervals over all sizes.
    """

    row: str
    size: int | None
    read: str
    trained: str = ""
    difference: Comparison | None = None


def size_checks(analysis: Analysis, sizes: Iterable[SizeCheck]) -> tuple[SizeCheck, ...]:
    """With their differences."""
    sizes = list(sizes)
    pairs = {(each.read, each.trained) for each in sizes if each.trained}
    found = analysis.compare(pairs, (MEAN,), CONFIDENCE) if pairs else {}
    return tuple(replace(each, difference=found.get((each.read, each.trained, MEAN))) for each in sizes)


def verdict(difference: Comparison | None) -> Verdict:
    """What the simultaneous interval says, and nothing else."""
    if difference is None:
        return ""
    if not difference.covers_seeds:
        return "one seed"
    return cast(Verdict, difference.verdict or "unresolved")


def said(found: Verdict, equivalence: Equivalence) -> Equivalence:
    """What is shown of the equivalence with the verdict: what is better is not worse, which need not be said."""
    implied = {"better": "not worse", "worse": "not better"}
    return "" if implied.get(found) == equivalence else equivalence


def against_baseline(analysis: Analysis, rows: Sequence[str], reference: str) -> dict[tuple[str, str], Comparison]:
    """(row, column) -> its comparison with the reference row, for the mean and all tasks: one family."""
    found = analysis.compare([(row, reference) for row in rows], confidence=CONFIDENCE)
    return {(row, column): comparison for (row, _, column), comparison in found.items()}


def blind_checks(
    analysis: Analysis, twins: Mapping[str, str], tasks: Sequence[str], constant: Mapping[str, float]
) -> tuple[BlindCheck, ...]:
    """One check for each row with a blind run.

    Args:
        twins: row -> its blind row.
        constant: task -> the score of always giving the best one answer.
    """
    found = analysis.compare(twins.items(), tasks, CONFIDENCE)
    checks = []
    for row, twin in twins.items():
        differences = {task: found[row, twin, task] for task in tasks if (row, twin, task) in found}
        blind = {task: analysis.estimate(twin, task, CONFIDENCE) for task in differences}
        checks.append(
            BlindCheck(
                row=row,
                tasks=tuple(differences),
                beats=tuple(task for task, each in differences.items() if verdict(each) == "better"),
                at_constant=tuple(
                    task for task, each in blind.items() if task in constant and each.low <= constant[task] <= each.high
                ),
                unknown=tuple(task for task, each in differences.items() if not each.covers_seeds),
                differences=differences,
            )
        )
    return tuple(checks)


def margin(runs: Iterable[Run], asked: float | None) -> Margin:
    """The margin to use: the one asked for, else the one that every finished run was started with.

    Raises:
        UserError: if it is not a positive number of points.
    """
    finished = [run for run in runs if run.state == "finished"]
    recorded = {run.settings.get("margin") for run in finished}
    planned = next(iter(recorded)) or 0.0 if len(recorded) == 1 else 0.0
    if asked is None:
        return Margin(planned, planned > 0)
    if not 0 < asked < 100:
        raise UserError(f"--margin is {asked:g}: expected percentage points, more than 0 and less than 100.")
    return Margin(asked, asked == planned)


def margin_notes(runs: Iterable[Run], chosen: Margin) -> Iterable[str]:
    """What a reader must know about the margin."""
    recorded = {run.settings.get("margin") for run in runs if run.state == "finished"}
    names = ", ".join(sorted("none" if value is None else f"{value:g}" for value in recorded))
    if len(recorded) > 1:
        yield f"the runs were started with different margins ({names} points), so none of them counts as set before"
    elif chosen.points and not chosen.before and recorded != {None}:
        yield f"the margin of {chosen.points:g} points was chosen afterwards; the runs were started with {names}"


__all__ = [
    "ALPHA",
    "CONFIDENCE",
    "EQUIVALENCES",
    "EQUIVALENT_WORDS",
    "BlindCheck",
    "Equivalence",
    "Margin",
    "SizeCheck",
    "Verdict",
    "against_baseline",
    "blind_checks",
    "margin",
    "margin_notes",
    "said",
    "size_checks",
    "verdict",
]
