"""Rows that were not asked, trained or started alike are not compared, and every output says so."""

import csv
import io
import json

import pytest
from matplotlib.text import Text
from rich.console import Console

from ablate.core.sources import sealed
from ablate.tables import collect, show
from ablate.tables import table as make_table
from ablate.tables.ablation import MEAN, ablation_table
from ablate.tables.csv_files import long_csv, wide_csv
from ablate.tables.figure import draw
from ablate.tables.text import markdown

TASKS = ("demo_vqa", "demo_gqa", "demo_pope")


def table_of(runs, **options):
    return ablation_table(collect([runs.group]), **options)


def printed(table):
    from ablate.tables.text import print_table

    console = Console(width=160, file=io.StringIO())
    print_table(table, console)
    return console.file.getvalue()


def words_of(figure):
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())


def pair(runs, *, seeds=2, **other):
    """mlp as usual, and a far better connector with something else."""
    for seed in range(seeds):
        runs.add("mlp", seed)
        runs.add("linear", seed, level=0.9, **other)


# What makes two rows incomparable -> (how the run was written, the words that say it, the setting that declares it).
REFUSED = {
    "questions": ({"shift": 30}, "questions 60", "evaluation.limit"),
    "fewer questions": ({"questions": 30}, "questions 30", "evaluation.limit"),
    "limit": ({"settings": {"evaluation.limit": 50}}, "limit 50 instead of null", "evaluation.limit"),
    "split": ({"details": {"split": "test"}}, "split test instead of val", "evaluation.root"),
    "mode": ({"details": {"mode": "lmms_eval"}}, "scorer mode lmms_eval instead of official", "evaluation.modes"),
    "prompt": ({"details": {"prompt_text": "Say: {question}"}}, "prompt Say: {question} instead", "evaluation.prompt"),
    "answering": ({"details": {"answering": "likelihood"}}, "answering likelihood", "evaluation.answering"),
    "answers": ({"details": {"answers_sha256": "x"}}, "other annotations", "evaluation.root"),
    "length": ({"settings": {"evaluation.max_new_tokens": 3}}, "longest answer 3", "evaluation.max_new_tokens"),
    "data": ({"provenance": {"data": {"sha256": "other"}}}, "other training data", "data.shards"),
    "encoder": (
        {"provenance": {"weights": {"encoder": [{"encoder": "x", "sha256": "f"}], "language": []}}},
        "other encoder weights",
        "encoder.weights",
    ),
    "language model": (
        {"provenance": {"weights": {"encoder": [{"encoder": "x", "sha256": "e" * 64}], "language": [{"sha256": "f"}]}}},
        "other language model",
        "language.pretrained",
    ),
    "start": (
        {"provenance": {"start_from": {"run": "a", "sha256": "f"}}},
        "other starting weights",
        "train.start_from",
    ),
    "template": ({"settings": {"data.template": "plain"}}, "chat template plain", "data.template"),
}
ALIKE = {
    "mode": "official",
    "prompt_text": "{question}",
    "answering": "generate",
}
USUAL = {"evaluation.limit": None, "evaluation.max_new_tokens": 128, "data.template": "cobra"}


@pytest.fixture
def usual(runs, monkeypatch):
    """Runs have usual details and settings where a test does not give others."""
    plain = type(runs).add

    def add(self, *names, details=None, settings=None, **options):
        return plain(
            self, *names, details={**ALIKE, **(details or {})}, settings={**USUAL, **(settings or {})}, **options
        )

    monkeypatch.setattr(type(runs), "add", add)
    return runs


def test_alike_rows_are_compared_without_a_mark(usual):
    pair(usual)
    table = table_of(usual)
    row = table.row("linear")
    assert (row.marks, row.held.refused, row.held.marked, row.held.unknown) == ("", {}, (), ())
    assert row.cells[MEAN].difference is not None
    assert table.notes == ()


