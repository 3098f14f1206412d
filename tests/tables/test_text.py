import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from rich.cells import cell_len
from rich.console import Console

from ablate.tables import collect, show, table
from ablate.tables.ablation import MEAN, ablation_table
from ablate.tables.csv_files import long_csv, wide_csv
from ablate.tables.figure import draw
from ablate.tables.text import MISSING, Section, _end, _p, _stacked, grid, markdown
from ablate.tables.verdicts import ALPHA


@pytest.fixture
def messy(full):
    """Everything that can be flagged."""
    full.add("msc_bsm", 0, questions=30, settings={"train.learning_rate": 5e-3})
    full.unfinished("msc_bsm", 1, failed=True, learning_rate=5e-3)
    full.unfinished("msc_basic_csm", 0)
    return full


def table_of(runs):
    return ablation_table(collect([runs.group]))


def printed(runs, width):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    show(table(runs.group), console=console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_it_fits_the_terminal_with_nothing_cut_off(messy, width):
    text = printed(messy, width)
    lines = [line for line in text.splitlines() if not line.startswith("Saved")]
    assert max(map(cell_len, lines)) <= width
    assert "…" not in text
    for name in ("msc_csm", "└ blind", "constant answer", "majority answer", "peak memory"):
        assert name in text


def test_what_the_terminal_says(full):
    text = printed(full, 120)
    assert "Scores (%) · 18 of 18 runs finished" in text
    assert "Difference from mlp" in text
    row = next(line for line in text.splitlines() if line.startswith("msc_csm"))
    cell = table_of(full).row("msc_csm").cells[MEAN]
    assert f"90.0 [{100 * cell.estimate.low:.1f}, {100 * cell.estimate.high:.1f}]" in row
    assert "• msc_csm: better than mlp (+40.0 points," in text
    assert "adjusted p < .001); beats its own blind run on 3 of 3 tasks" in " ".join(text.split())
    assert "Before you believe it" not in text


def test_what_is_partial_or_different_is_marked_in_its_row(messy):
    text = printed(messy, 200)
    row = next(line for line in text.splitlines() if line.startswith("msc_bsm*"))
    assert row.count("†") >= 4  # every score
    assert "• msc_basic_csm: 0 of 1 seeds finished" in text
    assert "• msc_bsm: 30 of 60 questions" in text
    assert "train.learning_rate 0.005 instead of 0.001" in text


def test_the_splits_of_published_benchmarks_are_named(runs):
    runs.add(tasks=("vqav2", "demo_gqa", "vizwiz"), level=0.5)
    assert "each score by itself. Splits: vqav2 val; vizwiz val." in " ".join(printed(runs, 120).split())
    assert "Splits: vqav2 val; vizwiz val." in markdown(table_of(runs))


def test_the_demo_has_splits_of_nobody_else(full):
    assert "Splits" not in printed(full, 120)


def test_markdown_has_whole_tables(messy):
    text = markdown(table_of(messy))
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1
    assert "| connector | mean | demo_vqa | demo_gqa | demo_pope | seeds |" in text
    assert "msc_bsm\\*" in text


def test_the_long_csv_keeps_full_precision(full):
    table = table_of(full)
    lines = list(csv.DictReader(io.StringIO(long_csv(table))))
    assert len(lines) == len(table.rows) * 4 + 2 * 4  # three tasks and the mean; constant and majority answers
    line = next(line for line in lines if line["row"] == "msc_csm" and line["task"] == "demo_gqa")
    cell = table.row("msc_csm").cells["demo_gqa"]
    assert float(line["score"]) == 100 * cell.mean
    assert (float(line["low"]), float(line["high"])) == (100 * cell.estimate.low, 100 * cell.estimate.high)
    found = cell.difference
    assert (float(line["difference_low"]), float(line["difference_high"])) == (100 * found.low, 100 * found.high)
    assert float(line["p_adjusted"]) == found.p_value
    assert line["verdict"] == cell.verdict
    assert line["partial"] == "False"


def test_the_wide_csv_has_a_line_for_each_row(messy):
    table = table_of(messy)
    lines = {line["row"]: line for line in csv.DictReader(io.StringIO(wide_csv(table)))}
    assert set(lines) == {row.name for row in table.rows}
    assert float(lines["msc_csm"]["mean"]) == 100 * table.row("msc_csm").cells[MEAN].mean
    assert lines["msc_csm"]["visual_tokens"] == "49"
    assert lines["msc_basic_csm"]["mean"] == ""
    assert lines["msc_bsm"]["differs"] == "train.learning_rate: 0.005 / 0.001"


def overlaps(figure):
    """Pairs of texts that lie on one another."""
    figure.canvas.draw()
    outside = {
        label
        for axis in figure.axes
        for label, place in zip(axis.get_xticklabels(), axis.get_xticks(), strict=True)
        if not axis.get_xlim()[0] <= place <= axis.get_xlim()[1]
    }
    shown = (text for text in figure.findobj(Text) if text.get_visible() and text not in outside)
    texts = [text for text in shown if text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [
        (one, other)
        for i, (one, box) in enumerate(boxes)
        for other, against in boxes[i + 1 :]
        if box.padded(-1).overlaps(against.padded(-1)) and one != other
    ]


def test_the_picture_shows_the_differences_with_the_intervals_of_the_verdicts(messy):
    table = table_of(messy)
    figure = draw(table)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[:4] == ["mean of the tasks", "demo_vqa", "demo_gqa", "demo_pope"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [label.rstrip("*‡§") for label in labels] == ["linear", "msc_bsm", "msc_csm"]
    found = table.row("msc_csm").cells[MEAN].difference
    assert [100 * found.low, 100 * found.high] in [list(line.get_xdata()) for line in figure.axes[0].lines]


@pytest.mark.parametrize("count", [1, 3, 12])
def test_no_text_of_the_picture_lies_on_another(runs, count):
    for seed in range(2):
        runs.add("mlp", seed, level=0.4, settings={"margin": 4.0})
        for i in range(count):
            settings = {
                "margin": 4.0,
                "connector.fields.hidden_multiplier": i,
                "connector.fields.scan_orders": f"row_major_{i}",
            }
            runs.add("a_connector_with_a_very_long_name_of_its_own", seed, level=0.5, settings=settings, suffix=f"-{i}")
    runs.add("once", 0, level=0.9, settings={"margin": 4.0})
    assert overlaps(draw(table_of(runs))) == []


def test_a_table_with_nothing_to_compare_shows_its_scores(runs):
    runs.add("mlp")
    figure = draw(table_of(runs))
    constants = [line for line in figure.axes[1].lines if list(line.get_xdata()) == [10.0, 10.0]]
    assert len(constants) == 1
    assert overlaps(figure) == []


def test_intervals_are_written_low_to_high_and_keep_their_side_of_zero():
    assert [_end(value) for value in (0.012, -0.003, 0.0004, -0.00004, 0.0)] == [
        "+1.2",
        "−0.3",
        "+0.04",
        "−0.004",
        "0.0",
    ]


def test_one_seed_has_no_interval_and_no_verdict_anywhere(runs):
    for seed in range(3):
        runs.add("mlp", seed, level=0.1)
    runs.add("linear", 0, level=0.9)
    table = table_of(runs)
    assert "+80.0 1 seed" in markdown(table)
    assert "one seed: other seeds unknown" in markdown(table)
    line = next(line for line in csv.DictReader(io.StringIO(long_csv(table))) if line["row"] == "linear")
    assert line["verdict"] == "one seed: other seeds unknown"
    assert "p_adjusted" not in line


def test_the_foot_says_what_is_assumed_what_the_margin_is_and_what_could_have_been_found(full):
    text = " ".join(printed(full, 120).split())
    assert "on a task the seeds of all rows vary alike" in text
    assert "No margin was given" in text
    assert "Difference that is found with 80% power:" in text
    console = Console(width=120, file=io.StringIO())
    show(table(full.group, margin=60), console=console)
    text = " ".join(console.file.getvalue().split())
    assert "Margin 60 points, chosen afterwards" in text
    assert "msc_csm: better than mlp" in text
    assert "within the margin; beats" in text
    lines = {
        line["row"]: line
        for line in csv.DictReader(io.StringIO(wide_csv(ablation_table(collect([full.group]), margin=60))))
    }
    assert (lines["msc_csm"]["verdict"], lines["msc_csm"]["equivalence"]) == ("better", "equivalent")
    assert (lines["msc_csm"]["margin"], lines["msc_csm"]["margin_set"]) == ("60", "afterwards")


def test_all_files_are_saved_where_they_belong(full, tmp_path):
    show(table([full.group]), console=Console(file=io.StringIO()))
    names = {"table.md", "table.csv", "table_wide.csv", "table.png"}
    assert names <= {path.name for path in full.group.iterdir()}
    assert (full.group / "table.png").read_bytes().startswith(b"\x89PNG")
    show(table([full.group]), tmp_path / "elsewhere", console=Console(file=io.StringIO()))
    assert names == {path.name for path in (tmp_path / "elsewhere").iterdir()}


def test_without_folders_the_latest_group_is_shown(full, monkeypatch):
    assert table(root=full.group.parent).groups == (str(full.group),)


@pytest.mark.parametrize("tasks", [["demo_vqa"], ["demo_vqa", "demo_gqa"]])
def test_few_tasks_and_one_run(runs, tasks):
    runs.add("mlp", tasks=tasks)
    text = printed(runs, 100)
    assert "one seed: other seeds unknown" in text
    assert (runs.group / "table.png").exists()


NUMBERS = st.sampled_from(["100.0±12.3†", "−12.3±4.5▲†", "+0.2 to +12.1▼", "7.5", MISSING, "1,234,567", "3 of 5†"])
# Letters that take one cell and two.
WORDS = st.text("abzMSC_=.-éω漢字 ", min_size=1, max_size=90).map(str.strip).filter(bool)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), width=st.integers(60, 200), columns=st.integers(1, 14))
def test_at_any_width_no_number_is_cut(data, width, columns):
    """Names and headers go on in more lines; blocks of columns stand below one another."""
    header = ("connector", *(data.draw(WORDS).replace("_", "_\n", 1) for _ in range(columns)))
    body = tuple(
        (data.draw(WORDS), *(data.draw(NUMBERS) for _ in range(columns))) for _ in range(data.draw(st.integers(1, 4)))
    )
    console = Console(width=width, file=io.StringIO())
    blocks = list(_stacked(Section("scores", header, body), console))
    for block in blocks:
        console.print(grid(block))
    text = console.file.getvalue()
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text
    for row, (name, *numbers) in enumerate(body):
        assert [entry for block in blocks for entry in block.body[row][1:]] == numbers
        for block in blocks:
            assert block.body[row][0].replace("\n", "").replace(" ", "") == name.replace(" ", "")
    printed_numbers = [word for row in body for number in row[1:] for word in number.split()]
    for word in set(printed_numbers):
        assert text.count(word) >= printed_numbers.count(word)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_many_tasks_and_long_names_at_80_columns(runs, width, monkeypatch):
    import tests.tables.conftest as folders

    tasks = [f"a_benchmark_with_a_long_name_{i}" for i in range(9)]
    for module in {folders, __import__("sys").modules[type(runs).__module__]}:
        monkeypatch.setattr(module, "CONSTANT", dict.fromkeys(tasks, 10.0))
    for number, connector in enumerate(
        ("mlp", "a_connector_whose_name_is_longer_than_most_terminals_would_like_to_show")
    ):
        for depth in (1, 2):
            fields = {"connector.fields.depth": depth, "connector.fields.scan_order": "snake_from_the_top_left_corner"}
            runs.add(
                connector, 0, tasks=tasks, level=0.1 * (number + 4) + 0.05 * depth, settings=fields, suffix=f"{depth}"
            )
    text = printed(runs, width)
    table = table_of(runs)
    lines = [line for line in text.splitlines() if not line.startswith("Saved")]
    assert max(map(cell_len, lines)) <= width
    assert "…" not in text
    for row in table.rows:
        for cell in row.cells.values():
            assert f"{100 * cell.mean:.1f}" in text


@given(st.floats(0.001, 1))
def test_a_p_value_keeps_its_side_of_the_level(p):
    assert (float(_p(p).removeprefix("= ")) <= ALPHA) == (p <= ALPHA)


@given(st.floats(-1, 1).filter(lambda value: abs(value) > 1e-9))
def test_an_end_of_an_interval_keeps_its_side_of_zero(value):
    assert (float(_end(value).replace("−", "-")) > 0) == (value > 0)
