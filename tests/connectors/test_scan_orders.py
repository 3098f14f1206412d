import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import connectors.scan_orders as scan_orders
from ablate.core.errors import UserError
from connectors.scan_orders import BSM, CSM, permutation, scan_indices, scan_order, scan_order_names

sides = st.integers(1, 12)
orders = st.sampled_from(scan_order_names())


@pytest.fixture
def registry(monkeypatch):
    """Scan orders registered in the test are gone after it."""
    monkeypatch.setattr(scan_orders.registry, "_members", dict(scan_orders.registry._members))
    yield
    permutation.cache_clear()


@given(orders, sides, sides)
def test_every_order_reads_each_patch_once(name, height, width):
    order = permutation(name, height, width)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(height * width))


@given(orders, sides, sides)
def test_a_reversed_order_is_the_reverse(name, height, width):
    if name.endswith("_reversed"):
        forwards = permutation(name.removesuffix("_reversed"), height, width)
        assert list(permutation(name, height, width)) == list(forwards[::-1])


@given(st.sampled_from(["raster", "snake"]), sides, sides)
def test_the_second_scan_of_bsm_is_the_reverse_of_the_first(path, height, width):
    first, second = (permutation(name, height, width) for name in BSM[path])
    assert list(second) == list(first[::-1])
    assert CSM[path][:2] == BSM[path]


@given(orders, sides, sides)
def test_columns_are_the_rows_of_the_transposed_grid(name, height, width):
    if "columns" in name:
        rows = permutation(name.replace("columns", "rows"), width, height)
        transposed = [patch % height * width + patch // height for patch in rows]
        assert list(permutation(name, height, width)) == transposed


@given(orders, sides, sides)
def test_neighbours_of_a_snake_touch(name, height, width):
    row, column = np.divmod(permutation(name, height, width), width)
    distance = np.abs(np.diff(row)) + np.abs(np.diff(column))
    if name.startswith("snake"):
        assert (distance == 1).all()
    elif height > 1 and width > 1 and name.startswith(("rows", "columns")):
        assert distance.max() > 1 or height * width <= 2


@given(st.lists(orders, min_size=1, max_size=4), sides, sides)
def test_indices_undo_each_other(names, height, width):
    tokens, k = height * width, len(names)
    read, home, away, directions = scan_indices(tuple(names), height, width, torch.device("cpu"))
    assert directions == k
    scanned = torch.arange(tokens)[read]  # what each direction reads, as (t, k)
    assert torch.equal(scanned.view(tokens, k)[:, 0], torch.from_numpy(permutation(names[0], height, width).copy()))
    assert torch.equal(scanned[home].view(tokens, k), torch.arange(tokens)[:, None].expand(tokens, k))
    assert torch.equal(home[away], torch.arange(tokens * k))


def test_computed_once_per_grid(registry):
    calls = []

    @scan_order("counted")
    def counted(height, width):
        calls.append((height, width))
        return range(height * width)

    for _ in range(3):
        scan_indices(("counted", "rows"), 5, 4, torch.device("cpu"))
    assert calls == [(5, 4)]
    scan_indices.cache_clear()


def test_the_snake_of_the_figure():
    assert permutation("snake_rows", 3, 3).tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]
    assert permutation("snake_columns", 2, 3).tolist() == [0, 3, 4, 1, 2, 5]
    assert permutation("columns_reversed", 2, 3).tolist() == [5, 2, 4, 1, 3, 0]


def test_a_taken_name(registry):
    with pytest.raises(UserError, match=r'"rows" is registered twice: by connectors.scan_orders.rows and by .*mine'):

        @scan_order("rows")
        def mine(height, width):
            return range(height * width)


def test_an_unknown_name():
    with pytest.raises(UserError, match=r'Unknown scan order "row"\. Did you mean rows'):
        permutation("row", 2, 2)


@pytest.mark.parametrize("wrong", [[0, 1, 2], [0, 1, 1, 3], [1, 2, 3, 4]])
def test_an_order_that_skips_or_repeats_patches(registry, wrong):
    scan_order("wrong")(lambda height, width: wrong)
    with pytest.raises(UserError, match=r'"wrong" on a grid of 2 x 2: expected every number from 0 to 3 once'):
        permutation("wrong", 2, 2)


def test_a_cached_order_cannot_be_spoilt():
    with pytest.raises(ValueError, match="read-only"):
        permutation("rows", 2, 2)[0] = 1


@given(orders, sides, sides)
def test_curves_that_fill_the_grid_do_not_jump(name, height, width):
    row, column = np.divmod(permutation(name, height, width), width)
    jump = np.maximum(np.abs(np.diff(row)), np.abs(np.diff(column)))
    if name.startswith(("hilbert", "spiral")):
        assert (jump == 1).all()


@given(st.sampled_from([1, 2, 3]))
def test_hilbert_and_z_order_read_quarters_one_after_another(power):
    side = 2**power
    for name in ("hilbert", "z_order"):
        row, column = np.divmod(permutation(name, side, side), side)
        quarter = (row >= side // 2) * 2 + (column >= side // 2)
        assert (np.diff(quarter) != 0).sum() == 3


@given(sides, sides)
def test_windows_and_atrous_grids_are_read_one_after_another(height, width):
    row, column = np.divmod(permutation("windows_3", height, width), width)
    window = (row // 3) * -(-width // 3) + column // 3
    assert (np.diff(window) >= 0).all()
    row, column = np.divmod(permutation("atrous_2", height, width), width)
    part = (row % 2) * 2 + column % 2
    assert (np.diff(part) >= 0).all()


def test_random_orders_differ_by_seed():
    drawn = {tuple(permutation(f"random_{seed}", 7, 7)) for seed in range(4)}
    assert len(drawn) == 4