@pytest.mark.parametrize("what", REFUSED)
def test_rows_that_are_not_alike_are_not_compared(usual, what):
    written, words, _ = REFUSED[what]
    pair(usual, **written)
    table = table_of(usual)
    row = table.row("linear")
    assert all(cell.difference is None for cell in row.cells.values())
    assert "‡" in row.marks
    (note,) = [note for note in table.notes if note.startswith("linear: not compared with mlp:")]
    assert words in note
    wide = {line["row"]: line for line in csv.DictReader(io.StringIO(wide_csv(table)))}
    long = [line for line in csv.DictReader(io.StringIO(long_csv(table))) if line["row"] == "linear"]
    assert words in wide["linear"]["not_alike"]
    assert wide["mlp"]["not_alike"] == ""
    assert all(words in line["not_alike"] for line in long)
    text, page = printed(table), markdown(table)
    assert any(line.startswith(f"linear{row.marks}") for line in text.splitlines())
    assert f"| linear{row.marks.replace('*', chr(92) + '*')} |" in page
    assert words in page
    figure = draw(table)
    assert f"linear{row.marks}" in [label.get_text() for label in figure.axes[0].get_yticklabels()]
    caption = words_of(figure)
    assert "‡ questions, scoring, training data or starting weights differ" in caption
    assert words in caption


@pytest.mark.parametrize("what", REFUSED)
def test_force_compares_and_marks(usual, what):
    written, words, _ = REFUSED[what]
    pair(usual, **written)
    table = table_of(usual, force=True)
    row = table.row("linear")
    assert row.cells[MEAN].difference is not None
    assert "‡" in row.marks
    assert any("compared with mlp because of --force" in note and words in note for note in table.notes)
    wide = {line["row"]: line for line in csv.DictReader(io.StringIO(wide_csv(table)))}
    assert (wide["linear"]["forced"], wide["mlp"]["forced"]) == ("True", "False")


@pytest.mark.parametrize("what", sorted(REFUSED.keys() - {"questions"}))
def test_what_the_user_names_may_differ(usual, what):
    written, _, setting = REFUSED[what]
    pair(usual, **written)
    vary = [setting, "evaluation.limit"] if "questions" in what else [setting]
    row = table_of(usual, vary=vary).row("linear")
    assert row.held.refused == {}
    assert row.cells[MEAN].difference is not None
    assert "‡" not in row.marks
    assert "*" not in row.marks


def test_what_the_sweep_varies_may_differ(usual):
    folders = [
        usual.add("mlp", 0),
        usual.add("mlp", 0, details={"prompt_text": "other"}, settings={"evaluation.prompt": "bare"}, suffix="-b"),
    ]
    assert len([row for row in table_of(usual).rows if row.held.refused]) == 1
    plan = {"varies": {"evaluation.prompt": [folder.name for folder in folders]}, "runs": []}
    (usual.group / "plan.json").write_text(json.dumps(plan))
    table = table_of(usual)
    assert not any(row.held.refused or row.differs for row in table.rows)
    plan["varies"] = {"seed": [folder.name for folder in folders]}
    (usual.group / "plan.json").write_text(json.dumps(plan))
    assert any(row.held.refused for row in table_of(usual).rows)


def test_what_differs_on_one_task_leaves_the_others_compared(usual):
    for seed in range(2):
        usual.add("mlp", seed)
        folder = usual.add("linear", seed)
        result = json.loads((folder / "result.json").read_text())
        result["scores"]["demo_vqa"]["details"]["mode"] = "other"
        del result["digests"]
        (folder / "result.json").write_text(json.dumps(sealed(result, folder, [])))
    row = table_of(usual).row("linear")
    assert {task for task, cell in row.cells.items() if cell.difference} == {"demo_gqa", "demo_pope"}


def test_seeds_of_one_row_that_are_not_alike(usual):
    pair(usual, seeds=1)
    usual.add("linear", 1, provenance={"data": {"sha256": "other"}})
    row = table_of(usual).row("linear")
    assert row.held.reasons() == ["its own seeds differ in training data"]
    assert row.cells[MEAN].difference is None


def test_a_blind_row_of_other_data_is_no_control(usual):
    pair(usual)
    usual.add("linear", 0, blind=True, level=0.1, provenance={"data": {"sha256": "other"}})
    assert table_of(usual).blind_checks == ()
    assert {check.row for check in table_of(usual, force=True).blind_checks} == {"linear", "mlp"}


def test_a_shared_blind_row_is_no_control_of_a_row_with_other_data(usual):
    for name in ("linear", "mlp"):
        usual.add(name, provenance={"data": {"sha256": name}})
    usual.add("linear", blind=True, provenance={"data": {"sha256": "linear"}})
    assert [check.row for check in table_of(usual).blind_checks] == ["linear"]


