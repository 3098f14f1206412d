"""Every command, on files and folders that cannot be written or read: one sentence, never a traceback.

Nothing here asks for permissions, which the superuser does not need: files stand where folders should, links lead
nowhere, names are too long, /proc takes no files.
"""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ablate import cli
from ablate.core.errors import file_problem

TURNS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}]
SMALL = [
    "encoder.names=[test_resnet]", "encoder.weights=[random]", "encoder.layer=[final]", "encoder.image_size=[32]",
    "encoder.precision=float32", "connector.name=linear", "logger.wandb=disabled", "data.batch_size=2",
    "language={d_model: 16, n_layer: 1, vocab_size: 64, ssm_cfg: {d_state: 8, headdim: 8}}", "train.epochs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    (root / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (40, 30), (number * 20, 90, 90)).save(root / "images" / f"{number}.jpg")
    entries = [{"id": f"n{number}", "image": f"{number}.jpg", "conversations": TURNS} for number in range(4)]
    (root / "in.json").write_text(json.dumps(entries))
    assert (
        cli.main([*SHARD, "--annotations", f"{root}/in.json", "--images", f"{root}/images", "--out", f"{root}/s"]) == 0
    )
    return root


SHARD = ["data", "shard", "--workers", "1"]


def places(tmp_path: Path, kind: str) -> str:
    """A path on which nothing can be written."""
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "something").write_text("of somebody")
    (tmp_path / "nowhere").symlink_to(tmp_path / "file" / "none")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    return {
        "a file": f"{tmp_path}/file",
        "below a file": f"{tmp_path}/file/x/y.png",
        "a folder in use": f"{tmp_path}/folder",
        "in /proc": "/proc/ablate/x.png",
        "a full device": "/dev/full",
        "below a device": "/dev/full/x.png",
        "a name too long": f"{tmp_path}/{'n' * 300}.png",
        "a dangling link": f"{tmp_path}/nowhere/x.png",
        "links in a circle": f"{tmp_path}/circle/x.png",
    }[kind]


KINDS = ["a file", "below a file", "a folder in use", "in /proc", "a full device", "below a device", "a name too long",
         "a dangling link", "links in a circle"]  # fmt: skip


def said_once(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail; what it says on standard error."""
    capsys.readouterr()
    try:
        status = cli.main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    output = capsys.readouterr()
    assert status not in (0, None), output
    assert output.err.count("error:") == 1, output
    assert "Traceback" not in output.err
    return output.err


FOLDERS: dict[str, Callable[[Path, str], list[str]]] = {
    "train": lambda world, out: ["train", *SMALL, f"data.shards=[{world}/s]", f"root={out}"],
    "sweep": lambda world, out: ["sweep", "demo", "--root", out, "seed=0", "--connector", "mlp", *SMALL,
                                 f"data.shards=[{world}/s]"],
    "shard": lambda world, out: [*SHARD, "--annotations", f"{world}/in.json", "--images", f"{world}/images",
                                 "--out", out],
    "demo": lambda world, out: ["data", "demo", "--root", out, "pictures=procedural", "n_train_images=4"],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", FOLDERS)
def test_folders_that_cannot_be_written(command, kind, world, tokenizer_file, tmp_path, capsys, monkeypatch) -> None:
    if kind == "a folder in use" and command != "shard":
        pytest.skip("such a folder can be written")
    monkeypatch.chdir(tmp_path)
    arguments = FOLDERS[command](world, places(tmp_path, kind))
    if command in ("train", "sweep"):
        arguments += [f"tokenizer={tokenizer_file}", f"features.root={tmp_path}/f", f"data.cache_dir={tmp_path}/c"]
    said_once(arguments, capsys)
    assert (tmp_path / "file").read_text() == "a file"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["something"]


FILES: dict[str, Callable[[Path, str], list[str]]] = {
    "connectors": lambda world, out: ["connectors", "--scan", "rows", "--grid", "3x4", "--png", out],
    "show": lambda world, out: ["data", "show", f"{world}/s", "--n", "1", "--out", out, *SMALL],
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("a file", "a full device")])
@pytest.mark.parametrize("command", FILES)
def test_files_that_cannot_be_written(command, kind, world, tokenizer_file, tmp_path, capsys) -> None:
    arguments = FILES[command](world, places(tmp_path, kind))
    if command == "show":
        arguments += [f"tokenizer={tokenizer_file}"]
    said_once(arguments, capsys)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["something"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "a folder in use"])
@pytest.mark.parametrize("command", ["eval", "table", "failures"])
def test_what_comes_of_runs_that_cannot_be_written(command, kind, make_run, tmp_path, capsys) -> None:
    if command == "failures" and kind in ("a file", "a full device"):
        pytest.skip("a file takes the place of a file")
    run = make_run("small")
    place = places(tmp_path, kind)
    arguments = {
        "eval": ["eval", "--run", str(run), "--out", place],
        "table": ["table", str(run.parent), "--out", place],
        "failures": ["failures", str(run), "--out", place],
    }
    said_once(arguments[command], capsys)


READS: dict[str, Callable[[Path, str], list[str]]] = {
    "train --config": lambda world, path: ["train", "--config", path],
    "eval --run": lambda world, path: ["eval", "--run", path],
    "generate --run": lambda world, path: ["generate", "--run", path, "--prompt", "x"],
    "sweep": lambda world, path: ["sweep", path],
    "table": lambda world, path: ["table", path],
    "power": lambda world, path: ["power", path, "--difference", "1"],
    "table --root": lambda world, path: ["table", "--root", path],
    "failures": lambda world, path: ["failures", path, "--out", f"{world}/failures.html"],
    "score": lambda world, path: ["score", "pope", "--predictions", path, "--annotations", path],
    "check": lambda world, path: ["data", "check", path],
    "check benchmark": lambda world, path: ["data", "check", "pope", path],
    "show": lambda world, path: ["data", "show", path, *SMALL],
    "shard --annotations": lambda world, path: [*SHARD, "--annotations", path, "--images", f"{world}/images", "--out",
                                                f"{world}/n"],
    "shard --images": lambda world, path: [*SHARD, "--annotations", f"{world}/in.json", "--images", path, "--out",
                                           f"{world}/n"],
    "train data": lambda world, path: ["train", *SMALL, f"data.shards=[{path}]", f"root={world}/r"],
    "train tokenizer": lambda world, path: ["train", *SMALL, f"data.shards=[{world}/s]", f"tokenizer={path}",
                                            f"root={world}/r"],
}  # fmt: skip


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind != "a full device"), "binary"])
@pytest.mark.parametrize("command", READS)
def test_what_cannot_be_read(command, kind, world, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "binary":
        path = str(tmp_path / "binary.json")
        Path(path).write_bytes(bytes(range(256)) * 4)
    else:
        path = places(tmp_path, kind)
    if command == "check benchmark" or (command == "check" and kind in ("a file", "binary")):
        assert cli.main(READS[command](world, path)) == 1  # they list all that is wrong
        output = capsys.readouterr()
        assert "problem" in output.out or output.err.startswith("error: ")
    else:
        said_once(READS[command](world, path), capsys)


# The one place that says it


ERRNOS = [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EIO,
          errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ESTALE, errno.EFBIG,
          errno.ENODEV, errno.EBUSY]  # fmt: skip


@pytest.mark.parametrize("number", ERRNOS)
@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_says_what_the_file_system_says(command, number, monkeypatch, capsys) -> None:
    def fail(_):
        raise OSError(number, os.strerror(number), "some/where")

    least = {
        "eval": ["--run", "x"], "distill": ["--run", "x"],
        "score": ["pope", "--predictions", "x", "--annotations", "x"],
        "generate": ["--run", "x", "--prompt", "x"],
        "sweep": ["x"], "failures": ["x", "--out", "x"], "data": ["check", "x"],
        "power": ["x", "--difference", "1"], "list": ["recipes"],
    }  # fmt: skip
    monkeypatch.setattr(f"{cli.COMMANDS[command]}.run", fail)
    said = said_once([command, *least.get(command, [])], capsys)
    assert "some/where" in said
    assert os.strerror(number).lower() in said.lower() or "the disk is full" in said
    assert len(said.splitlines()) == 1


def test_other_errors_are_none_of_the_file_system() -> None:
    assert file_problem(OSError("no number")) == ""
    assert file_problem(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")) == ""
    assert "a file cannot be written or read: Read-only" in file_problem(OSError(errno.EROFS, "Read-only file system"))
    moved = OSError(errno.EISDIR, "Is a directory", "temporary", None, "final")
    assert file_problem(moved).startswith("final cannot be written")


@pytest.mark.parametrize("output", ["/dev/full", "closed pipe"])
def test_output_that_nobody_takes(output, tmp_path) -> None:
    command = [sys.executable, "-m", "ablate.cli", "connectors"]
    if output == "closed pipe":
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
        assert done.stderr == ""
    else:
        with open(output, "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.stderr == "error: the disk is full. What was finished is kept; free some space and repeat.\n"
    assert done.returncode == 1
