"""Power and cost of a planned table, from a pilot's run folders: a table and a curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from ablate.core.errors import UserError, unknown_name
from ablate.evaluation.statistics import MEAN
from ablate.evaluation.statistics.power import TARGET, Components, Plan, cheapest, components, plans
from ablate.tables.ablation import analysed
from ablate.tables.results import collect

FEWEST_DF = 6  # below it the seeds' variance may be off by a factor of three


@dataclass(frozen=True)
class Report:
    """`difference` in points; `comparisons` that the planned table answers for at once."""

    column: str
    difference: float
    rows: int
    comparisons: int
    components: Components
    plans: tuple[Plan, ...]
    best: Plan | None
    timed: bool
    folder: Path


def power_report(folders: Sequence[Path | str], difference: float, task: str = "", rows: int | None = None) -> Report:
    """The power of tables of other sizes than the pilot's.

    Args:
        folders: the pilot's runs, see `collect`.
        difference: in points.
        task: a task, or the mean of all if empty.
        rows: of the planned table; the pilot's number if None.

    Raises:
        UserError: nothing to learn from these runs, or an argument out of its range.
    """
    if not 0 < difference < 100:
        raise UserError(f"--difference is {difference:g}: expected percentage points, more than 0 and less than 100.")
    runs = collect(folders)
    analysis, reference, names = analysed(runs)
    column = task or MEAN
    if column not in analysis.columns:
        raise unknown_name("task", column, analysis.columns)
    rows = len(names) + 1 if rows is None else rows
    if rows < 2:
        raise UserError(f"A table of {rows} row{'s' * (rows != 1)} compares nothing: give --rows 2 or more.")
    found = components(analysis, [(name, reference) for name in names], column)
    comparisons = (rows - 1) * (len(analysis.tasks) + (len(analysis.tasks) > 1))
    finished = [run for run in runs if run.state == "finished"]
    seconds = {
        part: fmean([float(run.cost.get(f"{part}_seconds") or 0.0) for run in finished]) for part in ("train", "eval")
    }
    timed = seconds["train"] > 0
    options = plans(found, difference / 100, rows, comparisons, seconds if timed else {"train": 1.0, "eval": 0.0})
    return Report(
        column,
        difference,
        rows,
        comparisons,
        found,
        tuple(options),
        cheapest(options),
        timed,
        finished[0].folder.parent,
    )


def print_report(report: Report, out: Path | None, console: Console) -> None:
    """Print the table and save power.png in `out`, or in the pilot's group."""
    found = report.components
    console.print(
        f"Power to find a difference of {report.difference:g} points on {_named(report.column)}, in a table of "
        f"{report.rows} rows ({report.comparisons} comparisons at once):"
    )
    shares = list(dict.fromkeys(plan.share for plan in report.plans))
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False)
    grid.add_column("seeds", justify="right")
    for share in shares:
        grid.add_column(f"{round(found.n_questions * share):,}\nquestions", justify="right")
    for seeds in dict.fromkeys(plan.seeds for plan in report.plans):
        line = [plan for plan in report.plans if plan.seeds == seeds]
        grid.add_row(str(seeds), *(f"{100 * plan.power:.0f}%" + " ◀" * (plan == report.best) for plan in line))
    console.print(grid)
    if report.best is None:
        console.print(f"None of these reaches {100 * TARGET:.0f}%: the difference is too small for them.")
    else:
        cost = f", about {report.best.cost / 3600:,.1f} hours of runs" if report.timed else ""
        console.print(
            f"Cheapest with {100 * TARGET:.0f}%: {report.best.seeds} seeds, {report.best.questions:,} questions{cost}."
        )
    points = {name: 100 * getattr(found, name) ** 0.5 for name in ("seeds", "both", "images")}
    console.print(
        f"Standard deviations in the pilot, in points ({found.n_questions:,} questions on {found.n_images:,} images; "
        f"{found.df:g} degrees of freedom between seeds): seed {points['seeds']:.1f} and seed x image "
        f"{points['both']:.1f} of one run's score, image {points['images']:.1f} of a difference. More questions means "
        "more images of the same kind. A row whose seeds vary more than the others' needs more seeds than this."
    )
    if found.df < FEWEST_DF:
        console.print("The pilot has few seeds, so these figures may be far off: run it with more.", style="yellow")
    folder = out or report.folder
    folder.mkdir(parents=True, exist_ok=True)
    draw(report).savefig(folder / "power.png", dpi=150)
    console.print(f"Saved {folder / 'power.png'}", style="dim", soft_wrap=True, highlight=False)


def _named(column: str) -> str:
    return "the mean of the tasks" if column == MEAN else column


def draw(report: Report) -> Figure:
    """Power against seeds, a line for each number of questions."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for i, share in enumerate(dict.fromkeys(plan.share for plan in report.plans)):
        line = [plan for plan in report.plans if plan.share == share]
        axis.plot(
            [plan.seeds for plan in line],
            [100 * plan.power for plan in line],
            marker="o",
            markersize=4,
            color=("#9CA3AF", "#56B4E9", "#0072B2", "#009E73", "#D55E00")[i % 5],
            label=f"{line[0].questions:,} questions",
        )
    axis.axhline(100 * TARGET, color="#111827", linestyle=":", linewidth=1)
    if report.best:
        axis.plot(
            [report.best.seeds],
            [100 * report.best.power],
            marker="s",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor="#111827",
            linestyle="none",
            label="cheapest",
        )
    axis.set(xlabel="seeds per row", ylabel="power (%)", ylim=(0, 102))
    axis.set_title(f"{report.difference:g} points on {_named(report.column)}, {report.rows} rows", loc="left")
    axis.grid(color="#E5E7EB")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
