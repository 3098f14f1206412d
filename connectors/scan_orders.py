"""Scan orders: the paths along which a scan connector reads the patches of a grid.

A scan order is a small function of the grid, registered by name:

    @scan_order("spiral")
    def spiral(height, width): ...

It returns the height * width patch numbers (row-major: patch = row * width + column) in the order of reading. Any scan
connector then takes it: `scans=["spiral", "rows"]`.

The named sets are those of ML-Mamba (arXiv 2407.19832, Fig. 3): BSM reads the rows forwards and backwards, CSM reads
the columns as well. The figure draws a snake, in which every second line runs backwards so that neighbours in the scan
are neighbours in the image; the released code reads in raster order. `path` offers both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ablate.core.errors import UserError
from ablate.core.registry import Registry

Path = Literal["raster", "snake"]
ScanOrder = Callable[[int, int], "np.typing.ArrayLike"]

registry: Registry[ScanOrder] = Registry(
    "scan order", given=("height", "width"), package=__package__, entry_points="ablate.scan_orders"
)
# Decorator: make a function (height, width) -> patch numbers known under a name. A taken name is a UserError.
scan_order = registry.register
scan_order_names = registry.names


def _grid(height: int, width: int) -> np.ndarray:
    return np.arange(height * width).reshape(height, width)


def _snake(lines: np.ndarray) -> np.ndarray:
    """Every second line runs backwards."""
    lines = lines.copy()
    lines[1::2] = lines[1::2, ::-1]
    return lines


@scan_order("rows")
def rows(height: int, width: int) -> np.ndarray:
    """Row by row, each from left to right."""
    return _grid(height, width).ravel()


@scan_order("rows_reversed")
def rows_reversed(height: int, width: int) -> np.ndarray:
    """`rows` backwards, from the lower right corner."""
    return rows(height, width)[::-1]


@scan_order("columns")
def columns(height: int, width: int) -> np.ndarray:
    """Column by column, each from top to bottom."""
    return _grid(height, width).T.ravel()


@scan_order("columns_reversed")
def columns_reversed(height: int, width: int) -> np.ndarray:
    """`columns` backwards, from the lower right corner."""
    return columns(height, width)[::-1]


@scan_order("snake_rows")
def snake_rows(height: int, width: int) -> np.ndarray:
    """Row by row, every second one from right to left."""
    return _snake(_grid(height, width)).ravel()


@scan_order("snake_rows_reversed")
def snake_rows_reversed(height: int, width: int) -> np.ndarray:
    """`snake_rows` backwards."""
    return snake_rows(height, width)[::-1]


@scan_order("snake_columns")
def snake_columns(height: int, width: int) -> np.ndarray:
    """Column by column, every second one from bottom to top."""
    return _snake(_grid(height, width).T).ravel()


@scan_order("snake_columns_reversed")
def snake_columns_reversed(height: int, width: int) -> np.ndarray:
    """`snake_columns` backwards."""
    return snake_columns(height, width)[::-1]


def _with_its_reverse(order: ScanOrder) -> ScanOrder:
    """Register a function under its own name, and its reverse as `NAME_reversed`."""
    name = order.__name__

    def backwards(height: int, width: int) -> np.ndarray:
        return np.asarray(order(height, width))[::-1]

    backwards.__name__ = backwards.__qualname__ = f"{name}_reversed"
    backwards.__doc__ = f"`{name}` backwards."
    scan_order(f"{name}_reversed")(backwards)
    return scan_order(name)(order)


@_with_its_reverse
def diagonals(height: int, width: int) -> np.ndarray:
    """Diagonal by diagonal from the upper left corner, each from its upper end."""
    row, column = np.divmod(np.arange(height * width), width)
    return np.lexsort((row, row + column))


@_with_its_reverse
def antidiagonals(height: int, width: int) -> np.ndarray:
    """Diagonal by diagonal from the upper right corner, each from its upper end."""
    row, column = np.divmod(np.arange(height * width), width)
    return np.lexsort((row, row - column))


@_with_its_reverse
def spiral(height: int, width: int) -> np.ndarray:
    """Along the border, clockwise from the upper left corner, and inwards."""
    rest, parts = _grid(height, width), []
    while rest.size:
        parts.append(rest[0])
        rest = np.rot90(rest[1:])
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


@_with_its_reverse
def z_order(height: int, width: int) -> np.ndarray:
    """Morton's curve: quarters of quarters, of the smallest square of a power of two that holds the grid."""
    row, column = np.divmod(np.arange(height * width), width)
    code = np.zeros_like(row)
    for bit in range(max(height, width, 1).bit_length()):
        code |= ((row >> bit & 1) << (2 * bit + 1)) | ((column >> bit & 1) << (2 * bit))
    return np.argsort(code, kind="stable")


@_with_its_reverse
def hilbert(height: int, width: int) -> np.ndarray:
    """Hilbert's curve, generalised to any grid: neighbours in the scan touch, at worst by a corner.

    The grid is halved along its longer side, or into three bends of the curve, until one line is left.
    """
    if not height * width:
        return np.zeros(0, dtype=np.int64)
    start = np.array([0, 0])
    down, right = np.array([height, 0]), np.array([0, width])
    long, short = (right, down) if width >= height else (down, right)
    path = np.array(list(_hilbert(start, long, short)))
    return path[:, 0] * width + path[:, 1]


