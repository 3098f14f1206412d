"""The ablation table as a picture: a panel for each task, a dot with its interval for each connector.

Drawn without pyplot, so that it needs no display and leaves no global state.
"""

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ablate.tables.ablation import ALPHA, MEAN, AblationTable, Cell, Row

# Okabe & Ito's palette: told apart with any colour vision. The verdict is also said by the marker.
COLOURS = {"better": "#0072B2", "worse": "#D55E00", "no difference": "#6B7280", "": "#6B7280", "baseline": "#111827"}
MARKERS = {"better": "^", "worse": "v", "no difference": "o", "": "o", "baseline": "s"}
CONSTANT = "#C084B0"
BLIND = "#9CA3AF"
COLUMNS = 4
MOST_ROWS = 24


def draw(table: AblationTable) -> Figure:
    """The figure, with a canvas, ready for `savefig`."""
    rows, left_out = _drawn(table)
    if not rows:
        return _sentence("No run that sees has scores yet: there is nothing to draw.")
    blind = {check.row: twin for check in table.blind_checks if (twin := table.twin(check.row))}
    panels = [MEAN, *table.tasks] if any(MEAN in row.cells for row in rows) else list(table.tasks)
    columns = min(COLUMNS, len(panels) + 1)
    lines = math.ceil((len(panels) + 1) / columns)  # one place is the legend's
    figure = Figure(
        figsize=(3.3 * columns + 1.2, lines * (1.25 + 0.36 * max(3, len(rows))) + 0.7), layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1)
    axes = figure.subplots(lines, columns, squeeze=False)
    for i, axis in enumerate(axes.flat):
        if i < len(panels):
            _panel(axis, panels[i], rows, blind, table, labels=i % columns == 0)
        else:
            axis.axis("off")
    _legend(axes.flat[-1], table, rows, bool(blind), left_out)
    figure.suptitle(f"Ablation · {_groups(table)}", x=0.01, ha="left", fontsize=13, fontweight="bold")
    return figure


def _drawn(table: AblationTable) -> tuple[list[Row], int]:
    """The rows that are drawn, and how many others have scores: the baseline and, of many, the best by their mean."""
    rows = [row for row in table.rows if not row.blind and row.cells]

    def place(row: Row) -> tuple[bool, float]:
        scores = [row.cells[MEAN]] if MEAN in row.cells else row.cells.values()
        return row.name != table.baseline, -max(cell.mean for cell in scores)

    kept = {row.name for row in sorted(rows, key=place)[:MOST_ROWS]}
    return [row for row in rows if row.name in kept], len(rows) - len(kept)


def _sentence(text: str) -> Figure:
    figure = Figure(figsize=(6, 1.2))
    FigureCanvasAgg(figure)
    figure.text(0.03, 0.5, text, va="center", fontsize=10)
    return figure


def _panel(
    axis: Axes, column: str, rows: Sequence[Row], blind: dict[str, Row], table: AblationTable, labels: bool
) -> None:
    for i, row in enumerate(rows):
        if (twin := blind.get(row.name)) and column in twin.cells:
            _dot(axis, twin.cells[column], i + 0.22, BLIND, "o", hollow=True)
        if column in row.cells:
            look = "baseline" if row.name == table.baseline else row.cells[column].verdict
            _dot(axis, row.cells[column], i - 0.12, COLOURS[look], MARKERS[look])
    if reference := table.row(table.baseline).cells.get(column):
        axis.axvline(100 * reference.mean, color=COLOURS["baseline"], linestyle=":", linewidth=1, alpha=0.5, zorder=1)
    if column in table.constant:
        axis.axvline(100 * table.constant[column], color=CONSTANT, linestyle=(0, (4, 2)), linewidth=1.4, zorder=1)
    metric = table.metrics.get(column, "")
    title = "mean of the tasks" if column == MEAN else column
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold" if column == MEAN else "normal")
    axis.set_title(metric if column != MEAN else "%", loc="right", fontsize=8, color="#6B7280")
    axis.set_ylim(len(rows) - 0.4, -0.6)
    names = [_short(row.name) + row.marks if labels else "" for row in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=9.5)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8.5, color="#9CA3AF")
    axis.grid(axis="x", color="#E5E7EB", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_facecolor("#F9FAFB" if column == MEAN else "white")
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#9CA3AF")
    for i in range(len(rows)):
        axis.axhline(i + 0.5, color="#F3F4F6", linewidth=0.8, zorder=0)


def _dot(axis: Axes, cell: Cell, y: float, colour: str, marker: str, hollow: bool = False) -> None:
    if cell.estimate is not None:
        ends = [100 * cell.estimate.low, 100 * cell.estimate.high]
        axis.plot(ends, [y, y], color=colour, linewidth=1.2 if hollow else 2.2, solid_capstyle="round", zorder=2)
    axis.plot(
        [100 * cell.mean],
        [y],
        marker=marker,
        markersize=5 if hollow else 7,
        markerfacecolor="white" if hollow else colour,
        markerfacecoloralt="white",
        fillstyle="left" if cell.partial and not hollow else "full",
        markeredgecolor=colour,
        markeredgewidth=1.2 if hollow else 1.6,
        linestyle="none",
        zorder=3,
    )


def _legend(axis: Axes, table: AblationTable, rows: Sequence[Row], blind: bool, left_out: int) -> None:
    def entry(look: str, label: str) -> Line2D:
        return Line2D([], [], color=COLOURS[look], marker=MARKERS[look], markersize=7, linewidth=2.2, label=label)

    verdicts = {cell.verdict for row in rows for cell in row.cells.values()}
    handles = [entry("baseline", f"{_short(table.baseline)} (baseline)")]
    labels = {"better": "really better", "worse": "really worse", "no difference": "no real difference"}
    handles += [entry(verdict, label) for verdict, label in labels.items() if verdict in verdicts]
    if any(cell.partial for row in rows for cell in row.cells.values()):
        handles.append(
            Line2D(
                [],
                [],
                color=COLOURS[""],
                marker="o",
                markerfacecoloralt="white",
                fillstyle="left",
                markersize=7,
                label="partial",
            )
        )
    if blind:
        handles.append(
            Line2D(
                [], [], color=BLIND, marker="o", markerfacecolor="white", markersize=5, linewidth=1.2, label="blind run"
            )
        )
    if table.constant:
        handles.append(Line2D([], [], color=CONSTANT, linestyle=(0, (4, 2)), linewidth=1.4, label="constant answer"))
    axis.legend(handles=handles, loc="center left", frameon=False, fontsize=9.5, labelspacing=0.7)
    seeds = "–".join(map(str, sorted({count(len(row.runs) for row in rows) for count in (min, max)})))
    over = "images; one seed each, so other seeds may differ more" if seeds == "1" else f"images and {seeds} seeds"
    text = f"95 % intervals over {over}. “Really”: Holm-adjusted p ≤ {ALPHA:g}, the same questions compared."
    if table.marks:
        text += f" {table.marks}"
    if left_out:
        text += f" The best {len(rows)} rows are drawn; {left_out:,} others are in table.csv."
    axis.text(0.02, 0.0, textwrap.fill(text, 44), transform=axis.transAxes, fontsize=7.5, color="#6B7280", va="bottom")


def _short(name: str) -> str:
    return textwrap.fill(name, 26, break_long_words=False)


def _groups(table: AblationTable) -> str:
    return ", ".join(dict.fromkeys(group.rstrip("/").rpartition("/")[2] for group in table.groups))