MARKED = {
    "code": ({"provenance": {"code": {"commit": "b" * 40}}}, "code revision bbbbbbbb instead of aaaaaaaa"),
    "packages": ({"provenance": {"packages": {"torch": "3.0"}}}, "packages: torch 3.0 instead of 2.8"),
    "precision": ({"provenance": {"precision": {"encoder": "bfloat16"}}}, "precision"),
    "hardware": ({"provenance": {"machine": {"processor": "y", "gpus": ["H"]}}}, "hardware"),
    "steps": ({"train": {"steps": 90}}, "steps done 90 instead of 100"),
}


@pytest.mark.parametrize("what", MARKED)
def test_what_was_run_differently_is_compared_and_marked(usual, what):
    written, words = MARKED[what]
    base = {
        "code": {"commit": "a" * 40},
        "packages": {"torch": "2.8"},
        "precision": {"encoder": "float32"},
        "machine": {"processor": "x", "gpus": []},
    }
    usual.add("mlp", 0, provenance=base)
    usual.add("linear", 0, **{**written, "provenance": {**base, **written.get("provenance", {})}})
    usual.add("msc_csm", 0, provenance=base)
    table = table_of(usual)
    row = table.row("linear")
    assert row.cells[MEAN].difference is not None
    assert (row.marks, table.row("msc_csm").marks) == ("§", "")
    assert any("linear: run differently from mlp" in note and words in note for note in table.notes)
    wide = {line["row"]: line for line in csv.DictReader(io.StringIO(wide_csv(table)))}
    assert words in wide["linear"]["run_differently"]
    assert "linear§" in [label.get_text() for label in draw(table).axes[0].get_yticklabels()]
    assert "linear§" in printed(table)


@pytest.mark.parametrize("what", sorted(MARKED.keys() - {"steps"}))
def test_what_only_one_of_two_rows_has_recorded_is_marked(usual, what):
    written, _ = MARKED[what]
    usual.add("mlp", 0)
    usual.add("linear", 0, **written)
    table = table_of(usual)
    assert table.row("linear").held.unknown
    assert table.row("linear").marks
    assert any("not recorded for both rows" in note for note in table.notes)


def test_the_choice_of_a_baseline_that_is_not_the_usual_one_is_explained(usual):
    for seed in range(2):
        usual.add("msc_csm", seed)
        usual.add("msc_bsm", seed, level=0.9)
    assert any("the baseline is msc_bsm, as it has the best mean" in note for note in table_of(usual).notes)


def test_one_row_of_several_revisions_is_marked(usual):
    for seed, commit in enumerate("ab"):
        usual.add("mlp", seed, provenance={"code": {"commit": commit * 40}})
    assert any("its seeds differ in code revision: aaaaaaaa and bbbbbbbb" in note for note in table_of(usual).notes)


def test_a_run_of_several_attempts_with_other_code_is_marked(usual):
    usual.add("mlp", 0, provenance={"continues": [{"code": {"commit": "a"}}]})
    assert any("trained in several attempts" in note for note in table_of(usual).notes)


def test_runs_from_before_there_were_digests_load_and_are_marked(runs):
    for connector in ("mlp", "linear", "msc_csm"):
        runs.add(connector, 0, old=True)
    table = table_of(runs)
    assert table.row("linear").cells[MEAN].difference is not None
    assert table.row("linear").marks == "§"
    assert any("no digest: from before results had them" in note for note in table.notes)
    assert any("not recorded for both rows: training data" in note for note in table.notes)


def test_old_runs_of_other_data_by_their_settings_are_not_compared(runs):
    runs.add("mlp", 0, old=True, settings={"data.shards": ["a"]})
    runs.add("linear", 0, old=True, settings={"data.shards": ["b"]})
    row = table_of(runs).row("linear")
    assert row.held.reasons() == ["other training data by the settings (data.shards, data.sources, demo)"]
    assert row.cells[MEAN].difference is None


