"""The ablation table for programs: full precision, nothing rounded.

`table.csv` is long, a line for each row x task (and the mean); `table_wide.csv` has a line for each row. Scores,
intervals and differences are in percent.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ablate.tables.ablation import MEAN, AblationTable, Cell, Row

COSTS = (
    "connector_parameters",
    "trainable_parameters",
    "total_parameters",
    "visual_tokens",
    "step_seconds",
    "peak_memory_bytes",
    "train_seconds",
    "eval_seconds",
)
_COMPARED = (
    "difference",
    "difference_low",
    "difference_high",
    "p_adjusted",
    "verdict",
    "equivalence",
    "detectable",
    "questions_compared",
    "questions_unpaired",
    "same_seeds",
)


def long_csv(table: AblationTable) -> str:
    """A line for each row and task, and one for its mean; and for the constant and majority answers."""
    return _write(long_lines(table))


def wide_csv(table: AblationTable) -> str:
    """A line for each row: TASK, TASK_low, TASK_high for every task and the mean, then the mean's difference to
    the baseline and the costs."""
    return _write(wide_lines(table))


def long_lines(table: AblationTable) -> list[dict[str, Any]]:
    """The lines of `long_csv`, column -> value; a line has the columns that it has values for."""
    return [*_long(table), *_answers(table)]


def wide_lines(table: AblationTable) -> list[dict[str, Any]]:
    """The lines of `wide_csv`, column -> value."""
    return [_wide(row, table) for row in table.rows]


def _long(table: AblationTable) -> Iterable[dict[str, Any]]:
    for row in table.rows:
        for column in (*table.tasks, MEAN):
            if column in row.cells:
                refused = {"verdict": "not compared"} if column in table.refused(row) else {}
                cell = {
                    **_cell(row.cells[column]),
                    **refused,
                    **_margin(table),
                    "metric": table.metrics.get(column, ""),
                }
                yield {**_row(row), "task": column, **cell, **_remarks(row, column)}
        if not row.cells:
            yield {**_row(row), **_remarks(row, MEAN)}


def _answers(table: AblationTable) -> Iterable[dict[str, Any]]:
    for name, answers in (("constant answer", table.constant), ("majority answer", table.majority)):
        for task, score in answers.items():
            yield {"row": name, "task": task, "score": 100 * score, "metric": table.metrics.get(task, "")}


def _row(row: Row) -> dict[str, Any]:
    return {
        "row": row.name,
        "connector": row.connector,
        "blind": row.blind,
        "seeds": " ".join(map(str, row.seeds)),
        "seeds_finished": len(row.runs),
        "seeds_planned": row.planned,
    }


def _remarks(row: Row, column: str) -> dict[str, Any]:
    """What the marks after a row's name mean, here for one task or the mean."""
    evaluations = {run.evaluations[task] for run in row.runs for task in run.evaluations if column in (task, MEAN)}
    otherwise = [*row.held.marked, *(f"not recorded for both rows: {name}" for name in row.held.unknown)]
    otherwise += [f"{run.run_id}: {name} edited" for run in row.runs for name in run.edited]
    return {
        "marks": row.marks,
        "not_alike": "; ".join(row.held.of(column)),
        "forced": row.forced,
        "run_differently": "; ".join(otherwise),
        "scores_from": "; ".join(sorted(str(each.file) for each in evaluations)),
        "remarks": "" if row.cells else "no scores",
    }


def _cell(cell: Cell) -> dict[str, Any]:
    values: dict[str, Any] = {
        "score": 100 * cell.mean,
        "partial": cell.partial,
        "questions": cell.found,
        "questions_expected": cell.expected,
    }
    if cell.estimate:
        values |= {
            "low": 100 * cell.estimate.low,
            "high": 100 * cell.estimate.high,
            "standard_error": 100 * cell.estimate.se,
            "degrees_of_freedom": cell.estimate.df,
            "images": cell.estimate.n_clusters,
        }
    if cell.difference:
        values |= _difference(cell)
    return values


def _difference(cell: Cell) -> dict[str, Any]:
    """The simultaneous interval is the one that the verdict is read from. Nothing stands where seeds are unknown."""
    found = cell.difference
    assert found is not None
    values: dict[str, Any] = {
        "difference": 100 * found.difference,
        "verdict": "one seed: other seeds unknown" if cell.verdict == "one seed" else cell.verdict,
        "equivalence": cell.equivalence,
        "questions_compared": found.n_questions,
        "questions_unpaired": found.n_unpaired,
        "same_seeds": found.same_seeds,
    }
    if found.covers_seeds:
        values |= {
            "difference_low": 100 * found.low,
            "difference_high": 100 * found.high,
            "p_adjusted": found.p_value,
            "difference_alone_low": 100 * found.marginal[0],
            "difference_alone_high": 100 * found.marginal[1],
            "difference_standard_error": 100 * found.se,
            "difference_degrees_of_freedom": found.df,
            "detectable": 100 * found.detectable,
        }
    return values


def _margin(table: AblationTable) -> dict[str, Any]:
    if not table.margin.points:
        return {"margin": None, "margin_set": None}
    return {"margin": table.margin.points, "margin_set": "before" if table.margin.before else "afterwards"}


def _wide(row: Row, table: AblationTable) -> dict[str, Any]:
    values = _row(row)
    for column in (*table.tasks, MEAN):
        cell = row.cells.get(column)
        estimate = cell.estimate if cell else None
        values[column] = 100 * cell.mean if cell else None
        values[f"{column}_low"] = 100 * estimate.low if estimate else None
        values[f"{column}_high"] = 100 * estimate.high if estimate else None
    mean = row.cells.get(MEAN)
    compared = _difference(mean) if mean and mean.difference else {}
    if MEAN in table.refused(row):
        compared = {"verdict": "not compared"}
    values |= {name: compared.get(name) for name in _COMPARED}
    values |= _margin(table)
    values |= {name: row.cost(name) for name in COSTS}
    values |= _remarks(row, MEAN)
    values["differs"] = "; ".join(f"{key}: {here} / {there}" for key, (here, there) in row.differs.items())
    return values


def _write(lines: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