def _hilbert(at: np.ndarray, along: np.ndarray, across: np.ndarray) -> Iterator[np.ndarray]:
    """The places (row, column) of a rectangle in Hilbert's order.

    Args:
        at: its first place. along: the vector of its side in which the curve advances. across: its other side.
    """
    length, breadth = abs(along.sum()), abs(across.sum())
    ahead, aside = np.sign(along), np.sign(across)
    if breadth == 1 or length == 1:
        step, count = (ahead, length) if breadth == 1 else (aside, breadth)
        yield from (at + i * step for i in range(count))
        return
    half_along, half_across = np.fix(along / 2).astype(int), np.fix(across / 2).astype(int)
    if 2 * length > 3 * breadth:
        if abs(half_along.sum()) % 2 and length > 2:
            half_along = half_along + ahead  # an even half lets the curve leave at the right corner
        yield from _hilbert(at, half_along, across)
        yield from _hilbert(at + half_along, along - half_along, across)
        return
    if abs(half_across.sum()) % 2 and breadth > 2:
        half_across = half_across + aside
    yield from _hilbert(at, half_across, half_along)
    yield from _hilbert(at + half_across, along, across - half_across)
    yield from _hilbert(at + along - ahead + half_across - aside, -half_across, half_along - along)


def _windows(side: int) -> ScanOrder:
    def order(height: int, width: int) -> np.ndarray:
        row, column = np.divmod(np.arange(height * width), width)
        return np.lexsort((column, row, column // side, row // side))

    order.__name__ = order.__qualname__ = f"windows_{side}"
    order.__doc__ = f"Windows of {side} x {side} patches one after another (LocalMamba, arXiv 2403.09338)."
    return order


def _atrous(step: int) -> ScanOrder:
    def order(height: int, width: int) -> np.ndarray:
        row, column = np.divmod(np.arange(height * width), width)
        return np.lexsort((column, row, column % step, row % step))

    order.__name__ = order.__qualname__ = f"atrous_{step}"
    order.__doc__ = f"Every {step}th patch of every {step}th row, then the next such grid (arXiv 2403.09977)."
    return order


def _shuffled(seed: int) -> ScanOrder:
    def order(height: int, width: int) -> np.ndarray:
        return np.random.default_rng((seed, height, width)).permutation(height * width)

    order.__name__ = order.__qualname__ = f"random_{seed}"
    order.__doc__ = f"By lot, seed {seed}: the control for whether an order matters."
    return order


for _order in (*map(_windows, (2, 3, 7)), *map(_atrous, (2, 3)), *map(_shuffled, range(4))):
    _with_its_reverse(_order)


BSM: dict[Path, tuple[str, ...]] = {
    "raster": ("rows", "rows_reversed"),
    "snake": ("snake_rows", "snake_rows_reversed"),
}
CSM: dict[Path, tuple[str, ...]] = {
    "raster": (*BSM["raster"], "columns", "columns_reversed"),
    "snake": (*BSM["snake"], "snake_columns", "snake_columns_reversed"),
}


@functools.lru_cache(maxsize=256)
def permutation(name: str, height: int, width: int) -> np.ndarray:
    """The patches in the order in which the scan `name` reads them: int64 (height * width,), read-only, cached.

    Raises:
        UserError: an unknown name (answered with the choices), or a registered function that skips or repeats patches.
    """
    order = np.array(registry.get(name)(height, width), dtype=np.int64)
    if order.shape != (height * width,) or not np.array_equal(np.sort(order), np.arange(height * width)):
        raise UserError(
            f'Scan order "{name}" on a grid of {height} x {width}: expected every number from 0 to '
            f"{height * width - 1} once, got {np.array2string(order, threshold=20)}."
        )
    order.flags.writeable = False
    return order


class ScanIndices(NamedTuple):
    """K scan orders of one grid as flat row numbers, for tensors laid out as (tokens, K).

    With p_k the k-th order and q_k its inverse, each is int64 (tokens * K,):

    read:   entry (t, k) is p_k[t], the patch that direction k reads at step t.
    home:   entry (i, k) is (q_k[i], k), where direction k holds patch i. Brings scans back to image order.
    away:   entry (t, k) is (p_k[t], k), the inverse permutation of `home`.
    directions: K.
    """

    read: Tensor
    home: Tensor
    away: Tensor
    directions: int


@functools.lru_cache(maxsize=256)
def scan_indices(names: Sequence[str], height: int, width: int, device: torch.device) -> ScanIndices:
    """The indices of the scan orders `names` (a tuple) on one grid; computed once per grid and device."""
    read = np.stack([permutation(name, height, width) for name in names], axis=1)  # (tokens, K)
    inverse = np.argsort(read, axis=0)
    directions = np.arange(len(names))

    def rows(index: np.ndarray) -> Tensor:
        # An inference tensor could not be kept for a later backward pass.
        with torch.inference_mode(False):
            return torch.from_numpy(np.ascontiguousarray(index).ravel()).to(device)

    return ScanIndices(
        rows(read), rows(inverse * len(names) + directions), rows(read * len(names) + directions), len(names)
    )