# -- Edited files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["result.json", "provenance.json", "config.yaml", "predictions/demo_vqa.jsonl"])
def test_edited_files_are_found(usual, file):
    pair(usual)
    path = usual.group / "linear-s1" / file
    old = path.read_text()
    path.write_text(
        {
            "result.json": lambda: json.dumps(json.loads(old) | {"train": {"steps": 100, "final_loss": 0.0}}),
            "provenance.json": lambda: old + " ",
            "config.yaml": lambda: old + "# mine\n",
            "predictions/demo_vqa.jsonl": lambda: old.replace('"score": 0.0', '"score": 1.0', 1),
        }[file]()
    )
    table = table_of(usual)
    assert f"linear: seed 1: {file} has been edited since it was written" in table.notes
    assert table.row("linear").marks == "§"
    wide = {line["row"]: line for line in csv.DictReader(io.StringIO(wide_csv(table)))}
    assert f"linear-s1: {file} edited" in wide["linear"]["run_differently"]


def test_a_result_that_was_only_written_in_another_form_is_not_edited(usual):
    folder = usual.add("mlp", 0)
    content = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(content, indent=4, sort_keys=True))
    assert table_of(usual).notes == () or all("edited" not in note for note in table_of(usual).notes)


# -- `ablate eval` ----------------------------------------------------------------------------------------------------


def evaluate(runs, run, tasks, where=None, **options):
    return runs.evaluate(run, tasks, where, details=ALIKE, **options)


def test_evaluations_enter_the_table_and_say_so(usual):
    runs = [usual.add("mlp", 0, tasks=TASKS[:1]), usual.add("linear", 0, tasks=TASKS[:1])]
    outs = [evaluate(usual, run, TASKS[1:], level=0.7 + 0.1 * i) for i, run in enumerate(runs)]
    table = ablation_table(collect(runs))
    assert table.tasks == TASKS
    assert table.row("linear").cells["demo_gqa"].mean == pytest.approx(0.8)
    assert table.row("linear").cells["demo_gqa"].difference is not None
    assert table.row("linear").held.refused == {}
    assert any(f"demo_gqa, demo_pope from {outs[1] / 'scores.json'} of 20" in note for note in table.notes)
    lines = {(line["row"], line["task"]): line for line in csv.DictReader(io.StringIO(long_csv(table)))}
    assert lines["linear", "demo_gqa"]["scores_from"] == str(outs[1] / "scores.json")
    assert lines["linear", "demo_vqa"]["scores_from"] == ""


def test_an_evaluation_that_was_asked_otherwise_is_not_compared(usual):
    runs = [usual.add("mlp", 0, tasks=TASKS[:1]), usual.add("linear", 0)]
    evaluate(usual, runs[0], TASKS[1:], max_new_tokens=5, precision="bfloat16")
    table = ablation_table(collect(runs))
    row = table.row("linear")
    assert {task for task, cell in row.cells.items() if cell.difference} == {"demo_vqa"}
    assert any("longest answer 128 instead of 5" in note for note in table.notes)
    assert any("evaluation.max_new_tokens 5 instead of 128" in note for note in table.notes)
    assert any("evaluation precision" in text for text in row.held.marked)


def test_the_runs_own_score_stands_unless_the_evaluation_has_more_questions(usual):
    whole, part = usual.add("mlp", 0), usual.add("linear", 0, questions=30)
    for run in (whole, part):
        evaluate(usual, run, TASKS, level=0.9)
    by_name = {run.connector: run for run in collect([whole, part])}
    assert by_name["mlp"].scores["demo_vqa"]["score"] == 50.0
    assert by_name["mlp"].evaluations == {}
    assert "has demo_gqa, demo_pope, demo_vqa too; the score that is shown is another" in by_name["mlp"].warnings[0]
    assert by_name["linear"].scores["demo_vqa"]["score"] == 90.0


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"config": "1" * 64}, "of other settings than this run's"),
        ({"weights": {"file": "last.ckpt", "sha256": "x"}}, "of last.ckpt, not of the weights at the end"),
    ],
)
def test_evaluations_of_another_model_do_not_enter(usual, other, why):
    run = usual.add("mlp", 0, tasks=TASKS[:1])
    evaluate(usual, run, TASKS[1:], **other)
    (found,) = collect([run])
    assert set(found.scores) == {"demo_vqa"}
    assert why in found.warnings[0]


