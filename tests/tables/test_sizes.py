"""Runs that were read at another size than they were trained for are rows of their own, never the run's own score."""

import pytest

from ablate.tables import collect, save
from ablate.tables.ablation import ablation_table
from ablate.tables.results import states
from ablate.tables.text import sections


@pytest.fixture
def elastic(runs):
    """mqt at 4 and 16 of its tokens, three seeds, also trained for 4 alone; and mlp."""
    for seed in range(3):
        runs.add("mlp", seed, level=0.5)
        run = runs.add("mqt", seed, level=0.75, cost={"visual_tokens": 16}, train={"trained_sizes": "sampled"})
        runs.evaluate(run, level=0.5, size=4, tokens=4)
        runs.evaluate(run, level=0.25, size=2, tokens=2)
        runs.add("mqt", seed, level=0.5, settings={"connector.size": 4}, cost={"visual_tokens": 4}, suffix="-4")
    return runs


def table_of(runs, **options):
    return ablation_table(collect([runs.group]), **options)


def test_each_size_is_a_row(elastic):
    table = table_of(elastic)
    means = {row.name: round(row.cells["mean"].mean, 3) for row in table.rows}
    assert means == {"mlp": 0.5, "mqt": 0.75, "mqt read at 4": 0.5, "mqt read at 2": 0.25, "mqt trained for 4": 0.5}
    assert {row.name: len(row.runs) for row in table.rows} == dict.fromkeys(means, 3)
    assert table.row("mqt read at 4").cost("visual_tokens") == 4


def test_a_size_is_compared_with_the_training_for_it_alone(elastic):
    table = table_of(elastic, margin=30.0)
    assert [(check.row, check.size, check.read, check.trained) for check in table.sizes] == [
        ("mqt", None, "mqt", ""),
        ("mqt", 4, "mqt read at 4", "mqt trained for 4"),
        ("mqt", 2, "mqt read at 2", ""),
    ]
    found = table.sizes[1].difference
    assert found is not None
    assert found.difference == pytest.approx(0.0)
    assert found.equivalence(0.3) == "equivalent"
    assert table.sizes[2].difference is None


def test_the_other_rows_verdicts_are_as_without_the_sizes(elastic, runs, tmp_path):
    with_sizes = table_of(elastic, baseline="mlp")
    for folder in elastic.group.glob("*/eval-size-*"):
        (folder / "scores.json").unlink()
    without = table_of(elastic, baseline="mlp")
    for name in ("mqt", "mqt trained for 4"):
        assert with_sizes.row(name).cells["mean"].difference == without.row(name).cells["mean"].difference
        assert with_sizes.row(name).cells["mean"].estimate == without.row(name).cells["mean"].estimate
    assert not without.sizes
    assert all(cell.difference is None for cell in with_sizes.row("mqt read at 4").cells.values())
    assert not with_sizes.refused(with_sizes.row("mqt read at 4"))


def test_another_size_is_never_the_score_of_the_run_itself(runs):
    """Not where a task is missing, nor where the evaluation has more questions."""
    run = runs.add("mqt", tasks=("demo_vqa",), questions=30, level=0.9)
    runs.evaluate(run, ("demo_vqa", "demo_gqa"), level=0.1, size=4)
    own, read = sorted(collect([runs.group]), key=lambda each: "connector.read_size" in each.settings)
    assert set(own.scores) == {"demo_vqa"}
    assert own.scores["demo_vqa"]["score"] == pytest.approx(90, abs=2)
    assert {task: round(entry["score"]) for task, entry in read.scores.items()} == {"demo_vqa": 10, "demo_gqa": 10}


def test_an_evaluation_in_a_folder_of_its_own_is_the_same_row(elastic, tmp_path):
    run = elastic.group / "mqt-s0"
    before = table_of(elastic)
    (run / "eval-size-4").rename(elastic.group.parent / "elsewhere")
    runs = collect([elastic.group, elastic.group.parent / "elsewhere"])
    after = ablation_table(runs)
    assert after.row("mqt read at 4").cells["mean"].estimate == before.row("mqt read at 4").cells["mean"].estimate
    assert after.sizes == before.sizes


def test_a_run_counts_once_however_often_it_was_read(elastic):
    assert states(collect([elastic.group])) == {"finished": 9}


def test_the_section_and_the_figure(elastic, tmp_path):
    table = table_of(elastic, margin=30.0)
    (section,) = [each for each in sections(table) if each.title.startswith("Trained once")]
    assert [row[:3] for row in section.body] == [("mqt", "as trained", "16"), ("mqt", "4", "4"), ("mqt", "2", "2")]
    assert section.body[1][5].endswith("≈")
    assert section.body[2][4:] == ("–", "–")
    assert tmp_path / "table_sizes.png" in save(table, tmp_path)
    assert (tmp_path / "table_sizes.png").stat().st_size > 10_000


def test_sizes_with_as_many_tokens_are_drawn_by_size(runs, tmp_path):
    for seed in range(2):
        run = runs.add("matformer_mlp", seed, train={"trained_sizes": "sampled"})
        for size in (32, 64, 128):
            runs.evaluate(run, level=0.5, size=size)
    assert tmp_path / "table_sizes.png" in save(table_of(runs), tmp_path)


def test_without_sizes_there_is_no_such_section(runs, tmp_path):
    runs.add("mlp")
    table = table_of(runs)
    assert not any(each.title.startswith("Trained once") for each in sections(table))
    assert not any("sizes" in path.name for path in save(table, tmp_path))
