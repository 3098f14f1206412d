"""`ablate eval` and `ablate failures` from the command line to the files."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ablate import cli
from ablate.api.answering import find_device
from ablate.cli import evaluate as command
from ablate.core.console import Phase
from ablate.core.errors import UserError
from ablate.core.files import clear_leftovers
from ablate.model import VLM
from ablate.pipeline.evaluate import Asking, _check_alive
from ablate.tables.failures import write_failures

ALL = "vqav2,gqa,textvqa,pope,vizwiz,vsr"
MakeRun = Callable[..., Path]


def evaluate(run: Path, root: Path, *arguments: str, benchmarks: str = ALL) -> int:
    return cli.main(["eval", "--run", str(run), "--benchmarks", benchmarks, f"data.root={root}", *arguments])


def files_of(folder: Path) -> dict[str, bytes]:
    """What came out, but for the one file that says when, and the lock."""
    clear_leftovers(folder)
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("log.jsonl", ".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


# -- What comes out ---------------------------------------------------------------------------------------------------


def test_one_folder_with_everything(
    make_run: MakeRun, benchmark_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    assert evaluate(run, benchmark_root) == 0
    out = run / "eval"
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["failures"] == str(out / "failures.html")
    assert "4 of 214,354" in captured.out
    assert "(partial)" in captured.out
    assert "testdev_balanced" in captured.out
    assert "└ mean F1" in captured.out
    names = ALL.split(",")
    assert {path.name for path in (out / "predictions").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("jsonl", "settings.json")
    }
    assert {path.name for path in (out / "submissions").iterdir()} == {
        "vqav2.json", "gqa.json", "textvqa.json", "pope.jsonl", "vizwiz.json", "vsr.jsonl"
    }  # fmt: skip
    scores = read_json(out / "scores.json")["scores"]
    assert list(scores) == names
    assert scores["vqav2"]["partial"]
    assert (out / "failures.html").read_text().startswith("<!DOCTYPE html>")
    assert read_json(out / "log.jsonl")["seconds"] > 0


def test_provenance_says_what_the_scores_came_out_of(make_run: MakeRun, benchmark_root: Path) -> None:
    run = make_run()
    evaluate(run, benchmark_root, benchmarks="gqa")
    header = read_json(run / "eval" / "scores.json")["provenance"]
    assert header["weights"]["sha256"] == hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    assert header["config"]["connector"]["name"] == header["connector"] == "linear"
    assert len(header["config_sha256"]) == len(header["tokenizer_sha256"]) == 64
    assert header["template"]["user_prefix"] == "<|user|>\n"
    asked = header["benchmarks"]["gqa"]
    assert asked["first_prompt"].index("<image>") < asked["first_prompt"].index("car")
    assert len(asked["questions_sha256"]) == len(asked["answers_sha256"]) == 64
    assert torch.__version__.startswith(header["packages"]["torch"])
    assert {"commit", "dirty", "version"} == header["code"].keys()
    assert header["evaluation"]["root"] == str(benchmark_root)
    assert "devices" not in header["evaluation"]


def test_again_it_asks_nothing_and_gives_the_same_bytes(
    make_run: MakeRun, benchmark_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    evaluate(run, benchmark_root)
    before = files_of(run / "eval")
    monkeypatch.setattr(VLM, "generate", None)
    monkeypatch.setattr(VLM, "first_token_probabilities", None)
    assert evaluate(run, benchmark_root) == 0
    assert files_of(run / "eval") == before


def test_a_page_of_several_runs(make_run: MakeRun, benchmark_root: Path, tmp_path: Path) -> None:
    runs = [make_run("a"), make_run("b", "connector.name=mlp")]
    for run in runs:
        evaluate(run, benchmark_root, benchmarks="gqa,vsr")
    page = tmp_path / "both.html"
    assert cli.main(["failures", *(str(run / "eval") for run in runs), "--out", str(page)]) == 0
    assert "<title>Failures of linear, mlp</title>" in page.read_text()


def test_the_page_has_the_images_of_textvqa_with_ocr_words(make_run: MakeRun, benchmark_root: Path) -> None:
    run = make_run()
    evaluate(run, benchmark_root, benchmarks="textvqa_llava")
    written = write_failures([run / "eval"], run / "page.html")
    assert written.shown == 3
    assert written.without_image == 0


@pytest.mark.parametrize("cache", ["true", "false"])
def test_a_huge_image_is_named_with_its_question(
    cache: str, make_run: MakeRun, benchmark_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(benchmark_root / "gqa", root / "gqa")
    Image.new("1", (20_000, 20_000)).save(root / "gqa" / "images" / "n2.jpg", "PNG", compress_level=1)
    assert evaluate(make_run(), root, f"features.cache={cache}", benchmarks="gqa") == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert re.search(r"gqa, question 203: .*n2\.jpg.*400000000 pixels", said)
    assert "evaluation.partial=true" in said


def spoilt_copy(benchmark_root: Path, root: Path, kind: str) -> Path:
    """A copy of GQA of whose three images one cannot be used, and an empty one of VSR's."""
    for name in ("gqa", "vsr"):
        shutil.copytree(benchmark_root / name, root / name)
    path = root / "gqa" / "images" / "n2.jpg"
    data = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "too large":
        Image.new("1", (20_000, 20_000)).save(path, "PNG", compress_level=1)
    elif kind != "missing":
        path.write_bytes({"truncated": data[: len(data) // 2], "no image": b"<html>"}[kind])
    return root


@pytest.mark.parametrize("kind", ["missing", "truncated", "no image", "folder", "too large"])
@pytest.mark.parametrize("cache", ["true", "false"])
def test_a_partial_evaluation_says_what_it_left_out_everywhere(
    cache: str, kind: str, make_run: MakeRun, benchmark_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, root = make_run(), spoilt_copy(benchmark_root, tmp_path / "data", kind)
    assert evaluate(run, root, f"features.cache={cache}", benchmarks="gqa,vsr") == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert "n2.jpg" in said
    assert "203" in said
    assert "evaluation.partial=true" in said

    settings = [f"features.cache={cache}", "evaluation.partial=true"]
    assert evaluate(run, root, *settings, benchmarks="gqa,vsr") == 0
    captured = capsys.readouterr()
    said = " ".join(captured.err.split())
    assert "gqa: 1 question left out" in said
    assert "n2.jpg: " in said
    assert "(questions 203)" in said
    assert "3 of 12,578 (partial)" in captured.out
    written = read_json(run / "eval" / "scores.json")["scores"]["gqa"]
    assert (written["n"], written["partial"]) == (3, True)
    assert [(each["name"], each["questions"]) for each in written["details"]["left_out"]] == [("n2.jpg", ["203"])]
    answered = [json.loads(line)["id"] for line in (run / "eval" / "predictions" / "gqa.jsonl").open()]
    submitted = [each["questionId"] for each in read_json(run / "eval" / "submissions" / "gqa.json")]
    assert answered == submitted == ["201", "202", "204"]
    before = files_of(run / "eval")
    assert evaluate(run, root, *settings, benchmarks="gqa,vsr") == 0
    assert files_of(run / "eval") == before


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["true", "false"])
def test_two_processes_leave_out_what_one_does(
    cache: str, make_run: MakeRun, benchmark_root: Path, tmp_path: Path
) -> None:
    run, root = make_run(), spoilt_copy(benchmark_root, tmp_path / "data", "truncated")
    settings = [f"features.cache={cache}", "evaluation.partial=true"]
    assert evaluate(run, root, *settings, benchmarks="gqa,vsr") == 0
    two = ["--out", str(tmp_path / "two"), "evaluation.devices=2"]
    assert evaluate(run, root, *settings, *two, benchmarks="gqa,vsr") == 0
    assert files_of(tmp_path / "two") == files_of(run / "eval")


def test_weights_are_hashed_once_in_an_evaluation(
    make_run: MakeRun, benchmark_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ablate.core import files

    run, hashed = make_run(), []
    plain = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: hashed.append(Path(path).name) or plain(path))
    os.utime(run / "model.safetensors", (1, 1))
    assert evaluate(run, benchmark_root, benchmarks="gqa,vsr") == 0
    assert hashed.count("model.safetensors") == 1


def test_an_evaluation_that_fails_leaves_no_progress_bar(
    make_run: MakeRun, benchmark_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    monkeypatch.setattr(Phase, "close", lambda phase: closed.append(phase.name))

    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no answer")

    monkeypatch.setattr(VLM, "generate", failing)
    with pytest.raises(RuntimeError, match="no answer"):
        evaluate(make_run(), benchmark_root, benchmarks="gqa")
    assert "evaluate" in closed


def test_the_commands_do_not_import_one_another_in_a_circle() -> None:
    source = {
        path.stem: set(re.findall(r"from ablate\.cli\.(\w+) import", path.read_text()))
        for path in Path(command.__file__).parent.glob("*.py")
    }

    def reached(name: str, seen: frozenset[str] = frozenset()) -> set[str]:
        return {each for other in source.get(name, set()) - seen for each in {other} | reached(other, seen | {other})}

    assert not [name for name in source if name in reached(name)]


def test_runs_without_scores_have_no_failures(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has been evaluated to its end"):
        write_failures([make_run()], tmp_path / "page.html")


# -- Which model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", "checkpoints/last.ckpt"])
def test_a_weights_file_or_a_checkpoint_is_evaluated_as_the_run(
    file: str, make_run: MakeRun, benchmark_root: Path, tmp_path: Path
) -> None:
    run = make_run()
    evaluate(run, benchmark_root, benchmarks="gqa,vsr")
    assert evaluate(run / file, benchmark_root, "--out", str(tmp_path / "out"), benchmarks="gqa,vsr") == 0
    for name in ("gqa", "vsr"):
        written = (tmp_path / "out" / "predictions" / f"{name}.jsonl").read_bytes()
        assert written == (run / "eval" / "predictions" / f"{name}.jsonl").read_bytes()
    assert read_json(tmp_path / "out" / "scores.json")["provenance"]["weights"]["file"] == Path(file).name


def test_a_file_that_stands_alone_is_refused(make_run: MakeRun, benchmark_root: Path, tmp_path: Path, capsys) -> None:
    alone = tmp_path / "alone" / "below" / "model.safetensors"
    alone.parent.mkdir(parents=True)
    shutil.copy(make_run() / "model.safetensors", alone)
    assert evaluate(alone, benchmark_root) == 2
    assert "config.yaml, which describes its model, must be next to it" in capsys.readouterr().err


def test_a_run_that_is_not_trained_to_its_end_names_its_checkpoint(
    make_run: MakeRun, benchmark_root: Path, capsys
) -> None:
    run = make_run()
    (run / "model.safetensors").unlink()
    assert evaluate(run, benchmark_root) == 2
    assert f"can be used as it is: {run / 'checkpoints' / 'last.ckpt'}" in capsys.readouterr().err


def test_a_checkpoint_of_something_else_is_refused(make_run: MakeRun, benchmark_root: Path, capsys) -> None:
    run = make_run()
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, run / "other.ckpt")
    assert evaluate(run / "other.ckpt", benchmark_root) == 2
    assert "no checkpoint of a run of ours" in capsys.readouterr().err


def test_a_gpu_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto").type == "cuda"
    assert find_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto").type == "cpu"
    with pytest.raises(UserError, match="finds no CUDA device"):
        find_device("cuda")
    with pytest.raises(UserError, match="expected auto, cpu"):
        find_device("gpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_answers_are_those_of_the_cpu(make_run: MakeRun, benchmark_root: Path, tmp_path: Path) -> None:
    run = make_run()
    evaluate(run, benchmark_root, "--device", "cpu")
    evaluate(run, benchmark_root, "--device", "cuda", "--out", str(tmp_path / "gpu"))
    for name in ALL.split(","):
        cpu, gpu = (
            [json.loads(line)["prediction"] for line in (folder / "predictions" / f"{name}.jsonl").open()]
            for folder in (run / "eval", tmp_path / "gpu")
        )
        assert cpu == gpu


# -- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.rot=x"], "It takes data.root"),
        (["train.epochs=2"], "cannot change what the run was trained with"),
        (["evaluation.batchsize=2"], "did you mean evaluation.batch_size"),
        (["evaluation.devices=0"], "evaluation.devices is 0: expected 1 or more"),
        (["evaluation.limit=0"], "evaluation.limit is 0: expected 1 or more"),
        (["evaluation.batch_size=many"], "evaluation.batch_size: got 'many'"),
        (["--benchmarks", "gqa,gqa"], "named twice: gqa"),
        (["--benchmarks", "gqqa"], "Did you mean gqa"),
        (["data.root=nowhere"], "No folder nowhere/gqa"),
    ],
)
def test_wrong_settings_are_explained(settings: list[str], said: str, make_run: MakeRun, capsys) -> None:
    assert cli.main(["eval", "--run", str(make_run()), "--benchmarks", "gqa", *settings]) == 2
    assert said in capsys.readouterr().err


# -- Stops ------------------------------------------------------------------------------------------------------------


def test_ctrl_c_says_how_to_go_on(
    make_run: MakeRun, benchmark_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    evaluate(run, benchmark_root)
    expected = files_of(run / "eval")
    shutil.rmtree(run / "eval")
    generate, calls, closed = VLM.generate, [], []

    def interrupted(*inputs: Any, **options: Any) -> Any:
        calls.append(inputs)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return generate(*inputs, **options)

    with monkeypatch.context() as patched:
        patched.setattr(VLM, "generate", interrupted)
        patched.setattr(Phase, "close", lambda phase: closed.append(phase.name))
        assert evaluate(run, benchmark_root, "evaluation.batch_size=2") == 130
    said = capsys.readouterr().err
    assert f"To continue: ablate eval --run {run} --benchmarks {ALL} data.root={benchmark_root}" in said
    assert "evaluation.batch_size=2" in said
    assert closed == ["encode images"] * closed.count("encode images") + ["evaluate"]
    assert evaluate(run, benchmark_root) == 0
    assert files_of(run / "eval") == expected


def test_two_evaluations_into_one_folder_are_refused(make_run: MakeRun, benchmark_root: Path, capsys) -> None:
    from ablate.core.locks import exclusive

    run = make_run()
    with exclusive(run / "eval" / ".lock"):
        assert evaluate(run, benchmark_root) == 2
    assert "Another process is evaluating" in capsys.readouterr().err


def kill_and_resume(
    go: Callable[[], object], out: Path, expected: dict[str, bytes], kills: int, longest: float
) -> None:
    """Run `go` in children that are killed at random moments; whenever one comes to its end, compare and start over."""
    moments = random.Random(0)
    while kills:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            go()
            os._exit(0)
        time.sleep(moments.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            kills -= 1
        else:
            assert files_of(out) == expected
            shutil.rmtree(out)
    go()
    assert files_of(out) == expected


def test_killed_at_any_moment_the_command_gives_the_same_files(make_run: MakeRun, benchmark_root: Path) -> None:
    run = make_run()
    began = time.perf_counter()
    evaluate(run, benchmark_root)
    seconds = time.perf_counter() - began
    expected = files_of(run / "eval")
    assert len(expected) == 20
    shutil.rmtree(run / "eval")
    kill_and_resume(lambda: evaluate(run, benchmark_root), run / "eval", expected, kills=5, longest=0.8 * seconds)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_run_killed_at_twenty_moments_gives_the_same_files(tmp_path: Path) -> None:
    runs = sorted(Path("runs/demo").glob("*/result.json"))
    if not runs:
        pytest.skip("no finished run in runs/demo: `make sweep CONNECTOR=msc_csm` makes one")
    arguments = ["eval", "--run", str(runs[0].parent), "--out"]
    for folder in ("cold", "whole"):  # the first one fills the features' cache and pays for imports
        began = time.perf_counter()
        assert cli.main([*arguments, str(tmp_path / folder)]) == 0
        seconds = time.perf_counter() - began
    expected, out = files_of(tmp_path / "whole"), tmp_path / "killed"
    assert files_of(tmp_path / "cold") == expected
    kill_and_resume(lambda: cli.main([*arguments, str(out)]), out, expected, kills=20, longest=seconds)


# -- Several processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_give_the_files_of_one(make_run: MakeRun, benchmark_root: Path, tmp_path: Path) -> None:
    run = make_run()
    evaluate(run, benchmark_root)
    assert evaluate(run, benchmark_root, "--out", str(tmp_path / "two"), "evaluation.devices=2") == 0
    assert files_of(tmp_path / "two") == files_of(run / "eval")
    shutil.rmtree(tmp_path / "two" / "predictions")
    (benchmark_root / "gqa" / "images" / "n2.jpg").rename(tmp_path / "n2.jpg")
    try:
        (benchmark_root / "gqa" / "images" / "n2.jpg").write_bytes(b"no picture")
        options = ["--out", str(tmp_path / "two"), "evaluation.devices=2", "features.cache=false"]
        assert evaluate(run, benchmark_root, *options) == 2  # a process's complaint is the command's
    finally:
        (tmp_path / "n2.jpg").rename(benchmark_root / "gqa" / "images" / "n2.jpg")


def test_a_process_that_has_died_is_told() -> None:
    class Dead:
        exitcode = -9

    with pytest.raises(UserError, match=r"process 0 has died .*-9.* answers so far are kept"):
        _check_alive([Dead()])


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, make_run: MakeRun) -> None:
    from ablate.pipeline.evaluate import _ask_together
    from ablate.runs.weights import load_run

    config, _ = load_run(make_run())
    config.evaluation.devices = 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="devices is 4, but there are 2 GPUs"):
        _ask_together(Asking(config, Path("weights"), Path("folder")), "cuda", print)
