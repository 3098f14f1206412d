import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ablate.core.errors import UserError
from ablate.core.files import read_json
from ablate.pipeline.train import train
from ablate.runs.config import LoggerConfig
from ablate.runs.folder import RunFiles
from ablate.runs.identity import run_folder
from ablate.training import loggers
from ablate.training.loggers import RunLogger, WandbLogger, server_answers, tracking, wandb_mode

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


class Client:
    """W&B's run, of which one method fails or never returns."""

    project, id = "p", "i"

    def __init__(self, method: str, how: str) -> None:
        self.method, self.how, self.called = method, how, []
        self.summary = self
        self.release = threading.Event()

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            self.called.append(name)
            if name == self.method:
                if self.how == "hangs":
                    self.release.wait(30)
                raise BrokenPipeError("the service is gone")

        return call


@pytest.mark.parametrize("how", ["raises", "hangs"])
@pytest.mark.parametrize("method", ["define_metric", "log", "update", "finish", "mark_preempting"])
def test_a_client_that_fails_or_hangs_costs_nothing(monkeypatch, method, how):
    """In every phase: no call raises, none is waited for long, and what follows is left out and said once."""
    monkeypatch.setattr(loggers, "CALL_SECONDS", 0.2)
    monkeypatch.setattr(loggers, "FINISH_SECONDS", 0.2)
    import wandb

    ended = []
    monkeypatch.setattr(wandb, "teardown", lambda: ended.append(True))
    client, said = Client(method, how), []
    logger = WandbLogger(client, said.append)
    logger.log_metrics({"x": 1.0}, step=1)
    logger.log_scores(SCORES, step=1)
    logger.summarize({"cost": 1})
    logger.finish(1, preempted=True)
    client.release.set()
    assert client.called.count(method) == 1
    assert client.called[-1] == method
    assert len(said) == 1
    assert ("no answer within 0.2 s" if how == "hangs" else "BrokenPipeError: the service is gone") in said[0]
    assert ended == [True]


@pytest.mark.parametrize("method", ["log", "finish"])
def test_a_run_whose_client_fails_is_finished(configure, monkeypatch, method):
    monkeypatch.setattr(loggers, "CALL_SECONDS", 0.5)
    monkeypatch.setattr(loggers, "_start", lambda mode, fields: Client(method, "raises"))
    folder = train(configure("logger.wandb=offline", "train.max_steps=2"), evaluate=lambda *_: SCORES)
    assert set(read_json(RunFiles(folder).result)["scores"]) == set(SCORES)


def test_the_result_is_written_before_wandb_hears_of_it(configure, monkeypatch):
    written = []

    class Looks(Client):
        def log(self, values, step):
            if "mean/score" in values:
                written.append(RunFiles(folder).result.exists())

    config = configure("logger.wandb=offline", "train.max_steps=2")
    folder = run_folder(config)
    monkeypatch.setattr(loggers, "_start", lambda mode, fields: Looks("", ""))
    train(config, evaluate=lambda *_: SCORES)
    assert written == [True]


def test_an_agent_that_finds_a_run_finished_still_gets_its_metric(configure, monkeypatch):
    logged = []

    class Keeps(Client):
        def log(self, values, step):
            logged.append(values)

    config = configure("logger.wandb=offline", "train.max_steps=2")
    train(config, evaluate=lambda *_: SCORES)
    monkeypatch.setattr(loggers, "_start", lambda mode, fields: Keeps("", ""))
    train(config, evaluate=lambda *_: SCORES)
    assert logged == []
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    train(config, evaluate=lambda *_: SCORES)
    assert [values["mean/score"] for values in logged if "mean/score" in values]


def test_the_users_environment_counts(tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(loggers, "_start", lambda mode, fields: found.update(fields) or Client("", ""))
    named = {"PROJECT": "p", "ENTITY": "e", "NAME": "n", "RUN_GROUP": "g", "TAGS": "a,b", "JOB_TYPE": "j"}
    for name, value in named.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with track(tmp_path, tags=["b", "c"]):
        pass
    assert [found[key] for key in ("project", "entity", "name", "group", "job_type")] == ["p", "e", "n", "g", "j"]
    assert found["tags"] == ["b", "c", "a"]


@pytest.mark.slow
def test_a_client_whose_service_is_killed_holds_nothing_up(tmp_path):
    """The real client: its service process dies between two calls, as a signal to the whole job would have it."""
    script = f"""
import os, signal, subprocess, time
from pathlib import Path
from ablate.runs.config import LoggerConfig
from ablate.training.loggers import tracking
run = dict(run_id="r", group="g", settings={{}}, folder=Path({str(tmp_path)!r}), tags=[])
with tracking(LoggerConfig(wandb="offline"), **run) as tracker:
    tracker.log_metrics({{"x": 1.0}}, step=1)
    subprocess.run(["pkill", "-9", "-P", str(os.getpid())])
    time.sleep(0.5)
    for step in range(2, 5):
        tracker.log_metrics({{"x": 1.0}}, step=step)
    tracker.log_scores({{"t": {{"score": 1.0}}}}, step=5)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=90)
    assert "done" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr
