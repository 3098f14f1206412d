"""The ablation table as a picture: a panel for the mean and each task, a dot with its interval for each connector.

It shows the paired differences to the baseline with the simultaneous intervals that the verdicts are read from; where
there is nothing to compare, the scores. Drawn without pyplot, so that it needs no display and leaves no global state.
"""

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ablate.tables.ablation import MEAN, AblationTable, Cell, Row
from ablate.tables.verdicts import CONFIDENCE

# Okabe & Ito's palette: told apart with any colour vision. The verdict is also said by the marker.
COLOURS = {"better": "#0072B2", "worse": "#D55E00", "unresolved": "#6B7280", "one seed": "#6B7280", "": "#6B7280"}
MARKERS = {"better": "^", "worse": "v", "unresolved": "o", "one seed": "D", "": "o"}
LABELS = {
    "better": "better",
    "worse": "worse",
    "unresolved": "unresolved",
    "one seed": "one seed: others unknown",
}
MARGIN = "#DCEBE0"
CONSTANT = "#C084B0"
GREY = "#6B7280"
COLUMNS = 4
NAME_WIDTH = 30  # characters of a row's name on one line
LINE = 0.19  # inches of a line of a row's name


def draw(table: AblationTable) -> Figure:
    """The figure, with a canvas, ready for `savefig`."""
    compared = any(cell.difference for row in table.rows for cell in row.cells.values())
    rows = [row for row in table.rows if not row.blind and row.cells and not (compared and row.name == table.baseline)]
    panels = [MEAN, *table.tasks] if any(MEAN in row.cells for row in rows) else list(table.tasks)
    columns = min(COLUMNS, max(1, len(panels)))
    lines = max(1, math.ceil(len(panels) / columns))
    heights = [0.14 + LINE * (1 + _short(row.name).count("\n")) for row in rows]
    figure = Figure(figsize=(3.3 * columns + 1.6, lines * (1.35 + max(1.3, sum(heights))) + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1)
    axes = figure.subplots(lines, columns, squeeze=False)
    places = [sum(heights[:i]) + heights[i] / 2 for i in range(len(rows))]
    for i, axis in enumerate(axes.flat):
        if i < len(panels):
            _panel(axis, panels[i], rows, table, compared)
            axis.set_ylim(sum(heights), 0)
            names = [_short(row.name) for row in rows] if i % columns == 0 else [""] * len(rows)
            axis.set_yticks(places, names, fontsize=9)
            for row, y in zip(rows, places, strict=True):
                if panels[i] in row.cells:
                    _dot(axis, row.cells[panels[i]], y, compared)
        else:
            axis.axis("off")
    _legend(figure, table, rows, compared, columns)
    what = f"difference to {table.baseline}" if compared else "scores"
    title = textwrap.fill(f"Ablation · {_groups(table)} · {what}", 30 * columns)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    return figure


def _panel(axis: Axes, column: str, rows: Sequence[Row], table: AblationTable, compared: bool) -> None:
    if compared:
        if table.margin.points:
            axis.axvspan(-table.margin.points, table.margin.points, color=MARGIN, linewidth=0, zorder=0)
        axis.axvline(0, color="#111827", linewidth=1, zorder=1)
    elif column in table.constant:
        axis.axvline(100 * table.constant[column], color=CONSTANT, linestyle=(0, (4, 2)), linewidth=1.4, zorder=1)
    title = "mean of the tasks" if column == MEAN else textwrap.shorten(column, 34, placeholder="…")
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold" if column == MEAN else "normal")
    metric = table.metrics.get(column, "")
    axis.set_xlabel(
        " · ".join(part for part in ("points" if compared else "%", metric) if part), fontsize=8, color=GREY
    )
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8.5, color="#9CA3AF")
    axis.grid(axis="x", color="#E5E7EB", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_facecolor("#F9FAFB" if column == MEAN else "white")
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#9CA3AF")


def _dot(axis: Axes, cell: Cell, y: float, compared: bool) -> None:
    if compared and cell.difference is None:
        return
    shown = cell.difference if compared else cell.estimate
    value = cell.difference.difference if compared else cell.mean
    colour = COLOURS[cell.verdict]
    if shown is not None and (not compared or shown.covers_seeds):
        axis.plot([100 * shown.low, 100 * shown.high], [y, y], color=colour, linewidth=2.2, zorder=2)
    axis.plot(
        [100 * value],
        [y],
        marker=MARKERS[cell.verdict],
        markersize=7,
        markerfacecolor=colour,
        markerfacecoloralt="white",
        fillstyle="none" if cell.verdict == "one seed" else "left" if cell.partial else "full",
        markeredgecolor=colour,
        markeredgewidth=1.6,
        linestyle="none",
        zorder=3,
    )


def _legend(figure: Figure, table: AblationTable, rows: Sequence[Row], compared: bool, columns: int) -> None:
    cells = [cell for row in rows for cell in row.cells.values()]
    verdicts = {cell.verdict for cell in cells}
    handles = [
        Line2D([], [], color=COLOURS[verdict], marker=MARKERS[verdict], markersize=7, linewidth=2.2, label=label)
        for verdict, label in LABELS.items()
        if verdict in verdicts
    ]
    if any(cell.partial for cell in cells):
        look = {"markerfacecoloralt": "white", "fillstyle": "left", "markersize": 7}
        handles.append(Line2D([], [], color=GREY, marker="o", label="partial", **look))
    if compared and table.margin.points:
        handles.append(Patch(color=MARGIN, label=f"margin: {table.margin}"))
    if table.constant and not compared:
        handles.append(Line2D([], [], color=CONSTANT, linestyle=(0, (4, 2)), linewidth=1.4, label="constant answer"))
    legend = figure.legend(
        handles=handles,
        title=textwrap.fill(_caption(rows, compared), 45 * columns),
        loc="outside lower left",
        ncols=max(1, min(len(handles), columns)),
        frameon=False,
        fontsize=9.5,
        title_fontsize=8,
        alignment="left",
    )
    legend.get_title().set_color(GREY)


def _caption(rows: Sequence[Row], compared: bool) -> str:
    level = f"{100 * CONFIDENCE:g} %"
    if not compared:
        return f"Scores with their {level} intervals, each by itself."
    seeds = "–".join(map(str, sorted({count(len(row.runs) for row in rows) for count in (min, max)})))
    return (
        f"Differences on the same questions with simultaneous {level} intervals over images and {seeds} seeds: all "
        "hold together. Better and worse: the interval excludes 0."
    )


def _short(name: str) -> str:
    return textwrap.fill(name, NAME_WIDTH)


def _groups(table: AblationTable) -> str:
    return ", ".join(dict.fromkeys(group.rstrip("/").rpartition("/")[2] for group in table.groups))
