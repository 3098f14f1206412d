"""`ablate score NAME --predictions FILE --run RUN`: answers that lmms-eval asked for, in the run's row of the table."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ablate import cli
from ablate.core import config as config_io
from ablate.core.sources import sealed
from ablate.evaluation import benchmarks
from ablate.runs.config import RunConfig
from ablate.runs.folder import RunFiles
from ablate.runs.identity import run_digest
from ablate.tables import collect
from ablate.tables.ablation import ablation_table
from ablate.tables.text import markdown

MakeRun = Callable[..., Path]


def finish(run: Path, **scores: object) -> None:
    """A result, as a training leaves it."""
    config = config_io.load(RunConfig, [run / "config.yaml"])
    settings = {"seed": config.seed, "connector.name": config.connector.name}
    result = {
        "schema": 1, "status": "finished", "run_id": run.name, "group": "group", "connector": config.connector.name,
        "seed": config.seed, "blind": False, "digest": run_digest(config), "settings": settings,
        "scores": scores, "cost": {}, "train": {},
    }  # fmt: skip
    RunFiles(run).result.write_text(json.dumps(sealed(result, run, ["model.safetensors"])))


def samples(root: Path, path: Path, *, wrong_question: bool = False) -> Path:
    """lmms-eval's log of POPE's three splits, half of the answers right."""
    lines = []
    for number, question in enumerate(benchmarks.create("pope", root / "pope", expected=None).questions):
        asked = "Is it raining?" if wrong_question and number == 3 else question.text
        detail = {"question_id": int(question.id.partition("/")[2]), "score": 1.0}
        lines.append({
            "doc_id": number, "target": question.answers[0], "filtered_resps": ["yes"], "pope_accuracy": detail,
            "input": f"{asked}\nAnswer the question using a single word or phrase.",
        })  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def score(log: Path, run: Path, *options: str) -> int:
    return cli.main(["score", "pope", "--predictions", str(log), "--run", str(run), *options])


def test_the_table_has_the_score_and_says_where_it_is_from(
    make_run: MakeRun, benchmark_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("small", f"evaluation.root={benchmark_root}")
    finish(run)
    log = samples(benchmark_root, tmp_path / "samples_pope.jsonl")
    assert score(log, run) == 0
    assert "The table has this score" in capsys.readouterr().err
    [file] = run.glob("read-pope-*/scores.json")
    entry = json.loads(file.read_text())["scores"]["pope"]
    assert (entry["score"], entry["n"]) == (pytest.approx(50), 12)
    details = entry["details"]
    assert (details["answers_from"], details["mode"]) == ("lmms-eval", "lmms_eval")
    assert details["prompt_text"].startswith("unknown")
    [read] = collect([run])
    assert (read.scores["pope"]["score"], read.edited) == (pytest.approx(50), ())
    table = markdown(ablation_table([read]))
    assert "50.0 [" in table
    assert "°" in table
    assert "answers read from a file of lmms-eval: how the model was asked is not known" in table
    assert "answers read from samples_pope.jsonl" in table
    assert score(log, run, "--mode", "generate") == 0  # again: another mode, no mixture
    assert collect([run])[0].scores["pope"]["details"]["mode"] == "official"


def test_rows_of_logs_are_not_compared_with_rows_that_were_asked_here(
    make_run: MakeRun, benchmark_root: Path, tmp_path: Path
) -> None:
    folders = []
    for seed in (0, 1):
        for connector in ("linear", "mlp"):
            name = f"{connector}-{seed}"
            run = make_run(name, f"evaluation.root={benchmark_root}", f"seed={seed}", f"connector.name={connector}")
            finish(run)
            folders.append(run)
            if connector == "mlp":
                assert score(samples(benchmark_root, tmp_path / "samples_pope.jsonl"), run, "--mode", "generate") == 0
            else:
                options = ["--benchmarks", "pope", "evaluation.answering=generate", "evaluation.prompt=official"]
                assert cli.main(["eval", "--run", str(run), *options]) == 0
    table = ablation_table(collect(folders), baseline="linear")
    row = table.row("mlp")
    assert "‡" in row.marks
    assert any("answers from lmms-eval instead of from Ablate" in note for note in table.notes)
    assert row.cells["pope"].difference is None


def test_what_does_not_join_or_is_not_finished_is_refused(
    make_run: MakeRun, benchmark_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("small", f"evaluation.root={benchmark_root}")
    finish(run)
    assert score(samples(benchmark_root, tmp_path / "samples_pope.jsonl", wrong_question=True), run) == 2
    assert "Is it raining?" in capsys.readouterr().err
    assert not list(run.glob("read-*"))
    assert score(samples(benchmark_root, tmp_path / "samples_pope.jsonl"), tmp_path / "nowhere") == 2
    assert cli.main(["score", "pope", "--predictions", "x.json"]) == 2
    assert "--annotations PATH" in capsys.readouterr().err
