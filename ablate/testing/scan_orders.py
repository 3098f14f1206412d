"""The contract of a scan order: every patch of every grid once, in an order that the grid alone decides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from connectors.scan_orders import ScanOrder, registry

__all__ = ["CHECKS", "registry", "subjects"]

GRIDS = ((1, 1), (1, 5), (5, 1), (2, 3), (4, 4), (7, 7), (27, 27))


def subjects(name: str) -> dict[str, ScanOrder]:
    return {"": registry.get(name)}


def every_patch_is_read_once(order: ScanOrder) -> None:
    for height, width in GRIDS:
        got = np.asarray(order(height, width))
        assert got.shape == (height * width,), f"on a {height} x {width} grid: shape {got.shape}"
        assert np.issubdtype(got.dtype, np.integer), f"patch numbers are {got.dtype}, expected integers"
        assert sorted(got.tolist()) == list(range(height * width)), f"on a {height} x {width} grid: {got.tolist()}"


def the_grid_alone_decides(order: ScanOrder) -> None:
    for height, width in GRIDS:
        assert np.array_equal(order(height, width), order(height, width)), f"two orders of a {height} x {width} grid"


CHECKS: list[Callable[[ScanOrder], None]] = [every_patch_is_read_once, the_grid_alone_decides]
