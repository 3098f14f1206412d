import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablate.core.errors import UserError
from ablate.pipeline.train import train
from ablate.runs.config import LoggerConfig
from ablate.training.loggers import RunLogger, server_answers, tracking, wandb_mode

SCORES = {
    "demo_vqa": {"score": 40.0, "metric": "accuracy", "n": 10, "low": 30.0, "high": 50.0},
    "demo_gqa": {"score": 60.0, "metric": "accuracy", "n": 10, "low": 50.0, "high": 70.0},
}


def track(folder, mode="offline", **fields):
    run = {"run_id": "mlp-s0-12345678", "group": "g", "settings": {"seed": 0}, "folder": folder, "tags": ["mlp"]}
    return tracking(LoggerConfig(wandb=mode), **(run | fields))


def ours(environment) -> dict[str, str]:
    """Without the address that wandb leaves for its own later calls."""
    return {name: value for name, value in environment.items() if name != "WANDB_SERVICE"}


def wandb_files(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))


@pytest.fixture
def inspected():
    """Asserts that an offline run's file holds these texts."""

    def _inspected(path: Path, *texts: bytes) -> None:
        # The file is a log of protobuf messages; keys and strings stand in it as they are. W&B's own process writes
        # it: on a busy machine it is not always complete when `finish` returns.
        deadline = time.monotonic() + 60
        while missing := [text for text in texts if text not in path.read_bytes()]:
            assert time.monotonic() < deadline, missing
            time.sleep(0.05)

    return _inspected


def test_offline_writes_a_run_below_the_folder(tmp_path, inspected):
    before = ours(os.environ)
    with track(tmp_path) as tracker:
        assert os.environ["WANDB_MODE"] == "offline"
        tracker.log_metrics({"train/loss": 2.5}, step=1)
        tracker.log_scores(SCORES, step=2)
    assert ours(os.environ) == before
    (path,) = wandb_files(tmp_path)
    inspected(path, b"ablate_run", b"mlp-s0-12345678", b"train/loss", b"demo_vqa/score", b"mean/score", b"scores")
    assert not (tmp_path.parent / "wandb").exists()


def test_each_attempt_is_a_run_of_its_own(tmp_path):
    for _ in range(2):
        with track(tmp_path) as tracker:
            tracker.log_metrics({"train/loss": 1.0}, step=1)
    assert len(wandb_files(tmp_path)) == 2


def test_disabled_and_other_ranks_write_nothing(tmp_path):
    with track(tmp_path / "a", mode="disabled") as tracker:
        assert type(tracker) is RunLogger
        tracker.log_metrics({"x": 1.0}, step=1)
        tracker.log_scores(SCORES, step=1)
    with track(tmp_path / "b", enabled=False) as tracker:
        assert type(tracker) is RunLogger
    assert not (tmp_path / "a" / "wandb").exists()
    assert not (tmp_path / "b").exists()


def test_folders_of_the_users_choice_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    with track(tmp_path / "runs") as tracker:
        tracker.log_metrics({"x": 1.0}, step=1)
    assert wandb_files(tmp_path / "mine")


@pytest.mark.parametrize(
    ("config", "environment", "mode"),
    [
        ("offline", None, "offline"),
        ("disabled", "online", "disabled"),
        ("auto", "offline", "offline"),
        ("auto", "dryrun", "offline"),
        ("auto", "disabled", "disabled"),
        ("auto", "online", "online"),
    ],
)
def test_mode(monkeypatch, config, environment, mode):
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    monkeypatch.setattr("ablate.training.loggers.server_answers", None)  # must not be asked
    assert wandb_mode(LoggerConfig(wandb=config)) == mode


@pytest.mark.parametrize(("answers", "mode"), [(True, "online"), (False, "offline")])
def test_auto_asks_the_server(monkeypatch, answers, mode):
    monkeypatch.setattr("ablate.training.loggers.server_answers", lambda: answers)
    assert wandb_mode(LoggerConfig()) == mode


def test_a_wrong_mode_in_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "of")
    with pytest.raises(UserError, match="WANDB_MODE"):
        wandb_mode(LoggerConfig())


def test_a_probe_that_hangs_is_given_up(monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: time.sleep(30))
    start = time.monotonic()
    assert not server_answers(seconds=0.2)
    assert time.monotonic() - start < 5


def test_a_probe_that_fails_is_no_server(monkeypatch):
    import wandb

    def fails(**_):
        raise wandb.errors.AuthenticationError("no")

    monkeypatch.setattr(wandb, "login", fails)
    assert not server_answers(seconds=5)


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_server_that_refuses_the_run(tmp_path, monkeypatch, mode):
    import wandb

    init = wandb.init

    def refusing(mode, **fields):
        if mode == "online":
            raise wandb.errors.CommError("no such entity")
        return init(mode=mode, **fields)

    monkeypatch.setattr("ablate.training.loggers.server_answers", lambda: True)
    monkeypatch.setattr(wandb, "init", refusing)
    if mode == "online":  # what was asked for by name is not silently left out
        with pytest.raises(UserError, match="no such entity"), track(tmp_path, mode=mode):
            raise AssertionError("not reached")
    else:
        with track(tmp_path, mode=mode) as tracker:
            tracker.log_metrics({"x": 1.0}, step=1)
        assert len(wandb_files(tmp_path)) == 1


def test_a_run_tracks_steps_and_scores(configure, inspected):
    config = configure("logger.wandb=offline", "logger.tags=[mine]", "train.max_steps=3")
    train(config, evaluate=lambda *_: SCORES)
    (path,) = wandb_files(Path(config.root))
    inspected(path, b"train/tokens_per_second", b"train.learning_rate", b"demo_gqa/score", b"mine", b"default")


@pytest.mark.slow
def test_a_key_and_a_dead_server_end_offline(tmp_path, world):
    """The real client, against a port where nobody listens: the run is written offline, and its output stays calm."""
    script = f"""
from pathlib import Path
from ablate.runs.config import LoggerConfig
from ablate.training.loggers import tracking
with tracking(LoggerConfig(), run_id="r", group="g", settings={{}}, folder=Path({str(tmp_path)!r}), tags=[]) as tracker:
    tracker.log_metrics({{"x": 1.0}}, step=1)
"""
    environment = {**os.environ, "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=90, check=True
    )
    assert len(wandb_files(tmp_path)) == 1
    assert "Traceback" not in done.stderr
