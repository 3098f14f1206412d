import json
import random
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest

from ablate.core.errors import UserError
from ablate.evaluation.statistics import Analysis, Scores
from ablate.tables import collect
from ablate.tables.ablation import IGNORED_SETTINGS, MEAN, ablation_table, differing_settings, row_key
from ablate.tables.csv_files import long_csv
from ablate.tables.figure import draw
from ablate.tables.text import conclusions, markdown

TASKS = ("demo_vqa", "demo_gqa", "demo_pope")
CONSTANT = {"demo_vqa": 10.0, "demo_gqa": 20.0, "demo_pope": 50.0}


def table_of(runs, baseline=""):
    return ablation_table(collect([runs.group]), baseline)


def scores_of(runs, connector, level, task, seeds=range(3), blind=False):
    values = np.stack([runs.answers(connector, seed, blind, task, level) for seed in seeds])
    count = values.shape[1]
    return Scores(
        values,
        clusters=np.array([f"{q // 3}.jpg" for q in range(count)]),
        question_ids=np.array([f"{task}-{q}" for q in range(count)]),
        seeds=tuple(seeds),
    )


def analysis_of(full):
    levels = {"mlp": 0.5, "linear": 0.48, "msc_csm": 0.9}
    scores = {name: {task: scores_of(full, name, level, task) for task in TASKS} for name, level in levels.items()} | {
        f"{name} (blind)": {task: scores_of(full, name, CONSTANT[task] / 100, task, blind=True) for task in TASKS}
        for name in levels
    }
    return Analysis(scores, TASKS, {name: name.endswith("(blind)") for name in scores})


def test_cells_are_the_statistics_of_the_predictions(full):
    table, analysis = table_of(full), analysis_of(full)
    for row in table.rows:
        for column in (*TASKS, MEAN):
            assert row.cells[column].estimate == analysis.estimate(row.name, column)


def test_the_mean_and_all_tasks_of_all_rows_are_one_family(full):
    table, analysis = table_of(full), analysis_of(full)
    found = analysis.compare([(row, "mlp") for row in ("linear", "msc_csm")])
    assert len(found) == 2 * (len(TASKS) + 1)
    for (row, _, column), expected in found.items():
        assert table.row(row).cells[column].difference == expected
    assert all(cell.difference is None for cell in table.row("mlp").cells.values())
    assert all(cell.difference is None for cell in table.row("mlp (blind)").cells.values())


def test_the_blind_checks_are_a_family_of_their_own(full):
    found = analysis_of(full).compare([(row, f"{row} (blind)") for row in ("mlp", "linear", "msc_csm")], TASKS)
    checks = table_of(full).blind_checks
    assert {(c.row, task): each for c in checks for task, each in c.differences.items()} == {
        (row, task): each for (row, _, task), each in found.items()
    }


def test_verdicts(full):
    table = table_of(full)
    assert table.row("msc_csm").cells[MEAN].verdict == "better"
    assert table.row("linear").cells[MEAN].verdict == "unresolved"
    assert table_of(full, "msc_csm").row("mlp").cells[MEAN].verdict == "worse"
    assert table.row("mlp").cells[MEAN].verdict == ""


def test_the_order_of_the_runs_does_not_matter(full):
    runs = collect([full.group])
    shuffled = list(runs)
    random.Random(0).shuffle(shuffled)
    first, second = ablation_table(runs), ablation_table(shuffled)
    assert first.rows == second.rows
    assert [row.name for row in first.rows] == [
        *("mlp", "mlp (blind)", "linear", "linear (blind)", "msc_csm", "msc_csm (blind)")
    ]


def test_baselines(full):
    assert table_of(full).baseline == "mlp"
    assert table_of(full, "linear").baseline == "linear"
    assert table_of(full, "mlp (blind)").baseline == "mlp (blind)"
    with pytest.raises(UserError, match=r'Unknown baseline "mpl". Did you mean mlp'):
        table_of(full, "mpl")


