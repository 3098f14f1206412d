"""What `ablate connectors` shows: every connector with its cost, and scan orders as pictures.

Costs are counted on fake tensors, so the paper's size takes no memory and hardly any time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ablate.core.errors import UserError
from ablate.core.registry import default_text
from connectors.contract import Connector, apply, create, describe, names, tokens_per_image
from connectors.contract import Text as Question
from connectors.grids import GridError
from connectors.scan_orders import permutation, scan_indices

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Size:
    """A place for a connector: a grid of patches with `in_dim` channels, a language model of width `out_dim`.

    `fields`: those that are set there, for the connectors that have them.
    """

    label: str
    height: int
    width: int
    in_dim: int
    out_dim: int
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.height}×{self.width}×{self.in_dim} → {self.out_dim}"


# As in experiments/demo.yaml.
DEMO = Size(
    "demo",
    7,
    7,
    320,
    128,
    {
        **{"arrangement": "released", "depth": 1, "d_state": 32, "headdim": 32, "drop_path": 0.0},
        **{"factor": 2, "pad": True, "side": 4, "width": 128, "heads": 4, "head_dim": 32},
        **{"latents": 16, "queries": 16, "tokens": 16, "sides": [1, 2, 4]},
    },
)
PAPER = Size("paper", 27, 27, 2176, 2560)


@dataclass(frozen=True)
class Cost:
    """Of one image. `flops`: those of the matrix products of a forward pass, the scan's too; a multiply-add is 2."""

    parameters: int
    flops: int
    tokens: int


def cost(name: str, size: Size, **fields: Any) -> Cost:
    """Parameters, FLOPs and visual tokens of a connector at one size.

    Args:
        fields: go over the size's own.

    Raises:
        UserError: as `connectors.create` does.
    """
    fields = size_fields(name, size) | fields
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            connector = create(name, size.in_dim, size.out_dim, **fields).eval().requires_grad_(False)
            features = torch.empty(1, size.height, size.width, size.in_dim)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                apply(connector, features, size.out_dim, text=question(connector, size))
    finally:
        scan_indices.cache_clear()  # what was cached in between is fake too
    return Cost(
        parameters=sum(parameter.numel() for parameter in connector.parameters()),
        flops=counter.get_total_flops(),
        tokens=tokens_per_image(connector, size.height, size.width),
    )


def size_fields(name: str, size: Size) -> dict[str, Any]:
    """The fields that a size sets, of those that the connector has."""
    own = {known.name for known in describe(name).fields}
    return {key: value for key, value in size.fields.items() if key in own}


def question(connector: Connector, size: Size, *, images: int = 1, length: int = 16) -> Question | None:
    """Questions of `length` tokens, for connectors that read them."""
    if not connector.reads_text:
        return None
    mask = torch.ones(images, length, dtype=torch.bool)
    return Question(torch.zeros(images, length, size.out_dim), mask)


def connectors_table(
    chosen: Sequence[str] | None = None,
    sizes: Sequence[Size] = (DEMO, PAPER),
    fields: Mapping[str, Any] | None = None,
) -> Table:
    """Every connector (or the chosen ones) with its cost at each size.

    Args:
        fields: fields to set, for the connectors that have them, such as {"arrangement": "released"}.

    Raises:
        UserError: an unknown connector, or a field that none of them has.
    """
    chosen = names() if chosen is None else chosen
    fields = dict(fields or {})
    own = {name: {known.name for known in describe(name).fields} for name in chosen}
    if stray := set(fields).difference(*own.values()):
        raise UserError(f"None of these connectors has the field {', '.join(sorted(stray))}: {', '.join(chosen)}.")

    table = Table(
        title="Connectors", caption="one image, forward pass; FLOPs of the matrix products, a multiply-add is 2"
    )
    table.add_column("connector", style="bold", no_wrap=True)
    for size in sizes:
        for title in ("parameters", "FLOPs", "tokens"):
            table.add_column(f"{size.label}\n{title}", justify="right", no_wrap=True)
    table.add_column("what it is", style="dim", overflow="fold")
    for name in chosen:
        cells = [cell for size in sizes for cell in _cost_cells(name, size, fields, own[name])]
        table.add_row(name, *cells, describe(name).summary)
    lines = [f"{size.label}: {', '.join([str(size), *_settings(size.fields)])}" for size in sizes]
    table.caption = "\n".join([*lines, str(table.caption)])
    return table


