"""What `ablate connectors --compare` shows: the cost of connectors, counted and measured here, and a figure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ablate.core.errors import UserError, unknown_name
from ablate.model.connector_report import Cost, Size, cost, human, question, save_png, size_fields
from connectors.contract import apply, create, names
from connectors.grids import GridError

_IMAGES, _REPEATS = 4, 5


@dataclass(frozen=True)
class Measured:
    """One connector at one size.

    Attributes:
        parameters, flops, tokens: of one image, as `Cost`.
        memory: bytes that a forward pass keeps for the backward pass, per image, apart from the parameters.
        milliseconds: of a forward and a backward pass, per image: the median of five, after one that does not count.
    """

    name: str
    parameters: int
    flops: int
    tokens: int
    memory: float
    milliseconds: float


KEYS = tuple(field.name for field in fields(Measured))


def compare(chosen: Sequence[str] | None, size: Size, *, sort: str = "flops") -> tuple[list[Measured], list[str]]:
    """Count and measure connectors at one size, with the size's fields.

    Args:
        chosen: names; None for all.
        sort: one of `KEYS`; ascending.

    Returns:
        the measured ones in order, and the names of those that do not take the size's grid.

    Raises:
        UserError: an unknown connector or key.
    """
    if sort not in KEYS:
        raise unknown_name("key to sort by", sort, KEYS)
    measured, left_out = [], []
    for name in names() if chosen is None else chosen:
        try:
            measured.append(_measure(name, size))
        except GridError:
            left_out.append(name)
    return sorted(measured, key=lambda each: getattr(each, sort)), left_out


def _measure(name: str, size: Size) -> Measured:
    counted: Cost = cost(name, size)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        connector = create(name, size.in_dim, size.out_dim, **size_fields(name, size))
        features = torch.randn(_IMAGES, size.height, size.width, size.in_dim, requires_grad=True)
    asked = question(connector, size, images=_IMAGES)
    own = {parameter.untyped_storage().data_ptr() for parameter in connector.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> float:
        start = time.perf_counter()
        apply(connector, features, size.out_dim, text=asked).tokens.sum().backward()
        return time.perf_counter() - start

    with saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    seconds = statistics.median(step() for _ in range(_REPEATS))
    return Measured(
        name,
        counted.parameters,
        counted.flops,
        counted.tokens,
        sum(kept.values()) / _IMAGES,
        1000 * seconds / _IMAGES,
    )


def comparison_table(measured: Sequence[Measured], left_out: Sequence[str], size: Size, sort: str) -> Table:
    """The measured connectors, one a row."""
    notes = [
        f"{size.label}: {size}, sorted by {sort}",
        "one image; FLOPs of a forward pass, a multiply-add is 2",
        "memory: kept for the backward pass",
        f"time: forward and backward, {torch.get_num_threads()} threads, median of {_REPEATS}",
    ]
    if left_out:
        notes.append(f"Left out, since they do not take the grid: {', '.join(left_out)}.")
    table = Table(title="Connectors", caption="\n".join(notes))
    table.add_column("connector", style="bold", no_wrap=True)
    for title in ("parameters", "FLOPs", "tokens", "memory\n(MB)", "time\n(ms)"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in measured:
        counts = [human(each.parameters), human(each.flops), str(each.tokens)]
        table.add_row(each.name, *counts, f"{each.memory / 1e6:.2f}", f"{each.milliseconds:.2f}")
    return table


def draw_comparison_png(measured: Sequence[Measured], size: Size, path: Path) -> Path:
    """Bars of parameters, FLOPs, memory and time on logarithmic axes, a connector a row, in the given order.

    Raises:
        UserError: nothing to draw, or a file that cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    if not measured:
        raise UserError("No connector to draw: name at least one that takes the grid.")
    columns: list[tuple[str, str, float]] = [
        ("parameters", "parameters", 1),
        ("flops", "FLOPs", 1),
        ("memory", "memory (MB)", 1e-6),
        ("milliseconds", "time (ms)", 1),
    ]
    figure = Figure(figsize=(11, 1.2 + 0.24 * len(measured)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, len(columns), sharey=True)
    labels = [f"{each.name} · {each.tokens}" for each in measured]
    for panel, (key, title, factor) in zip(panels, columns, strict=True):
        values = [factor * getattr(each, key) for each in measured]
        panel.barh(labels, values, color="#18968f", height=0.72)
        panel.set_xscale("log")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_ylim(len(measured) - 0.4, -0.6)  # the first on top
        panel.set_title(title, fontsize=10)
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", color="#dde1e6", lw=0.6)
        panel.set_axisbelow(True)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    figure.suptitle(f"Connectors and their visual tokens, {size.label}: {size}, one image", fontsize=11)
    return save_png(figure, path)