@pytest.mark.parametrize(
    ("connectors", "expected"), [(["linear", "msc_csm"], "linear"), (["msc_csm", "msc_bsm"], "msc_bsm")]
)
def test_the_baseline_without_an_mlp(runs, connectors, expected):
    for connector in connectors:
        runs.add(connector)
    assert table_of(runs).baseline == expected


def test_costs_are_medians_over_the_seeds(full):
    row = table_of(full).row("mlp")
    assert row.cost("step_seconds") == pytest.approx(0.11)
    assert row.cost("nothing") is None


def test_the_blind_check_counts_tasks_above_and_at_the_constant(full):
    check = next(check for check in table_of(full).blind_checks if check.row == "msc_csm")
    assert (check.tasks, check.beats, check.at_constant) == (TASKS, TASKS, TASKS)


def test_what_is_not_shown_does_not_beat_and_a_blind_run_can_be_off_the_constant(runs):
    for seed in range(3):
        runs.add("mlp", seed, level={"demo_vqa": 0.9, "demo_gqa": 0.25, "demo_pope": 0.9})
        runs.add("mlp", seed, blind=True, level={"demo_vqa": 0.1, "demo_gqa": 0.2, "demo_pope": 0.1})
    (check,) = table_of(runs).blind_checks
    assert check.differences["demo_gqa"].low < 0 < check.differences["demo_gqa"].difference
    assert check.beats == ("demo_vqa", "demo_pope")
    assert check.at_constant == ("demo_vqa", "demo_gqa")


@pytest.mark.parametrize("blind_seeds", [1, 3])
def test_one_seed_does_not_show_that_a_connector_sees(runs, blind_seeds):
    for seed in range(3 if blind_seeds == 1 else 1):
        runs.add("mlp", seed, level=0.9)
    for seed in range(blind_seeds):
        runs.add("mlp", seed, blind=True, level=0.1)
    (check,) = table_of(runs).blind_checks
    assert (check.beats, check.unknown) == ((), TASKS)


@pytest.mark.parametrize(("seeds", "others"), [(1, 1), (3, 1), (1, 3)])
def test_one_seed_gets_no_verdict_however_large_the_difference(runs, seeds, others):
    for seed in range(seeds):
        runs.add("mlp", seed, level=0.1)
    for seed in range(others):
        runs.add("linear", seed, level=0.9)
    table = table_of(runs)
    assert {cell.verdict for cell in table.row("linear").cells.values()} == {"one seed"}
    assert any("one seed: other seeds unknown" in note for note in table.notes)


def test_different_seeds_are_compared_and_said(runs):
    for seed in range(3):
        runs.add("mlp", seed, level=0.1)
        runs.add("linear", seed + 3, level=0.9)
    table = table_of(runs)
    assert table.row("linear").cells[MEAN].verdict == "better"
    assert "linear: seeds 3, 4, 5 against the baseline's 0, 1, 2; seeds count as independent draws" in table.notes


@pytest.mark.parametrize("margin", [None, 5.0, 60.0, 99.0])
def test_verdicts_and_equivalence_are_what_the_interval_says(full, margin):
    table = ablation_table(collect([full.group]), margin=margin)
    for row in table.rows:
        for cell in row.cells.values():
            if cell.difference:
                low, high = 100 * cell.difference.low, 100 * cell.difference.high
                assert (cell.verdict == "better") == (low > 0)
                assert (cell.verdict == "worse") == (high < 0)
                assert (cell.equivalence == "equivalent") == (margin is not None and -margin < low and high < margin)
                assert (cell.difference.p_value <= 0.05) == (cell.verdict in ("better", "worse"))


def test_better_and_within_the_margin_are_both_said(full):
    cell = ablation_table(collect([full.group]), margin=60).row("msc_csm").cells[MEAN]
    assert (cell.verdict, cell.equivalence) == ("better", "equivalent")


def test_what_is_within_the_margin_and_neither_better_nor_worse_is_equivalent_not_unresolved(full):
    table = ablation_table(collect([full.group]), margin=60)
    assert table.row("linear").cells[MEAN].verdict == "equivalent"
    assert any(line.startswith("linear: equivalent to mlp") for line in conclusions(table))


