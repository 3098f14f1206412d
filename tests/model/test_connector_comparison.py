"""`ablate connectors --compare`: what is measured, its order, and the figure."""

import pytest
from PIL import Image

from ablate.cli import main
from ablate.core.errors import UserError
from ablate.model.connector_comparison import KEYS, compare, draw_comparison_png
from ablate.model.connector_report import Size, cost

SMALL = Size("small", 4, 4, 32, 16, {"width": 16, "heads": 2, "head_dim": 8, "depth": 1, "tokens": 4})
NAMES = ["mlp", "linear", "uniform_tokens", "qformer", "mof"]


@pytest.mark.parametrize("sort", KEYS)
def test_connectors_are_in_the_order_that_is_asked_for(sort):
    measured, left_out = compare(NAMES, SMALL, sort=sort)
    values = [getattr(each, sort) for each in measured]
    assert values == sorted(values)
    assert sorted(each.name for each in measured) == sorted(NAMES)
    assert not left_out
    assert all(each.milliseconds > 0 for each in measured)


def test_counts_are_those_of_the_list_and_memory_is_what_backward_keeps():
    (linear,), _ = compare(["linear"], SMALL)
    counted = cost("linear", SMALL)
    assert (linear.parameters, linear.flops, linear.tokens) == (counted.parameters, counted.flops, counted.tokens)
    assert linear.memory == 16 * 32 * 4  # its input, in float32


def test_what_does_not_take_the_grid_is_left_out_by_name():
    measured, left_out = compare(["linear", "gemma3"], Size("odd", 3, 3, 8, 8))
    assert [each.name for each in measured] == ["linear"]
    assert left_out == ["gemma3"]


def test_an_unknown_key_is_answered_with_the_keys():
    with pytest.raises(UserError, match=r"flop.*Did you mean flops"):
        compare(["linear"], SMALL, sort="flop")


def test_the_figure(tmp_path):
    measured, _ = compare(NAMES, SMALL)
    with Image.open(draw_comparison_png(measured, SMALL, tmp_path / "costs.png")) as picture:
        assert picture.width > picture.height > 300
    with pytest.raises(UserError, match="No connector to draw"):
        draw_comparison_png([], SMALL, tmp_path / "none.png")
    with pytest.raises(UserError, match="there is no folder"):
        draw_comparison_png(measured, SMALL, tmp_path / "missing" / "costs.png")


def test_the_command(tmp_path, capsys):
    picture = tmp_path / "costs.png"
    assert main(["connectors", "linear", "mlp", "--compare", "--sort", "parameters", "--png", str(picture)]) == 0
    text = capsys.readouterr().out
    assert text.index("linear ") < text.index("mlp ")
    assert "sorted by parameters" in text
    assert picture.is_file()
