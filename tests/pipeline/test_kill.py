"""kill -9 at any moment, then the same command again: the same samples and weights, nothing lost, nothing twice."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from itertools import chain, count

import pytest

from ablate.core.config import to_yaml
from ablate.core.files import read_lines
from ablate.pipeline.train import train
from ablate.runs.folder import RunFiles
from ablate.runs.identity import run_folder
from datamodules.shards.reader import ShardSet

# Every rank writes down which samples it learns from at which step; the rank in KILLED dies after step KILL_STEP.
SCRIPT = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from ablate.core.config import load
from ablate.runs.config import RunConfig
from ablate.pipeline.train import train
from ablate.training.module import VLMModule
from ablate.training.callbacks import Recorder

rank = int(os.environ.get("LOCAL_RANK", "0"))
training_step, on_train_batch_end = VLMModule.training_step, Recorder.on_train_batch_end

def watched(self, batch, batch_idx):
    with open(os.environ["SEEN"] + f"-{rank}.jsonl", "a") as file:
        file.write(json.dumps({"step": self.global_step + 1, "keys": batch["keys"]}) + "\\n")
    return training_step(self, batch, batch_idx)

def dying(self, trainer, *rest):
    on_train_batch_end(self, trainer, *rest)
    if rank == int(os.environ.get("KILLED", "-1")) and trainer.global_step == int(os.environ["KILL_STEP"]):
        os.kill(os.getpid(), signal.SIGKILL)

VLMModule.training_step, Recorder.on_train_batch_end = watched, dying
train(load(RunConfig, [sys.argv[1]], sys.argv[2:]))
"""
# 22 samples in batches of 4: 6 batches in an epoch; with packing 5 rows of about 4, in batches of 2: 3.
LENGTH = ["train.epochs=2", "train.checkpoint_every=2", "data.micro_batch=1"]
PACKED = ["data.batch_size=2", "data.packing=128", "data.max_length=128"]
EVERY_STEP = ["train.epochs=2", "train.checkpoint_every=1"]


def ranks(number: int) -> list[str]:
    return [f"train.devices={number}", "train.accelerator=cpu", *(["train.strategy=ddp"] if number > 1 else [])]


@pytest.fixture
def launch(tmp_path):
    """Run the script; returns its exit status and what each rank has seen so far, as {step: keys} lists."""
    (tmp_path / "train.py").write_text(SCRIPT)

    def _launch(config, seen, *, killed=-1, kill_step=0):
        path = tmp_path / f"{seen}.yaml"
        path.write_text(to_yaml(config))
        environment = os.environ | {"SEEN": str(tmp_path / seen), "KILLED": str(killed), "KILL_STEP": str(kill_step)}
        command = [sys.executable, tmp_path / "train.py", path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
        assert killed >= 0 or done.returncode == 0, done.stderr
        return done.returncode

    return _launch


def seen_by(folder, name, rank, after=0, until=10**9):
    lines = map(json.loads, (folder / f"{name}-{rank}.jsonl").read_text().splitlines())
    return [(line["step"], line["keys"]) for line in lines if after < line["step"] <= until]


@pytest.mark.slow
@pytest.mark.parametrize("packing", [[], PACKED], ids=["", "packed"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_killed_and_continued_is_to_the_bit(configure, launch, tmp_path, count, workers, packing):
    settings = [*LENGTH, *ranks(count), f"data.num_workers={workers}", *packing]
    straight, config = configure(*settings, "group=straight"), configure(*settings, "group=killed")
    launch(straight, "straight")
    step = 3 if packing else 5  # in the middle of an epoch, one step behind the checkpoint
    assert launch(config, "first", killed=count - 1, kill_step=step) != 0
    assert not RunFiles(run_folder(config)).weights.exists()
    launch(config, "second")
    for rank in range(count):
        whole = seen_by(tmp_path, "straight", rank)
        first, second = (seen_by(tmp_path, name, rank) for name in ("first", "second"))
        assert [line for line in first if line[0] <= step - 1] + second == whole
    one, two = RunFiles(run_folder(straight)), RunFiles(run_folder(config))
    assert one.weights.read_bytes() == two.weights.read_bytes()
    assert [line["loss"] for line in read_lines(one.steps)] == [line["loss"] for line in read_lines(two.steps)]


@pytest.mark.slow
@pytest.mark.parametrize("packing", [[], PACKED], ids=["", "packed"])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_continued_on_other_ranks_every_sample_comes_once(configure, launch, tmp_path, before, after, packing):
    config = configure(*LENGTH, *ranks(before), *packing)
    step = 3 if packing else 5
    assert launch(config, "first", killed=0, kill_step=step) != 0
    other = configure(*LENGTH, *ranks(after), "data.micro_batch=2", *packing)
    assert run_folder(other) == run_folder(config)
    launch(other, "second")
    kept = [seen_by(tmp_path, "first", rank, until=step - 1) for rank in range(before)]
    kept += [seen_by(tmp_path, "second", rank) for rank in range(after)]
    learned = [(s, key) for s, keys in chain.from_iterable(kept) for key in keys if not key.endswith("(idle)")]
    shards = ShardSet.open(config.data.shards)
    expected = sorted(2 * [shards.key(index) for index in range(len(shards))])
    assert sorted(key for _, key in learned) == expected
    assert len(set(learned)) == len(learned)
    lines = read_lines(RunFiles(run_folder(config)).steps)
    assert [line["step"] for line in lines] == sorted({s for s, _ in learned})


KILLS = 25


def _in_process(context, config) -> multiprocessing.Process:
    process = context.Process(target=train, args=(config,))
    process.start()
    return process


def _killed_until_done(context, config, draw: random.Random, longest: float) -> int:
    """Start, kill after a while, again and again, until the run is through; returns how many kills hit."""
    hit = 0
    while True:
        process = _in_process(context, config)
        process.join(draw.uniform(0, longest))
        if not process.is_alive():
            assert process.exitcode == 0
            return hit
        process.kill()
        process.join()
        hit += process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("packing", [[], PACKED], ids=["", "packed"])
def test_random_kills(configure, packing):
    """A server that has imported everything forks the runs, so that a kill hits training and not an import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ablate.training", "timm", "lightning"])
    settings = ["train.epochs=12", "train.checkpoint_every=1", *packing]
    _in_process(context, configure(*settings, "group=warm")).join()
    straight = configure(*settings, "group=straight")
    start = time.monotonic()
    _in_process(context, straight).join()
    longest = time.monotonic() - start
    draw, hit = random.Random(0), 0
    for number in count():
        config = configure(*settings, f"group=killed-{number}")
        hit += _killed_until_done(context, config, draw, longest)
        one, two = RunFiles(run_folder(straight)), RunFiles(run_folder(config))
        assert one.weights.read_bytes() == two.weights.read_bytes()
        assert _without_times(one) == _without_times(two)
        if hit >= KILLS:
            break


def _without_times(files: RunFiles) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read_lines(files.steps)]


def test_killed_once(configure):
    """The fast one: one process, killed after its third step by itself."""
    context = multiprocessing.get_context("fork")
    config = configure(*EVERY_STEP, *PACKED, "group=killed")
    process = context.Process(target=_train_and_die, args=(config, 3))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    straight = train(configure(*EVERY_STEP, *PACKED, "group=straight"))
    assert RunFiles(train(config)).weights.read_bytes() == RunFiles(straight).weights.read_bytes()


def _train_and_die(config, step: int) -> None:
    from ablate.training.callbacks import Recorder

    record = Recorder._record

    def dying(self, values, seconds):
        record(self, values, seconds)
        if values["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Recorder._record = dying
    train(config)