def test_a_margin_counts_as_set_before_only_if_every_run_was_started_with_it(runs):
    for seed in range(2):
        runs.add("mlp", seed, settings={"margin": 5.0})
        runs.add("linear", seed, settings={"margin": 5.0})
    assert str(table_of(runs).margin) == "5 points, set before the runs"
    assert str(ablation_table(collect([runs.group]), margin=5).margin) == "5 points, set before the runs"
    later = ablation_table(collect([runs.group]), margin=9)
    assert str(later.margin) == "9 points, chosen afterwards"
    assert "the margin of 9 points was chosen afterwards; the runs were started with 5" in later.notes
    runs.add("msc_csm")
    mixed = table_of(runs)
    assert mixed.margin.points == 0
    assert any("different margins (5, none points)" in note for note in mixed.notes)
    assert not mixed.row("linear").differs  # it changes nothing in a run
    with pytest.raises(UserError, match="--margin is 0"):
        ablation_table(collect([runs.group]), margin=0)


def test_a_connector_without_blind_runs_has_no_check(runs):
    runs.add("mlp", 0)
    assert table_of(runs).blind_checks == ()


def test_constant_and_majority_answers(full):
    table = table_of(full)
    assert table.constant == pytest.approx({"demo_vqa": 0.1, "demo_gqa": 0.2, "demo_pope": 0.5, MEAN: 0.8 / 3})
    assert table.majority[MEAN] == pytest.approx(0.83 / 3)


def test_a_row_with_other_settings_is_flagged_with_what_differs(runs):
    runs.add("mlp")
    runs.add("linear", settings={"train.learning_rate": 2e-3, "train.epochs": 3, "logger.wandb": "offline"})
    table = table_of(runs)
    assert table.row("linear").differs == {"train.learning_rate": (2e-3, 1e-3), "train.epochs": (3, None)}
    assert table.row("mlp").differs == {}
    (note,) = [note for note in table.notes if "more than the connector" in note]
    assert note == (
        "linear: more than the connector differs from the baseline: train.epochs 3 instead of null; "
        "train.learning_rate 0.002 instead of 0.001"
    )


def test_one_blind_row_is_the_control_of_all_with_as_many_tokens(runs):
    for seed in range(3):
        for name, tokens in (("linear", 49), ("mlp", 49), ("adaptive_avg", 16), ("mqt", 49)):
            runs.add(
                name, seed, cost={"visual_tokens": tokens}, train={"trained_sizes": "all"} if name == "mqt" else {}
            )
        runs.add("linear", seed, blind=True, level=0.1)
    table = table_of(runs)
    assert {check.row: len(check.beats) for check in table.blind_checks} == {"mlp": 3, "linear": 3}
    assert table.rows[-1].name == "blind, 49 tokens"
    assert table.rows[-1].shared
    assert "blind, 49 tokens" in str(table)


def test_blind_rows_of_several_settings_are_told_apart(runs):
    for rate in (1e-3, 1e-2):
        settings = {"train.learning_rate": rate}
        for name in ("linear", "mlp"):
            runs.add(name, settings=settings, suffix=f"-{rate}")
        runs.add("mlp", blind=True, settings=settings, suffix=f"-{rate}")
    names = [row.name for row in table_of(runs).rows if row.blind]
    assert names == ["blind, 49 tokens, train.learning_rate=0.001", "blind, 49 tokens, train.learning_rate=0.01"]


def test_many_differences_are_cut_short(runs):
    runs.add("mlp")
    runs.add("linear", settings={f"train.x{i}": 1 for i in range(20)})
    assert any("and 14 more settings" in note for note in table_of(runs).notes)


def test_rows_are_told_apart_by_what_differs_between_them(runs):
    runs.add("mlp")
    runs.add("msc_csm", settings={"connector.fields.depth": 1}, suffix="-a")
    runs.add("msc_csm", settings={"connector.fields.depth": 2}, suffix="-b")
    runs.add("msc_csm", settings={"connector.fields.depth": 2}, blind=True)
    table = table_of(runs)
    assert [row.name for row in table.rows] == ["mlp", "msc_csm depth=1", "msc_csm depth=2", "blind, 49 tokens"]
    assert [check.row for check in table.blind_checks] == ["mlp", "msc_csm depth=1", "msc_csm depth=2"]
    assert all(not row.differs for row in table.rows)
    assert table_of(runs, "msc_csm depth=2").baseline == "msc_csm depth=2"


