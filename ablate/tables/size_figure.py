"""Accuracy against cost: connectors that were trained once and read at several sizes, as curves."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ablate.tables.ablation import MEAN, AblationTable, Row
from ablate.tables.verdicts import CONFIDENCE, SizeCheck

# Okabe & Ito's palette: distinguishable with any color vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_sizes(table: AblationTable) -> Figure:
    """A panel for each connector of `table.sizes`: the mean over the tasks against visual tokens, or against the size
    where all sizes have as many tokens. Trainings for one size alone are open circles.
    """
    connectors = list(dict.fromkeys(check.row for check in table.sizes))
    figure = Figure(figsize=(4.2 * len(connectors) + 0.6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(connectors), sharey=True, squeeze=False)[0]
    for i, (axis, name) in enumerate(zip(panels, connectors, strict=True)):
        _panel(axis, table, [check for check in table.sizes if check.row == name], COLOURS[i % len(COLOURS)])
        axis.set_title(name, loc="left", fontsize=11, fontweight="bold")
    panels[0].set_ylabel("mean of the tasks (%)", fontsize=9)
    panels[-1].legend(loc="lower right", fontsize=8, frameon=False)
    figure.suptitle(f"Trained once, read at several sizes · {100 * CONFIDENCE:g}% intervals", x=0.01, ha="left")
    return figure


def _panel(axis: Axes, table: AblationTable, checks: list[SizeCheck], colour: str) -> None:
    tokens = {table.row(check.read).cost("visual_tokens") for check in checks}
    by_tokens = len(tokens) > 1
    if not by_tokens:  # what was trained is the largest, whose number is not known here
        checks = [check for check in checks if check.size is not None]

    def place(check: SizeCheck) -> float:
        return float((table.row(check.read).cost("visual_tokens") if by_tokens else check.size) or 0)

    checks = sorted(checks, key=place)
    read = [(place(check), table.row(check.read)) for check in checks]
    alone = [(place(check), table.row(check.trained)) for check in checks if check.trained]
    _curve(axis, read, "trained for all sizes", color=colour, marker="o", linestyle="-")
    if alone:
        _curve(axis, alone, "trained for one", color=colour, marker="o", markerfacecolor="white", linestyle=":")
    axis.set_xscale("log", base=2)
    axis.set_xticks([x for x, _ in read], [f"{x:g}" for x, _ in read], fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel("visual tokens" if by_tokens else "size", fontsize=9)
    axis.grid(axis="y", color="#E5E7EB", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _curve(axis: Axes, points: list[tuple[float, Row]], label: str, **style: object) -> None:
    cells = [(x, row.cells[MEAN]) for x, row in points if MEAN in row.cells]
    means = [100 * cell.mean for _, cell in cells]
    lows = [100 * (cell.mean - cell.estimate.low) if cell.estimate else 0.0 for _, cell in cells]
    highs = [100 * (cell.estimate.high - cell.mean) if cell.estimate else 0.0 for _, cell in cells]
    axis.errorbar([x for x, _ in cells], means, [lows, highs], label=label, capsize=2, linewidth=1.4, **style)  # type: ignore[arg-type]
