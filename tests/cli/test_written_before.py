"""A run folder and a shard that an earlier version wrote (2026-11-26) are still read, and are the same run."""

import shutil
from pathlib import Path

import pytest
import torch

from ablate import config as config_io
from ablate.cli import main
from ablate.training import RunConfig, load_run, run_folder
from datamodules.shards import ShardSet

FIXTURES = Path(__file__).parents[1] / "fixtures" / "before-contracts"


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return next((tmp_path / "runs" / "before").iterdir())


def test_its_settings_are_still_the_same_run(before: Path):
    assert run_folder(config_io.load(RunConfig, [before / "config.yaml"])).name == before.name


def test_its_weights_load(before: Path):
    _, vlm = load_run(before)
    images = torch.zeros(1, 3, 64, 64)
    ids = torch.tensor([[-200] * vlm.num_visual_tokens + [2, 3]])
    answers = vlm.generate({"input_ids": ids, "images": [images]}, max_new_tokens=3, eos_id=0)
    assert len(answers) == 1


def test_the_same_command_finds_it_finished(before: Path, capsys):
    assert main(["train", "--config", str(before / "config.yaml")]) == 0
    assert "is finished" in capsys.readouterr().err


def test_it_has_a_table(before: Path, capsys):
    assert main(["table", str(before)]) == 0
    printed = capsys.readouterr().out
    assert "linear" in printed
    assert "gqa" in printed


def test_its_shard_is_read(before: Path):
    shards = ShardSet.open(["shards"])
    assert len(shards) == 22
    first = shards.read(0)
    assert first.record["id"] == "sample-0"
    assert first.image
