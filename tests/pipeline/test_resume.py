"""A run that is stopped and continued ends like one that never stopped, to the bit."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from ablate.core.config import to_yaml
from ablate.core.errors import UserError
from ablate.core.files import read_json, read_lines
from ablate.core.interrupts import Interrupted
from ablate.pipeline.train import train
from ablate.runs.folder import RunFiles
from ablate.runs.identity import run_folder
from ablate.training.callbacks import Recorder
from datamodules.shards.reader import write_shards


class Crash(Exception):
    pass


@pytest.fixture
def crash_after(monkeypatch):
    """Make training die right after a step's line is written, once."""

    def _crash_after(step: int, action=None) -> None:
        record = Recorder._record

        def dying(self, values, seconds):
            record(self, values, seconds)
            if values["step"] == step:
                monkeypatch.setattr(Recorder, "_record", record)
                if action is None:
                    raise Crash
                action()

        monkeypatch.setattr(Recorder, "_record", dying)

    return _crash_after


def without_times(lines):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_run(folder, reference):
    assert RunFiles(folder).weights.read_bytes() == RunFiles(reference).weights.read_bytes()
    assert without_times(read_lines(RunFiles(folder).steps)) == without_times(read_lines(RunFiles(reference).steps))
    lines = read_lines(RunFiles(folder).steps)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))


@pytest.fixture(scope="module")
def straight(request, tmp_path_factory):
    """The folder of a run that never stopped, trained once for each set of overrides."""
    runs = {}

    def _straight(configure, *overrides):
        if overrides not in runs:
            runs[overrides] = train(configure(*overrides, f"root={tmp_path_factory.mktemp('straight')}"))
        return runs[overrides]

    return _straight


# 22 samples in batches of 4: 6 steps in an epoch, the last one smaller. With micro-batches of 1 that last step is
# accumulated over fewer of them.
@pytest.mark.parametrize(
    ("micro_batch", "crash"), [(0, 1), (0, 5), (0, 6), (0, 7), (0, 11), (3, 5), (3, 6), (1, 3), (1, 6), (1, 7)]
)
def test_continued_after_a_crash(configure, straight, crash_after, micro_batch, crash):
    length = ["train.epochs=2", f"data.micro_batch={micro_batch}"]
    config = configure(*length, "train.checkpoint_every=1")
    crash_after(crash)
    with pytest.raises(Crash):
        train(config)
    assert_same_run(train(config), straight(configure, *length))


@pytest.mark.parametrize("every", [2, 4, 5, 6])
def test_continued_from_an_older_checkpoint(configure, straight, crash_after, every):
    config = configure("train.max_steps=14", f"train.checkpoint_every={every}")
    crash_after(9)
    with pytest.raises(Crash):
        train(config)
    assert len(read_lines(RunFiles(train(config)).steps)) == 14
    assert_same_run(train(config), straight(configure, "train.max_steps=14"))


def test_continued_twice_with_noise_in_the_model(configure, crash_after, tmp_path):
    """Drop path draws random numbers: they must not depend on how often the run was stopped."""
    noisy = ["train.epochs=2", "connector.name=msc_csm", "connector.fields.drop_path=0.5"]
    small = ["connector.fields.depth=1", "connector.fields.d_state=4", "connector.fields.headdim=16"]
    reference = train(configure(*noisy, *small, f"root={tmp_path}/straight"))
    config = configure(*noisy, *small, "train.checkpoint_every=2")
    for step in (5, 8):
        crash_after(step)
        with pytest.raises(Crash):
            train(config)
    assert_same_run(train(config), reference)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(configure, straight, crash_after, signum):
    config = configure()  # no periodic checkpoints
    crash_after(3, action=lambda: os.kill(os.getpid(), signum))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as error:
        train(config)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert error.value.exit_code == 128 + signum
    files = RunFiles(run_folder(config))
    assert "The last checkpoint is kept" in str(error.value)
    assert f"ablate train --config {files.config}" in str(error.value)
    # The step under way when the signal came is finished first.
    assert [line["step"] for line in read_lines(files.steps)] == [1, 2, 3, 4]
    assert_same_run(train(config), straight(configure))


def test_signals_that_arrive_together_save_once(configure, straight, crash_after):
    def several():
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), signum)

    crash_after(3, action=several)
    with pytest.raises(Interrupted, match="The last checkpoint is kept") as error:
        train(configure())
    assert error.value.exit_code == 128 + signal.SIGTERM
    assert_same_run(train(configure()), straight(configure))


def test_a_signal_outside_the_loop_stops_at_once(configure):
    def evaluate(*_):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(Interrupted, match="Training is complete and kept"):
        train(configure(), evaluate=evaluate)


def test_evaluation_that_fails_does_not_cost_the_training(configure, monkeypatch):
    def fails(*_):
        raise Crash

    with pytest.raises(Crash):
        train(configure(), evaluate=fails)
    monkeypatch.setattr(Recorder, "on_train_start", fails)  # it must not train again
    folder = train(configure(), evaluate=lambda *_: {"task": {"score": 1.0}})
    assert read_json(RunFiles(folder).result)["scores"] == {"task": {"score": 1.0}}


def test_a_damaged_checkpoint(configure, crash_after):
    crash_after(3)
    with pytest.raises(Crash):
        train(configure("train.checkpoint_every=1"))
    config = configure("train.checkpoint_every=1")
    files = RunFiles(run_folder(config))
    files.checkpoint.write_bytes(files.checkpoint.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        train(config)


def test_changed_data_is_refused(configure, crash_after, world, tmp_path):
    """The same path with other shards: continuing would mix two data sets."""
    shards = tmp_path / "shards"
    shards.symlink_to(world / "shards")
    config = configure("train.checkpoint_every=1", f"data.shards=[{shards}]")
    crash_after(3)
    with pytest.raises(Crash):
        train(config)
    shards.unlink()
    record = {"id": "x", "conversations": [{"from": "human", "value": "what"}, {"from": "gpt", "value": "two"}]}
    write_shards([(record, None)] * 22, shards)
    with pytest.raises(UserError, match="cannot be continued with this data"):
        train(config)


def test_checkpoint_holds_the_connector_and_what_learns_but_no_frozen_part(configure, crash_after):
    crash_after(3)
    config = configure("train.checkpoint_every=2", "train.stage=align")
    with pytest.raises(Crash):
        train(config)
    files = RunFiles(run_folder(config))
    checkpoint = torch.load(files.checkpoint, weights_only=True)
    assert set(checkpoint["state_dict"]) == {"vlm.connector.projection.weight", "vlm.connector.projection.bias"}


@pytest.mark.slow
def test_continued_after_kill_9(configure, straight, tmp_path):
    config = configure("train.epochs=2", "train.checkpoint_every=2")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    script = f"""
import os, signal
from ablate.core.config import load
from ablate.runs.config import RunConfig
from ablate.pipeline.train import train
from ablate.training.callbacks import Recorder
record = Recorder._record
def dying(self, values, seconds):
    record(self, values, seconds)
    if values["step"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
Recorder._record = dying
train(load(RunConfig, [{str(path)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert_same_run(train(config), straight(configure, "train.epochs=2"))
