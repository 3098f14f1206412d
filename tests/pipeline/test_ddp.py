"""Two CPU processes (gloo) train as one does with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ablate.core.config import to_yaml
from ablate.core.errors import UserError
from ablate.core.files import read_json, read_lines
from ablate.pipeline.train import train
from ablate.runs.folder import RunFiles
from ablate.runs.identity import run_folder

# Lightning starts the second process by running the same file again.
SCRIPT = """
import json, os, sys
import torch
torch.set_num_threads(1)
from ablate.core.config import load
from ablate.core.errors import UserError
from ablate.runs.config import RunConfig
from ablate.pipeline.train import train

def evaluate(config, vlm, folder, reporter, ranks):
    with open(folder / "evaluations", "a") as file:
        file.write(os.environ.get("LOCAL_RANK", "0") + "\\n")
    return {}

try:
    train(load(RunConfig, [sys.argv[1]], sys.argv[2:]), evaluate=evaluate)
except UserError as error:
    print("error:", error, file=sys.stderr)
    sys.exit(error.exit_code)
"""

TWO = ["train.devices=2", "train.strategy=ddp", "train.accelerator=cpu"]
# 22 samples in batches of 5: odd shares, and a last batch of 2 in which a share is 1. Every fifth sample has no image.
LENGTH = ["train.epochs=2", "data.batch_size=5", "train.learning_rate=3e-3"]

slow = pytest.mark.slow


@pytest.fixture
def run_script(tmp_path):
    def _run_script(config, *overrides, head=""):
        (tmp_path / "train.py").write_text(head + SCRIPT)
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        command = [sys.executable, tmp_path / "train.py", tmp_path / "config.yaml", *overrides]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    return _run_script


@slow
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_same_loss_curve_as_one_process(configure, run_script, micro_batch):
    config = configure(*LENGTH, *TWO, f"data.micro_batch={micro_batch}", "group=two")
    done = run_script(config)
    assert done.returncode == 0, done.stderr
    one = RunFiles(train(configure(*LENGTH)))
    two = RunFiles(run_folder(config))
    lines_one, lines_two = read_lines(one.steps), read_lines(two.steps)
    assert len(lines_one) == len(lines_two) == 10
    for a, b in zip(lines_one, lines_two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
        assert (a["lr"], a["answer_tokens"]) == (b["lr"], b["answer_tokens"])
    weights = load_file(two.weights)
    for name, tensor in load_file(one.weights).items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5)
    assert read_json(two.result)["status"] == "finished"
    assert sorted((two.folder / "evaluations").read_text().split()) == ["0", "1"]
    assert done.stderr.count("Recipe finetune") == 1  # the first rank alone speaks


@slow
def test_same_validation_loss_as_one_process(configure, run_script):
    held = [*LENGTH, "data.validation=0.3"]
    config = configure(*held, *TWO, "group=two")
    done = run_script(config)
    assert done.returncode == 0, done.stderr
    losses = [
        read_json(RunFiles(folder).training)["train"]["validation_loss"]
        for folder in (run_folder(config), train(configure(*held)))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@slow
def test_stopped_on_all_ranks_and_continued(configure, run_script):
    """The signal reaches one rank only; both stop after the same step."""
    config = configure(*LENGTH, *TWO)
    straight = run_script(config)
    assert straight.returncode == 0, straight.stderr
    stopped = configure(*LENGTH, *TWO, "group=stopped")
    head = """
import os, signal
from ablate.training.callbacks import Recorder
record = Recorder._record
def interrupted(self, values, seconds):
    record(self, values, seconds)
    if values["step"] == 4 and not os.environ.get("CALM"):
        os.kill(os.getpid(), signal.SIGINT)
Recorder._record = interrupted
"""
    done = run_script(stopped, head=head)
    assert done.returncode == 130, done.stderr
    assert done.stderr.count("To continue") == 1
    assert len(read_lines(RunFiles(run_folder(stopped)).steps)) == 5
    done = run_script(stopped)
    assert done.returncode == 0, done.stderr
    one, two = RunFiles(run_folder(config)), RunFiles(run_folder(stopped))
    assert one.weights.read_bytes() == two.weights.read_bytes()
    assert [line["loss"] for line in read_lines(one.steps)] == [line["loss"] for line in read_lines(two.steps)]


@slow
def test_divergence_is_told_once_with_the_keys_of_the_other_rank(configure, run_script):
    """The sample is on the second rank in the first step; the first rank is the one that speaks."""
    config = configure(*LENGTH, *TWO)
    head = """
from ablate.model import VLM
loss = VLM.loss
def poisoned(self, batch):
    found = loss(self, batch)
    import os
    return found._replace(total=found.total * float("nan")) if os.environ.get("LOCAL_RANK") == "1" else found
VLM.loss = poisoned
"""
    done = run_script(config, head=head)
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("Training diverged at step 1: the loss is nan") == 1
    (keys,) = [line for line in done.stderr.splitlines() if line.strip().startswith("batch:")]
    assert keys.count("train-00000.tar:") == 2  # of the five, the two that the second rank had
    assert "Traceback" not in done.stderr


@slow
def test_torchrun(configure, tmp_path):
    """Both ranks start at once and build the feature cache together."""
    config = configure(*LENGTH, *TWO, f"features.root={tmp_path / 'features'}")
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, tmp_path / "train.py", tmp_path / "config.yaml"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    folder: Path = run_folder(config)
    assert json.loads(RunFiles(folder).result.read_text())["train"]["steps"] == 10
    assert done.stderr.count("encoded 18 images") == 1


LAUNCHERS = {
    "one task of SLURM for two devices": (
        {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "a", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
        2,
        "SLURM started 1",
    ),
    "two tasks of SLURM for one device": ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, 1, "srun started 2"),
    "torchrun with one process for two devices": (
        {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
        2,
        "TorchElastic started 1",
    ),
    "torchrun with three processes for one": (
        {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"},
        1,
        "torchrun started 3",
    ),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "4"}, 1, "mpirun started 4"),
}


@pytest.mark.parametrize("case", LAUNCHERS)
def test_another_number_of_processes_than_asked_for_is_refused_before_anything_is_written(configure, monkeypatch, case):
    environment, devices, words = LAUNCHERS[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = configure(f"train.devices={devices}", "train.accelerator=cpu")
    with pytest.raises(UserError, match=words):
        train(config)
    assert not run_folder(config).exists()


@slow
def test_ranks_share_the_evaluation_and_the_files_are_those_of_one(configure, benchmark_root, tmp_path):
    asked = [
        f"evaluation.root={benchmark_root}",
        "evaluation.benchmarks=[vqav2, gqa, vizwiz]",
        "evaluation.batch_size=2",
    ]
    config = configure(*asked, *TWO)
    (tmp_path / "two.yaml").write_text(to_yaml(config))
    folder, alone = run_folder(config), tmp_path / "alone"

    def ablate(*arguments) -> None:
        command = [sys.executable, "-m", "ablate", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert done.returncode == 0, done.stderr

    ablate("train", "--config", tmp_path / "two.yaml")
    ablate("eval", "--run", folder, "--out", alone)
    predictions = RunFiles(folder).predictions
    assert not list(predictions.glob("*.part*"))
    names = {f"{task}.jsonl" for task in ("gqa", "vizwiz", "vqav2")}
    assert {file.name for file in predictions.glob("*.jsonl")} == names
    for name in names:
        assert (predictions / name).read_bytes() == (alone / "predictions" / name).read_bytes()