def test_a_seed_run_twice_counts_once(runs):
    runs.add("mlp", 0, level=0.5)
    runs.add("mlp", 1, level=0.5)
    old = runs.add("mlp", 0, level=0.1, suffix="-again")
    import os

    os.utime(old / "result.json", (1, 1))
    table = table_of(runs)
    row = table.row("mlp")
    assert row.seeds == (0, 1)
    assert row.cells["demo_vqa"].mean == pytest.approx(0.5)
    assert [run.folder for run in row.duplicates] == [old]
    assert any("two runs with seed 0; the newer counts" in note for note in table.notes)


def test_groups_are_pooled_into_one_row(tmp_path, runs):
    other = type(runs)(tmp_path / "runs" / "other")
    runs.add("mlp", 0, settings={"group": "demo"})
    other.add("mlp", 1, settings={"group": "other", "name": "x", "data.num_workers": 4})
    table = ablation_table(collect([runs.group, other.group]))
    assert [row.seeds for row in table.rows] == [(0, 1)]
    assert len(table.groups) == 2


def test_missing_seeds_are_counted_and_marked(runs):
    for seed in range(2):
        runs.add("mlp", seed)
    runs.add("linear", 0, settings={})
    runs.unfinished("linear", 1, failed=True)
    runs.unfinished("linear", 2)
    table = table_of(runs)
    row = table.row("linear")
    assert (len(row.runs), row.planned, row.failed) == (1, 3, 1)
    assert all(cell.partial for cell in row.cells.values())
    assert not any(cell.partial for cell in table.row("mlp").cells.values())
    assert "linear: 1 of 3 seeds finished (1 failed)" in table.notes
    assert table.summary() == "3 of 5 runs finished, 1 failed, 1 unfinished"
    assert any("one seed: other seeds unknown" in note and "linear" in note for note in table.notes)


def test_a_row_of_which_nothing_has_finished_is_shown(runs):
    runs.add("mlp", 0)
    runs.unfinished("linear", 0)
    row = table_of(runs).row("linear")
    assert (row.runs, row.planned, row.cells) == ((), 1, {})


def test_nothing_finished_is_no_table(runs):
    runs.unfinished("linear", 0)
    with pytest.raises(UserError, match="None of these 1 runs has finished"):
        table_of(runs)


def test_fewer_questions_than_the_benchmark_are_marked_wherever_they_count(runs):
    for seed in range(2):
        runs.add("mlp", seed)
        runs.add("linear", seed, questions=30)
    table = ablation_table(collect([runs.group]), force=True)
    row = table.row("linear")
    assert all(cell.partial for cell in row.cells.values())
    assert (row.cells["demo_vqa"].found, row.cells["demo_vqa"].expected) == (30, 60)
    assert row.cells["demo_vqa"].difference.n_questions == 30  # those that both answered
    assert "linear: 30 of 60 questions of demo_vqa, demo_gqa, demo_pope" in table.notes


def test_seeds_that_answered_different_questions_are_compared_on_the_common_ones(runs):
    runs.add("mlp", 0)
    runs.add("mlp", 1, questions=45)
    estimate_ = table_of(runs).row("mlp").cells["demo_vqa"].estimate
    assert (estimate_.n_questions, estimate_.n_seeds) == (45, 2)


def test_a_task_that_was_not_run_leaves_no_mean(runs):
    runs.add("mlp")
    runs.add("linear", tasks=TASKS[:2])
    table = table_of(runs)
    assert MEAN not in table.row("linear").cells
    assert table.row("linear").cells["demo_gqa"].difference is not None
    assert "linear: not evaluated on demo_pope, so it has no mean" in table.notes