def test_evaluations_in_folders_of_their_own(usual, tmp_path):
    run = usual.add("mlp", 0, tasks=TASKS[:1])
    out = evaluate(usual, run, TASKS[1:], where=tmp_path / "elsewhere")
    (alone,) = collect([out])
    assert (alone.connector, set(alone.scores)) == ("mlp", set(TASKS[1:]))
    (both,) = collect([out, run])
    assert set(both.scores) == set(TASKS)
    assert both.folder == run


def test_an_edited_evaluation_is_found(usual):
    run = usual.add("mlp", 0, tasks=TASKS[:1])
    out = evaluate(usual, run, TASKS[1:])
    content = json.loads((out / "scores.json").read_text())
    content["scores"]["demo_gqa"]["n_expected"] = 1
    (out / "scores.json").write_text(json.dumps(content))
    assert any(f"{out / 'scores.json'} has been edited" in note for note in ablation_table(collect([run])).notes)


# -- The baseline -----------------------------------------------------------------------------------------------------


def test_the_baseline_shares_its_settings_with_most_rows(usual):
    usual.add("mlp", 0, settings={"train.learning_rate": 1.0}, level=0.1, suffix="-odd")
    usual.add("mlp", 0, level=0.5)
    usual.add("linear", 0)
    usual.add("msc_csm", 0)
    table = table_of(usual)
    assert table.baseline == "mlp train.learning_rate=0.001"
    assert any(note.startswith(f"the baseline is {table.baseline}, of several mlp rows") for note in table.notes)
    assert table_of(usual, baseline="mlp").baseline == table.baseline


def test_an_mlp_that_nobody_shares_settings_with_is_not_the_baseline(usual):
    usual.add("mlp", 0, settings={"train.learning_rate": 1.0})
    for connector in ("linear", "msc_csm", "msc_bsm"):
        usual.add(connector, 0)
    assert table_of(usual).baseline == "linear"


def test_of_rows_that_share_alike_the_baseline_is_the_best_of_its_kind(usual):
    for rate, level in ((1e-5, 0.1), (1e-4, 0.6), (1e-3, 0.3)):
        for connector in ("mlp", "msc_csm"):
            usual.add(connector, 0, settings={"train.learning_rate": rate}, level=level, suffix=f"-{rate}")
    assert table_of(usual).baseline == "mlp train.learning_rate=0.0001"


# -- Nothing to show --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["no benchmarks", "blind runs alone", "one run", "a task is missing", "not numbers"])
def test_every_output_comes_out(usual, case):
    if case == "no benchmarks":
        usual.add("mlp", 0, tasks=())
        usual.add("linear", 0, tasks=())
    elif case == "blind runs alone":
        usual.add("mlp", 0, blind=True)
    elif case == "one run":
        usual.add("mlp", 0)
    elif case == "a task is missing":
        usual.add("mlp", 0, tasks=TASKS[:1])
        usual.add("linear", 0, tasks=TASKS[1:])
    else:
        for connector in ("mlp", "linear"):
            file = usual.add(connector, 0) / "predictions" / "demo_vqa.jsonl"
            file.write_text(file.read_text().replace('"score": 1.0', '"score": NaN', 1))
        result = usual.group / "linear-s0" / "result.json"
        result.write_text(result.read_text().replace('"score": 50.0', '"score": NaN', 2))
    console = Console(width=100, file=io.StringIO())
    table = make_table([usual.group])
    show(table, console=console)
    assert (usual.group / "table.png").stat().st_size > 1000
    rows = list(csv.DictReader(io.StringIO((usual.group / "table.csv").read_text())))
    assert {row.name for row in table.rows} <= {line["row"] for line in rows}
    sentences = {"no benchmarks": "no run has scores", "not numbers": "a score is no number from 0 to 1"}
    for output in (" ".join(console.file.getvalue().split()), (usual.group / "table.md").read_text()):
        assert sentences.get(case, "Scores (%)") in output
    assert "nan" not in (usual.group / "table.md").read_text().lower().replace("unan", "")


def test_a_table_of_many_rows_draws_the_best(usual):
    for number in range(30):
        usual.add("mlp", 0, settings={"train.learning_rate": 1e-3 * (number + 1)}, suffix=f"-{number}")
    table = table_of(usual)
    figure = draw(table)
    assert len(figure.axes[0].get_yticklabels()) == 24
    assert "5 others are in table.csv" in words_of(figure)
