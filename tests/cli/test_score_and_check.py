"""`ablate score` and `ablate data check` as a user meets them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ablate import cli

ROWS = [("on", 1, 0.9), ("on", 1, 0.2), ("under", 0, 0.6), ("under", 1, 0.6), ("left of", 0, 0.1)]


@pytest.fixture
def vsr(tmp_path: Path) -> Path:
    """VSR's folder with five rows, and beside its file the results of a model."""
    (tmp_path / "images").mkdir()
    entries, results = [], []
    for row, (relation, label, p_true) in enumerate(ROWS):
        Image.new("RGB", (8, 8), (row, 0, 0)).save(tmp_path / "images" / f"{row:012d}.jpg")
        entries.append({"image": f"{row:012d}.jpg", "caption": f"It is {relation} it.", "label": label})
        entries[-1]["relation"] = relation
        results.append({"index": row, "p_true": p_true})
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in results))
    return tmp_path


def score(root: Path, *more: str) -> int:
    return cli.main(["score", "vsr", "--predictions", str(root / "results.jsonl"), "--annotations", str(root), *more])


def test_json_is_one_object(vsr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(vsr, "--mode", "likelihood", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["benchmark"], printed["mode"]) == ("vsr", "likelihood")
    assert (printed["n"], printed["n_expected"], printed["partial"]) == (5, 1222, True)
    assert printed["scores"]["overall"] == pytest.approx(60)
    assert printed["baselines"]["constant"] == pytest.approx(60)
    assert printed["counts"] == {"overall": 5, "relation": {"left of": 1, "on": 2, "under": 2}}


def test_tables_have_every_part_with_n_and_interval(vsr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(vsr) == 0
    printed = capsys.readouterr().out
    assert "PARTIAL, 5 of 1,222 questions" in printed
    for line, rest in (("overall", ("60.00", " to ", "5")), ("relation: on", ("50.00", " to ", "2"))):
        (row,) = [each for each in printed.splitlines() if f" {line} " in each]
        assert all(part in row for part in rest)
    assert "roc_auc: 75.00" in printed
    assert 'Constant answer ("True" to everything): 60.00' in printed


def test_a_mode_names_the_release_that_it_follows(vsr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (vsr / "results.json").write_text('[{"question_id": 1, "answer": "Black."}]')
    answers = [{"answer": "black", "answer_id": number} for number in range(1, 11)]
    entry = {"question_id": 1, "image_id": 2, "question_type": "what", "answer_type": "other", "answers": answers}
    (vsr / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": [entry]}))
    for mode, release, overall in (("lmms_eval", "0.5.0 to 0.7", "100.00"), ("lmms_eval_2025_07", "0.4.0", "0.00")):
        assert cli.main(["score", "vqav2", "--predictions", str(vsr / "results.json"), "--annotations", str(vsr),
                         "--mode", mode]) == 0  # fmt: skip
        said = capsys.readouterr().out
        assert f"Mode {mode} follows lmms-eval" in said
        assert release in said
        assert overall in said


def test_a_mistake_is_one_message(vsr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (vsr / "results.jsonl").write_text('{"index": 0, "p_true": 0.5}\n')
    assert score(vsr) == 2
    assert "4 without an answer: 1, 2, 3, 4" in capsys.readouterr().err


def test_check_says_what_is_wrong_and_exits_so(vsr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", "demo_vsr", str(vsr)]) == 0
    assert "Complete and sound." in capsys.readouterr().out
    assert cli.main(["data", "check", "vsr", str(vsr)]) == 1
    assert "Not complete (5 of 1,222 questions)" in capsys.readouterr().out
    (vsr / "images" / f"{0:012d}.jpg").write_bytes(b"")
    (vsr / "images" / f"{3:012d}.jpg").unlink()
    assert cli.main(["data", "check", "demo_vsr", str(vsr)]) == 1
    printed = capsys.readouterr().out
    assert f"{0:012d}.jpg: 0 bytes (questions 0)" in printed
    assert f"{3:012d}.jpg: not in {vsr}/images (questions 3)" in printed


def test_check_prints_one_json_object(vsr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", "vsr", str(vsr), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["ok"], printed["complete"], printed["sound"]) == (False, False, True)
    assert printed["counts"]["images"] == {"found": 5, "expected": 715}


def test_an_interrupted_check_shows_what_it_found(
    vsr: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(path: Path, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ablate.evaluation.check.image_problem", interrupt)
    assert cli.main(["data", "check", "demo_vsr", str(vsr)]) == 130
    assert "Interrupted: 5 images were not looked at" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vrs", "."], 'Unknown benchmark "vrs"'),
        (["vsr"], "vsr is a benchmark: give its folder too"),
        (["vsr", "a", "b"], "expected a benchmark's name and its folder"),
    ],
)
def test_check_asks_for_what_it_needs(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", *arguments]) == 2
    assert message in capsys.readouterr().err
