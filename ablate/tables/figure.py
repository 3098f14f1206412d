"""The ablation table as a picture: a panel for the mean and each task, a dot with its interval for each connector.

It shows the paired differences to the baseline with the simultaneous intervals that the verdicts are read from; where
there is nothing to compare, the scores. Drawn without pyplot, so that it needs no display and leaves no global state.
"""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ablate.tables.ablation import MEAN, AblationTable, Cell, Row
from ablate.tables.text import folded
from ablate.tables.verdicts import CONFIDENCE, EQUIVALENCES, EQUIVALENT_WORDS, said

# Okabe & Ito's palette: distinguishable with any color vision. The verdict is also said by the marker.
GREY = "#6B7280"
COLOURS = {
    "better": "#0072B2",
    "worse": "#D55E00",
    "equivalent": "#009E73",
    "unresolved": GREY,
    "one seed": GREY,
    "": GREY,
}
MARKERS = {"better": "^", "worse": "v", "equivalent": "s", "unresolved": "o", "one seed": "D", "": "o"}
LABELS = {
    "better": "better",
    "worse": "worse",
    "equivalent": "equivalent",
    "unresolved": "unresolved",
    "one seed": "one seed: other seeds unknown",
}
MARGIN = "#DCEBE0"
CONSTANT = "#C084B0"
COLUMNS = 4
MOST_ROWS = 24
MOST_HELD, LONGEST_HELD = 5, 300  # notes below the picture, characters of each
NAME_WIDTH = 40  # characters of a row's name on one line
LINE = 0.17  # inches of a line of a row's name


def draw(table: AblationTable) -> Figure:
    """The figure, with a canvas, ready for `savefig`."""
    compared = any(cell.difference for row in table.rows for cell in row.cells.values())
    rows, left_out = _drawn(table, compared)
    if not rows:
        return _sentence("No run that sees has scores yet: there is nothing to draw.")
    panels = [MEAN] * any(MEAN in row.cells for row in rows) + list(table.averaged if compared else table.tasks)
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    heights = [0.14 + LINE * (1 + _label(row).count("\n")) for row in rows]
    caption = _caption(table, rows, compared, left_out, 45 * columns)
    height = lines * (1.35 + max(0.7, sum(heights))) + 1.2 + 0.15 * (1 + caption.count("\n"))
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1)
    figure = Figure(figsize=(3.2 * columns + 2.4, height), layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False)
    places = [sum(heights[:i]) + heights[i] / 2 for i in range(len(rows))]
    edges = [sum(heights[:i]) for i in range(1, len(rows))]
    for i, axis in enumerate(axes.flat):
        if i >= len(panels):
            axis.axis("off")
            continue
        _panel(axis, panels[i], table, compared)
        axis.hlines(edges, 0, 1, transform=axis.get_yaxis_transform(), color="#F3F4F6", linewidth=0.8, zorder=0)
        axis.set_ylim(sum(heights), 0)
        axis.set_yticks(places, [_label(row) for row in rows] if i % columns == 0 else [""] * len(rows), fontsize=8.5)
        for row, y in zip(rows, places, strict=True):
            if compared and panels[i] in table.refused(row):
                axis.text(0, y, " not compared", fontsize=7.5, color=GREY, va="center", style="italic")
            elif panels[i] in row.cells:
                _dot(axis, row.cells[panels[i]], y, compared)
    _legend(figure, table, rows, compared, caption, columns)
    what = f"difference from {table.baseline}" if compared else "scores"
    title = textwrap.fill(f"Ablation · {_groups(table)} · {what}", 30 * columns)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    return figure


def _drawn(table: AblationTable, compared: bool) -> tuple[list[Row], int]:
    """The rows that are drawn, and how many others have scores: of many, the best by their mean."""
    rows = [row for row in table.rows if not row.blind and row.cells]
    if compared:
        rows = [row for row in rows if row.name != table.baseline and row.read_size is None]

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


