import io

import pytest
import torch
from PIL import Image
from rich.console import Console

import connectors
from ablate.api.settings import EXPERIMENTS
from ablate.core.config import load
from ablate.core.errors import UserError
from ablate.core.registry import fields_table
from ablate.model import build_vlm, count_parameters
from ablate.model.connector_report import (
    DEMO,
    PAPER,
    Size,
    connectors_table,
    cost,
    draw_scan_png,
    human,
    scan_text,
)
from ablate.runs.config import RunConfig
from connectors.scan_orders import permutation, scan_order_names

SMALL = Size("small", 4, 4, 32, 64)


@pytest.mark.parametrize("name", connectors.names())
def test_cost_is_that_of_the_connector_really_built(name):
    fields = connectors.contract.registry.get(name).test_fields
    built = connectors.create(name, SMALL.in_dim, SMALL.out_dim, **fields)
    counted = cost(name, SMALL, **fields)
    assert counted.parameters == sum(p.numel() for p in built.parameters())
    question = connectors.Text(torch.zeros(1, 2, 64), torch.ones(1, 2, dtype=torch.bool))
    assert counted.tokens == connectors.apply(built, torch.zeros(1, 4, 4, 32), 64, text=question).tokens.shape[1]


def test_flops_of_the_plain_connectors():
    assert cost("linear", SMALL).flops == 2 * 16 * 32 * 64
    assert cost("mlp", SMALL).flops == 2 * 16 * (32 * 128 + 128 * 64 + 64 * 64)


def test_scans_are_counted_and_cost_more_than_none():
    flops = {name: cost(name, SMALL).flops for name in ("mlp", "msc_basic_bsm", "msc_basic_csm", "msc_csm")}
    assert flops["mlp"] < flops["msc_basic_bsm"] < flops["msc_basic_csm"] < flops["msc_csm"]


def test_the_papers_size():
    counted = cost("mlp", PAPER)
    assert counted.parameters == 2177 * 8704 + 8705 * 2560 + 2561 * 2560
    assert counted.tokens == 729


def test_counting_leaves_nothing_fake_behind():
    cost("msc_csm", Size("odd", 3, 5, 32, 64))
    connector = connectors.create("msc_csm", 32, 64)
    tokens = connector(torch.randn(1, 3, 5, 32))
    assert type(tokens) is torch.Tensor
    assert tokens.isfinite().all()


def test_table_lists_every_connector():
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(connectors_table(sizes=[DEMO]))
    text = console.export_text()
    for name in connectors.names():
        assert name in text
    assert "591k" in text  # the MLP's parameters at the demo's size
    assert "7×7×320 → 128" in text


@pytest.mark.parametrize("name", connectors.names())
def test_the_demos_size_is_that_of_its_config(name):
    config = load(RunConfig, [EXPERIMENTS / "demo.yaml"], [f"connector.name={name}", "encoder.weights=[random]"])
    vlm = build_vlm(config.model, seed=0)
    assert (DEMO.height, DEMO.width, DEMO.in_dim) == (*vlm.encoder.grid, vlm.encoder.dim)
    assert cost(name, DEMO).parameters == count_parameters(vlm).connector


def test_every_field_of_every_connector_is_explained():
    """In a terminal of 120 columns: type or choices, default and what it is."""
    shown = {}
    for name in connectors.names():
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(fields_table(connectors.describe(name)))
        text = shown[name] = " ".join(console.export_text().replace("│", " ").split())
        for known in connectors.describe(name).fields:
            assert known.doc, f"{name}.{known.name} is not described under Args:"
            assert known.name in text
            assert known.doc.split()[0] in text
    assert "paper or released" in shown["msc_csm"]
    assert "null" in shown["msc_csm"]


def test_table_with_fields():
    table = connectors_table(["mlp", "msc_bsm"], sizes=[SMALL], fields={"arrangement": "released"})
    parameters = list(table.columns[1].cells)
    assert parameters == [
        human(cost("mlp", SMALL).parameters),
        human(cost("msc_bsm", SMALL, arrangement="released").parameters),
    ]
    with pytest.raises(UserError, match="arangement"):
        connectors_table(["mlp", "msc_bsm"], sizes=[SMALL], fields={"arangement": "released"})


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (693888, "694k"),
        (999_600, "1.00M"),
        (1.5e9, "1.50G"),
        (2.06e11, "206G"),
    ],
)
def test_human_numbers(number, text):
    assert human(number) == text


def drawn(name: str, height: int, width: int) -> list[str]:
    return [line.rstrip() for line in scan_text(name, height, width).plain.splitlines()]


def test_a_snake_in_the_terminal():
    assert drawn("snake_rows", 2, 3)[1:] == ["1 → 2 → 3", "        ↓", "6 ← 5 ← 4"]


def test_jumps_are_said():
    title, *lines = drawn("columns_reversed", 3, 2)
    assert lines == ["6   3", "↑   ↑", "5   2", "↑   ↑", "4   1"]
    assert title == "columns_reversed, 3 × 2, 1 jump (where no arrow leaves)"


@pytest.mark.parametrize("name", scan_order_names())
@pytest.mark.parametrize("grid", [(1, 1), (4, 3), (1, 12), (11, 2)])
def test_drawn_numbers_are_the_steps(name, grid):
    height, width = grid
    lines = drawn(name, height, width)[1::2]
    steps = [[int(word) for word in line.split() if word.isdigit()] for line in lines]
    order = permutation(name, height, width)
    assert [[steps[patch // width][patch % width] for patch in order]] == [list(range(1, height * width + 1))]


def test_colours_are_only_in_the_rich_text():
    assert scan_text("rows", 2, 2).spans
    assert "\x1b" not in scan_text("rows", 2, 2).plain


@pytest.mark.parametrize("grid", [(3, 4), (27, 27), (1, 1)])
def test_png(tmp_path, grid):
    path = draw_scan_png(["rows", "snake_columns_reversed"], *grid, tmp_path / "scans.png")
    image = Image.open(path).convert("RGB")
    assert image.width > 400
    assert len(image.getcolors(maxcolors=1 << 24)) > 20


def test_png_twice_gives_the_same_bytes(tmp_path):
    first, second = (draw_scan_png(["rows"], 3, 3, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_png_errors(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        draw_scan_png(["rows"], 2, 2, tmp_path / "none" / "x.png")
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        draw_scan_png(["rows"], 2, 2, tmp_path)
    with pytest.raises(UserError, match="Unknown scan order"):
        draw_scan_png(["zigzag"], 2, 2, tmp_path / "x.png")
    with pytest.raises(UserError, match="at least one"):
        draw_scan_png([], 2, 2, tmp_path / "x.png")
