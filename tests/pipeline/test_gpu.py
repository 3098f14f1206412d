"""The training room on a GPU."""

import pytest
import torch
from safetensors.torch import load_file

from ablate.core.files import read_json, read_lines
from ablate.pipeline.train import train
from ablate.runs.folder import RunFiles
from ablate.training.callbacks import Recorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_gpu_learns_as_the_cpu_does(configure, precision):
    gpu = RunFiles(train(configure("train.accelerator=gpu", f"train.precision={precision}")))
    cpu = RunFiles(train(configure("train.accelerator=cpu", f"train.precision={precision}")))
    losses = [[line["loss"] for line in read_lines(files.steps)] for files in (gpu, cpu)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3 if precision == "float32" else 0.05)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(gpu.weights).values())
    # Of tensors, not of the process, which holds gigabytes of CUDA's libraries.
    assert 0 < read_json(gpu.result)["cost"]["peak_memory_bytes"] < 500e6


def test_continued_on_the_gpu(configure, tmp_path, monkeypatch):
    backend = "language.ssm_cfg.backend=torch"  # Triton's backward adds in no fixed order
    straight = RunFiles(train(configure("train.accelerator=gpu", backend, f"root={tmp_path}/straight")))
    config = configure("train.accelerator=gpu", backend, "train.checkpoint_every=2")
    record = Recorder._record

    def dying(self, values, seconds):
        record(self, values, seconds)
        if values["step"] == 3:
            raise RuntimeError("died")

    monkeypatch.setattr(Recorder, "_record", dying)
    with pytest.raises(RuntimeError, match="died"):
        train(config)
    monkeypatch.undo()
    assert RunFiles(train(config)).weights.read_bytes() == straight.weights.read_bytes()