def _panel(axis: Axes, column: str, table: AblationTable, compared: bool) -> None:
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
    axis.margins(x=0.09)  # space for the symbols after the intervals
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8.5, color="#9CA3AF")
    axis.grid(axis="x", color="#E5E7EB", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_facecolor("#F9FAFB" if column == MEAN else "white")
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#9CA3AF")


def _dot(axis: Axes, cell: Cell, y: float, compared: bool) -> None:
    shown: Any = cell.difference if compared else cell.estimate
    if compared and shown is None:
        return
    value = shown.difference if compared else cell.mean
    colour = COLOURS[cell.verdict]
    if shown is not None and (not compared or shown.covers_seeds):
        axis.plot([100 * shown.low, 100 * shown.high], [y, y], color=colour, linewidth=2.2, zorder=2)
        if symbol := EQUIVALENCES[said(cell.verdict, cell.equivalence)]:
            place: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            axis.annotate(symbol, (100 * shown.high, y), fontsize=9, color=colour, **place)
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


def _legend(
    figure: Figure, table: AblationTable, rows: Sequence[Row], compared: bool, caption: str, columns: int
) -> None:
    cells = [cell for row in rows for cell in row.cells.values()]
    verdicts = {cell.verdict for cell in cells}
    handles: list[Any] = [
        Line2D(
            [],
            [],
            color=COLOURS[verdict],
            marker=MARKERS[verdict],
            markersize=7,
            linewidth=0 if verdict == "one seed" else 2.2,
            fillstyle="none" if verdict == "one seed" else "full",
            label=label,
        )
        for verdict, label in LABELS.items()
        if verdict in verdicts
    ]
    if any(cell.partial for cell in cells):
        look: dict[str, Any] = {"markerfacecoloralt": "white", "fillstyle": "left", "markersize": 7}
        handles.append(Line2D([], [], color=GREY, marker="o", label="partial", **look))
    if compared and table.margin.points:
        handles.append(Patch(color=MARGIN, label=f"margin: {table.margin}"))
    if table.constant and not compared:
        handles.append(Line2D([], [], color=CONSTANT, linestyle=(0, (4, 2)), linewidth=1.4, label="constant answer"))
    legend = figure.legend(
        handles=handles,
        title=caption,
        loc="outside lower left",
        ncols=max(1, 2 * columns - 2),
        frameon=False,
        fontsize=9.5,
        title_fontsize=8,
        alignment="left",
    )
    legend.get_title().set_color(GREY)


def _caption(table: AblationTable, rows: Sequence[Row], compared: bool, left_out: int, width: int) -> str:
    """How to read the picture, what the marks after the names mean, and which rows are not like the baseline."""
    level = f"{100 * CONFIDENCE:g}%"
    cells = [cell for row in rows for cell in row.cells.values()]
    if not compared:
        text = f"Scores with their {level} intervals, each by itself."
    elif all(cell.verdict in ("one seed", "") for cell in cells):
        text = "Differences on the same questions. One seed: others are unknown, so no intervals and no verdicts."
    else:
        counts = sorted({len(row.runs) for row in (*rows, table.row(table.baseline)) if len(row.runs) > 1})
        seeds = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        text = (
            f"Differences on the same questions with simultaneous {level} intervals over images and {seeds} seeds, "
            "which all hold at once. Better and worse: the interval excludes 0."
        )
        used = {said(cell.verdict, cell.equivalence) for cell in cells}
        found = [f"{EQUIVALENCES[name]} {words}" for name, words in EQUIVALENT_WORDS.items() if name in used]
        text += f" {', '.join(found)}." if found else ""
    if left_out:
        text += f" The best {len(rows)} rows are drawn; {left_out:,} others are in table.csv."
    lines = [text, *([table.marks] if table.marks else []), *table.held[:MOST_HELD]]
    if len(table.held) > MOST_HELD:
        lines.append(f"{len(table.held) - MOST_HELD} more notes on this are in table.md.")
    shortened = (textwrap.shorten(line, LONGEST_HELD, placeholder=" …") if i else line for i, line in enumerate(lines))
    return "\n".join(textwrap.fill(line, width) for line in shortened)


def _label(row: Row) -> str:
    return folded(row.name + row.marks, NAME_WIDTH)


def _groups(table: AblationTable) -> str:
    return ", ".join(dict.fromkeys(group.rstrip("/").rpartition("/")[2] for group in table.groups))