def _settings(fields: Mapping[str, Any]) -> list[str]:
    return [f"{name}={default_text(value)}" for name, value in fields.items()]


def _cost_cells(name: str, size: Size, fields: dict[str, Any], own: set[str]) -> tuple[str, str, str]:
    try:
        counted = cost(name, size, **{key: value for key, value in fields.items() if key in own})
    except GridError:
        return "–", "–", "–"
    return human(counted.parameters), human(counted.flops), str(counted.tokens)


def human(number: float) -> str:
    """Three significant digits and a unit: 693888 -> "694k", 1.5e9 -> "1.50G"."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5 or unit == "T":
            break
        number /= 1000
    return f"{number:.0f}" if unit == "" else f"{number:#.3g}".rstrip(".") + unit


# --- scan orders as pictures -----------------------------------------------------------------------------------------

# (row step, column step) -> arrow, for moves between patches that touch
_ARROWS = {(0, 1): "→", (0, -1): "←", (1, 0): "↓", (-1, 0): "↑", (1, 1): "↘", (1, -1): "↙", (-1, 1): "↗", (-1, -1): "↖"}


def _path(name: str, height: int, width: int) -> np.ndarray:
    """(row, column) of the patches in the order of reading: int64 (height * width, 2)."""
    names()  # a connector's file may bring scan orders of its own
    return np.stack(np.divmod(permutation(name, height, width), width), axis=1)


def _fractions(steps: int) -> np.ndarray:
    """0 at the first step, 1 at the last."""
    return np.linspace(0, 1, steps)


def scan_text(name: str, height: int, width: int) -> Text:
    """A scan order for the terminal, coloured from its first patch to its last.

    Every patch shows the step at which it is read, arrows lead to patches that touch:

        snake_rows, 2 × 3
        1 → 2 → 3
                ↓
        6 ← 5 ← 4

    Raises:
        UserError: an unknown scan order.
    """
    path = _path(name, height, width)
    digits = len(str(len(path)))
    pitch = digits + 3
    canvas: dict[tuple[int, int], tuple[str, int]] = {}  # (line, column) -> (character, step)
    jumps = 0
    for step, (row, column) in enumerate(path):
        for offset, digit in enumerate(f"{step + 1:>{digits}}"):
            canvas[2 * row, pitch * column + offset] = (digit, step)
    for step, (here, there) in enumerate(itertools.pairwise(path)):
        arrow = _ARROWS.get(tuple(there - here))
        if arrow is None:
            jumps += 1
            continue
        beside = digits - 1 if here[1] == there[1] else digits + 1
        canvas[here[0] + there[0], pitch * min(here[1], there[1]) + beside] = (arrow, step)

    title = f"{name}, {height} × {width}"
    if jumps:
        title += f", {jumps} jump{'s' if jumps > 1 else ''} (where no arrow leaves)"
    text = Text(title)
    colours = [_hex(colour) for colour in _colours(_fractions(len(path)))]
    for line in range(2 * height - 1):
        text.append("\n")
        for column in range(pitch * width - 3):
            character, step = canvas.get((line, column), (" ", 0))
            text.append(character, style=colours[step] if character != " " else "")
    return text


def draw_scan_png(orders: Sequence[str], height: int, width: int, path: Path | str) -> Path:
    """Draw scan orders side by side as a PNG: from the first patch (ring) to the last (square), jumps dashed.

    Args:
        orders: names of scan orders, one panel each.
        height, width: the grid. Patches are numbered by step if there is room.

    Returns:
        The path written.

    Raises:
        UserError: an unknown scan order, none at all, or a folder that does not exist.
    """
    # Not pyplot: a figure of our own needs no display and leaves no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not orders:
        raise UserError("No scan order to draw: name at least one.")
    across = min(4, len(orders))
    down = math.ceil(len(orders) / across)
    pitch = 3.0 / max(height, width)  # inches from patch to patch
    figure = Figure(figsize=(across * max(1.8, width * pitch + 0.3), down * (height * pitch + 0.6)), dpi=200)
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.18}).ravel()
    for panel, name in zip(axes, orders, strict=False):
        _draw_panel(panel, name, height, width, pitch)
    for panel in axes[len(orders) :]:
        panel.remove()
    return save_png(figure, Path(path), bbox_inches="tight", pad_inches=0.15)


def save_png(figure: Figure, path: Path, **how: Any) -> Path:
    """Save a figure on white and return its path. Raises UserError where it cannot be written."""
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}.")
    try:
        figure.savefig(path, format="png", facecolor="white", **how)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None
    return path


def _draw_panel(panel: Axes, name: str, height: int, width: int, pitch: float) -> None:
    """One scan order; `pitch` is the distance of two patches in inches, on which all line widths depend."""
    points = _path(name, height, width)[:, ::-1].astype(float)  # x = column, y = row
    colours = _colours(_fractions(len(points)))
    roomy = pitch > 0.2
    _draw_ground(panel, height, width, gap=0.08 if roomy else 0)
    line = min(2.4, max(0.9, 7 * pitch))
    for step, (here, there) in enumerate(itertools.pairwise(points)):
        x, y = np.stack([here, there], axis=1)
        if np.abs(there - here).max() > 1:
            panel.plot(x, y, color=colours[step], lw=0.5 * line, ls=(0, (3, 2.5)), alpha=0.5, zorder=1)
            continue
        panel.plot(x, y, color=colours[step], lw=line, solid_capstyle="round", zorder=2)
        if roomy:
            turn = math.degrees(math.atan2(here[1] - there[1], there[0] - here[0])) - 90  # y points down
            middle_x, middle_y = (here + there) / 2
            size = (15 * pitch) ** 2
            panel.scatter(middle_x, middle_y, s=size, marker=(3, 0, turn), color=colours[step], lw=0, zorder=3)
    _draw_steps(panel, points, colours, pitch if roomy else None)
    panel.set(xlim=(-0.6, width - 0.4), ylim=(height - 0.4, -0.6), aspect="equal")
    panel.set_axis_off()
    panel.set_title(name.replace("_", " "), fontsize=11, color="#2b2f36", pad=6)


def _draw_ground(panel: Axes, height: int, width: int, gap: float) -> None:
    """A tile for every patch, or one sheet if tiles would be too small to see."""
    from matplotlib.patches import Rectangle

    colour = "#f0f2f5"
    if not gap:
        panel.add_patch(Rectangle((-0.5, -0.5), width, height, color=colour, lw=0, zorder=0))
        return
    for row, column in np.ndindex(height, width):
        corner = (column - 0.5 + gap / 2, row - 0.5 + gap / 2)
        panel.add_patch(Rectangle(corner, 1 - gap, 1 - gap, color=colour, lw=0, zorder=0))


def _draw_steps(panel: Axes, points: np.ndarray, colours: np.ndarray, pitch: float | None) -> None:
    """Number the patches, if the pitch in inches leaves room for it, and mark the first and the last."""
    first: dict[str, Any] = {"s": 30.0, "facecolor": "white"}
    last: dict[str, Any] = {"s": 24.0, "facecolor": colours[-1]}
    xs, ys = points.T
    if pitch is not None:
        points_per_patch = 72 * pitch
        panel.scatter(xs, ys, s=(0.5 * points_per_patch) ** 2, color=colours, lw=0, zorder=4)
        for step, (x, y) in enumerate(points):
            label = str(step + 1)
            size = points_per_patch * (0.24 if len(label) < 3 else 0.19)
            panel.text(x, y, label, ha="center", va="center_baseline", color="white", fontsize=size, zorder=6)
        first = last = {"s": (0.66 * points_per_patch) ** 2, "facecolor": "none"}
    panel.scatter(xs[0], ys[0], **first, edgecolor=colours[0], lw=1.5, zorder=5)
    panel.scatter(xs[-1], ys[-1], **last, edgecolor=colours[-1], lw=1.5, marker="s", zorder=5)


def _colours(fractions: np.ndarray) -> np.ndarray:
    """(n,) in [0, 1] -> (n, 3) in [0, 1]: violet, teal, amber, readable on dark and on light ground."""
    stops = np.array([[112, 72, 198], [24, 156, 150], [240, 146, 0]]) / 255
    return np.stack([np.interp(fractions, [0, 0.5, 1], channel) for channel in stops.T], axis=-1)


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in colour)