def test_without_predictions_there_is_a_score_but_no_interval(runs):
    runs.add("mlp")
    runs.add("linear", level=0.3, predictions=False)
    table = table_of(runs)
    cell = table.row("linear").cells["demo_vqa"]
    assert (cell.mean, cell.estimate, cell.difference) == (pytest.approx(0.3), None, None)
    assert table.row("linear").cells[MEAN].mean == pytest.approx(0.3)
    assert any(note.startswith("linear: no predictions kept for demo_vqa") for note in table.notes)


def test_a_score_that_its_predictions_do_not_give_is_told(runs):
    folder = runs.add("mlp")
    result = json.loads((folder / "result.json").read_text())
    result["scores"]["demo_vqa"]["score"] = 77.0
    (folder / "result.json").write_text(json.dumps(result))
    assert any("result.json says 77.00, the kept predictions give 50.00" in note for note in table_of(runs).notes)


def test_a_question_answered_twice_is_an_error(runs):
    folder = runs.add("mlp")
    file = folder / "predictions" / "demo_vqa.jsonl"
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match="a question id occurs twice"):
        table_of(runs)


def test_different_data_code_and_machines_are_told(runs):
    runs.add("mlp", provenance={"data": {"sha256": "a"}, "code": {"commit": "1" * 40}, "machine": {"processor": "x"}})
    runs.add("linear", provenance={"data": {"sha256": "b"}, "code": {"commit": "2" * 40, "dirty": True}})
    notes = "\n".join(table_of(runs).notes)
    assert "2 different versions of the data" in notes
    assert "2 revisions of the code: 11111111, 22222222" in notes
    assert "uncommitted changes" in notes
    assert "2 kinds of machine" in notes


def test_a_clean_table_has_no_notes(full):
    assert table_of(full).notes == ()


def test_ignored_settings_are_settings():
    training = pytest.importorskip("ablate.runs.config")
    config = training.RunConfig(demo=training.DemoConfig())
    for key in IGNORED_SETTINGS:
        attrgetter(key)(config)


def test_keys_are_ignored_as_groups_and_not_by_their_beginning():
    assert row_key({"logger.wandb": 1, "seed": 2}) == ()
    assert row_key({"loggers": 1, "seeds": 2}) != ()
    assert differing_settings({"connector.fields.depth": 1, "connectors": 1}, {}) == {"connectors": (1, None)}


# -- Metrics over the corpus ------------------------------------------------------------------------------------------


def test_a_metric_over_the_corpus_is_shown_and_in_no_comparison(runs) -> None:
    for connector, level in (("mlp", 0.4), ("msc_csm", 0.7)):
        for seed in range(3):
            folder = runs.add(connector, seed, level=level)
            path = folder / "result.json"
            result = json.loads(path.read_text())
            f1 = {**result["scores"]["demo_vqa"], "score": 100 * level + seed, "metric": "F1", "corpus": True}
            f1 |= {"low": 30.0, "high": 80.0, "details": {"n_images": 20, "se": 4.0, "prompt": connector}}
            path.write_text(json.dumps(result | {"scores": result["scores"] | {"f1": f1}}))
    with_it = ablation_table(collect([runs.group]))
    without = ablation_table([replace(run, scores={t: s for t, s in run.scores.items() if t != "f1"}) for run in
                              collect([runs.group])])  # fmt: skip
    row = with_it.row("msc_csm")
    for column in ("mean", *TASKS):
        assert row.cells[column] == without.row("msc_csm").cells[column]
    cell = row.cells["f1"]
    assert with_it.corpus == ("f1",)
    assert (cell.difference, cell.verdict) == (None, "")
    assert cell.mean == pytest.approx(0.71)
    assert cell.estimate.low < 0.71 - 1.9 * 0.04
    assert with_it.constant["mean"] == without.constant["mean"]
    text = markdown(with_it)
    assert "f1◊" in text
    assert "in no comparison and not in the mean" in text
    difference = text[text.index("## Difference") : text.index("## Cost")]
    assert "f1" not in difference
    assert "F1, over the corpus" in long_csv(with_it)
    draw(with_it)
