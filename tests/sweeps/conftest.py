"""A sweep of two connectors and two seeds, and a program that stands for `ablate train`: it takes the same arguments
and leaves the same files, within milliseconds."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console

from ablate.core.config import read_yaml
from ablate.sweeps.operations import run_sweep
from ablate.sweeps.plan import ResolvedRun

# Environment: FAKE_SECONDS how long a run takes; FAKE_FAIL=TEXT runs whose arguments hold TEXT fail.
FAKE_TRAIN = """
import json, os, signal, sys, time
from pathlib import Path

values = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a and not a.startswith("-"))
assert sys.argv[1] == "train", sys.argv
blind = values.get("blind") == "True"
name = f"{values['connector.name']}-s{values['seed']}{'-blind' if blind else ''}"
folder = Path(values.get("root", "runs")) / values["group"] / name
checkpoint = folder / "checkpoints" / "last.ckpt"
checkpoint.parent.mkdir(parents=True, exist_ok=True)
begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
print(f"begins at {begin}", flush=True)
with open(folder / "attempts.txt", "a") as file:
    file.write(f"{os.getpid()} {begin}\\n")
if os.environ.get("FAKE_FAIL") and os.environ["FAKE_FAIL"] in " ".join(sys.argv):
    print("error: the sky fell on this run", file=sys.stderr)
    sys.exit(3)
stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
if os.environ.get("FAKE_SAVES_ON_SIGTERM"):  # as the real one does
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
if os.environ.get("FAKE_STUBBORN"):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / "started").touch()
seconds = float(os.environ.get("FAKE_SECONDS", "0"))
for step in range(begin, 10):
    (folder / "progress.json").write_text(json.dumps({"phase": "train", "step": step, "steps": 10, "eta_seconds": 1.0}))
    with open(folder / "train.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "loss": 2.5}) + "\\n")
    time.sleep(seconds / 10)
    checkpoint.write_text(str(step + 1))
    if stopped:
        print("stopped after a step, saved", flush=True)
        sys.exit(130)
(folder / "predictions").mkdir(exist_ok=True)
lines = [{"id": str(q), "image": str(q // 2), "score": float((q + int(values["seed"])) % 3 > 0)} for q in range(40)]
(folder / "predictions" / "demo_vqa.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
score = 100 * sum(line["score"] for line in lines) / len(lines)
result = {
    "schema": 1, "status": "finished", "run_id": name, "group": values["group"], "connector": values["connector.name"],
    "seed": int(values["seed"]), "blind": blind, "digest": "0",
    "settings": {"connector.name": values["connector.name"], "seed": int(values["seed"]), "blind": blind},
    "scores": {"demo_vqa": {"score": score, "metric": "accuracy", "n": 40, "n_expected": 40, "partial": False,
                            "baselines": {"constant": 10.0, "majority": 12.0}}},
    "cost": {"connector_parameters": 100, "train_seconds": seconds, "eval_seconds": 0.0}, "train": {"steps": 10},
}
temporary = folder / "result.tmp"
temporary.write_text(json.dumps(result))
os.replace(temporary, folder / "result.json")
"""

SWEEP = """
name: small
program: ablate
command: ["${program}", train, --config, base.yaml, group=small, "${args_no_hyphens}"]
method: grid
parameters:
  connector.name: {values: [linear, mlp]}
  seed: {values: [0, 1]}
"""


class SweepFolder(NamedTuple):
    """A folder with sweep.yaml, its base config and the stand-in for `ablate train`."""

    path: Path
    file: Path
    root: Path
    launcher: tuple[str, ...]

    def attempts(self, run: str) -> list[str]:
        """ "PID STEP" for every time the run was started."""
        file = self.root / "small" / run / "attempts.txt"
        return file.read_text().splitlines() if file.exists() else []

    def finished(self) -> list[str]:
        return sorted(path.parent.name for path in (self.root / "small").glob("*/result.json"))


def resolve(files, overrides) -> ResolvedRun:
    """As the training room resolves, in the small: the config file's values, then key=value."""
    settings = {key: value for file in files for key, value in read_yaml(file).items()}
    settings |= dict(override.split("=", 1) for override in overrides)
    blind = settings.get("blind") == "True"
    name = f"{settings['connector.name']}-s{settings['seed']}{'-blind' if blind else ''}"
    # Typed as the fake program writes them.
    kept = {"logger.wandb": settings["logger.wandb"]} if "logger.wandb" in settings else {}
    kept |= {"connector.name": settings["connector.name"], "seed": int(settings["seed"]), "blind": blind}
    return ResolvedRun(Path(settings.get("root", "runs")) / settings["group"] / name, kept)


@pytest.fixture(name="resolve")
def _resolve():
    return resolve


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> SweepFolder:
    for name in [name for name in os.environ if name.startswith("FAKE_")]:
        monkeypatch.delenv(name)
    (tmp_path / "train.py").write_text(FAKE_TRAIN)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "base.yaml").write_text("stage: demo\n")
    launcher = (sys.executable, str(tmp_path / "train.py"))
    return SweepFolder(tmp_path, tmp_path / "sweep.yaml", tmp_path / "runs", launcher)


@pytest.fixture
def run(folder, resolve, capsys, monkeypatch):
    """Runs the small sweep; returns the exit status and what was printed."""
    monkeypatch.chdir(folder.path)

    def _run(only=(), shard="", jobs=None, overrides=(), table=False, console=None, **options):
        console = console or Console(width=200)
        status = run_sweep(
            folder.file,
            only,
            shard,
            jobs,
            overrides,
            table=table,
            console=console,
            resolve=resolve,
            launcher=folder.launcher,
            **options,
        )
        return status, capsys.readouterr().out

    return _run
