"""ablate data shard, check and show, as a user runs them."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import fsspec
import pytest
from PIL import Image

from ablate import cli
from ablate.cli import data_shards

CONVERSATION = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}]


@pytest.fixture
def world(tmp_path):
    """Twelve entries, of which 3 has no image and 4 is text only."""
    entries = []
    (tmp_path / "images").mkdir()
    for number in range(12):
        if number != 3:
            Image.new("RGB", (40, 30), (number * 20, 90, 90)).save(tmp_path / "images" / f"{number}.jpg")
        image = {} if number == 4 else {"image": f"{number}.jpg"}
        entries.append({"id": f"n{number}", "conversations": CONVERSATION} | image)
    (tmp_path / "in.json").write_text(json.dumps(entries))
    return tmp_path


def shard(world, *more: str) -> list[str]:
    folders = ["--annotations", f"{world}/in.json", "--images", f"{world}/images", "--out", f"{world}/out"]
    return ["data", "shard", *folders, "--samples-per-shard", "5", "--workers", "2", *more]


def test_shard_then_check(world, capsys):
    assert cli.main(shard(world)) == 0
    said = capsys.readouterr().out
    assert "11 samples of 12 entries" in said
    assert "1  missing_image" in said
    assert cli.main(shard(world)) == 0
    assert "3 were there already" in capsys.readouterr().out
    assert cli.main(["data", "check", f"{world}/out", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["samples"], report["images"], report["problems"]) == (11, 10, [])
    path = world / "out" / "train-00001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 0xFF
    path.write_bytes(data)
    assert cli.main(["data", "check", f"{world}/out", "--fast", "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "train-00001.tar: its SHA-256 is not the one" in said
    assert "1 problems" in said


def test_check_names_members_that_are_not_read(tmp_path, capsys):
    """Samples with an image that nobody reads, and no `image` key: sound text to everything else."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.json", "0.input.jpg", "1.json", "1.input.jpg", "d/._1.jpg"):
            data = json.dumps({"conversations": CONVERSATION}).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert cli.main(["data", "check", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert f"{tmp_path}: 2 members of 2 samples are not read: .input.jpg (2). Read are .json, .jpg" in said
    assert "Members that are not read: .input.jpg (2), hidden files (1)" in said
    assert cli.main(["data", "check", str(tmp_path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["unread"] == {"input.jpg": 2, "(hidden)": 1}
    assert cli.main(["data", "check", str(tmp_path), "--ignore-suffixes", "txt,input.jpg"]) == 0
    assert "no problem found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resize", "big"], "expected shortest=PIXELS"),
        (["--workers", "-1"], "--workers is -1"),
        (["--samples-per-shard", "0"], "samples_per_shard is 0"),
    ],
)
def test_mistakes(world, capsys, more, message):
    assert cli.main([*shard(world), *more]) == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(world, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(data_shards._Bars, "of_sharding", stop)
    assert cli.main(shard(world)) == 130
    said = capsys.readouterr().err
    assert "out.partial; the same command continues" in said


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_leaves_no_process_behind(world):
    entries = json.loads((world / "in.json").read_text()) * 2000
    (world / "in.json").write_text(json.dumps(entries))
    command = [sys.executable, "-m", "ablate.cli", *shard(world, "--decode")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(world.glob("out.partial/*.tar")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "goes on" in said
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.fixture
def tokenizer(tmp_path):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["What? This."], trainer)
    inner.save(f"{tmp_path}/tokenizer.json")
    return f"tokenizer={tmp_path}/tokenizer.json"


def test_show_prints_and_draws(world, tokenizer, capsys):
    entries = json.loads((world / "in.json").read_text())
    entries[4]["conversations"] = [{"from": "human", "value": "\x1b[2J é 猫?"}, {"from": "gpt", "value": "猫"}]
    (world / "in.json").write_text(json.dumps(entries))
    cli.main(shard(world))
    capsys.readouterr()
    show = ["data", "show", f"{world}/out", "--config", "demo", tokenizer]
    assert cli.main([*show, "--n", "2", "--out", f"{world}/sheet.png"]) == 0
    said = capsys.readouterr().out
    assert "[49 visual tokens]" in said
    assert "2 of 11 samples" in said
    assert "⟦" in said
    assert Image.open(world / "sheet.png").size[0] > 600
    assert cli.main([*show, "--index", "3"]) == 0
    said = capsys.readouterr().out
    assert "text only" in said
    assert "\x1b[2J" not in said
    assert "猫" in said
    assert cli.main([*show, "--index", "11"]) == 2
    assert "numbers from 0 to 10" in capsys.readouterr().err


def test_check_and_show_from_afar_and_of_one_file(world, tokenizer, capsys, monkeypatch):
    cli.main(shard(world))
    store = fsspec.filesystem("memory")
    for path in (world / "out").iterdir():
        store.pipe(f"/far/{path.name}", path.read_bytes())
    show = ["--config", "demo", tokenizer, f"data.cache_dir={world}/cache", "--n", "2"]
    for place, samples in [
        ("memory://far", 11), ("memory://far/train-00001.tar", 5), (f"{world}/out/train-00001.tar", 5),
    ]:  # fmt: skip
        capsys.readouterr()
        assert cli.main(["data", "show", place, *show]) == 0
        assert f"2 of {samples} samples" in capsys.readouterr().out
    monkeypatch.chdir(world)
    for place, samples in [("memory://far", 11), (f"{world}/out/train-00001.tar", 5)]:
        assert cli.main(["data", "check", place, "--workers", "1"]) == 0
        said = capsys.readouterr().out
        assert f"{samples} samples" in said
        assert "no problem found" in said
    store.rm("/far/train-00001.tar")
    assert cli.main(["data", "check", "memory://far", "--workers", "1"]) == 1
    assert (
        "train-00001.tar: Cannot fetch memory://far/train-00001.tar: the file does not exist" in capsys.readouterr().out
    )
    store.rm("/far", recursive=True)
