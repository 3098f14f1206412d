"""Hypothesis for machines of any speed; a run that counts as trained (its weights are its initial ones); benchmarks."""

import os
import runpy
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import tokenizers
import torch

from ablate import config as config_io
from ablate.model import build_vlm
from ablate.training import RunConfig, RunFiles
from ablate.training.files import write_json, write_text
from ablate.training.runs import save_weights
from ablate.training.stages import kept_names, kept_parts

# No test may depend on how fast or busy a machine is; and what CI finds, it finds again.
_ANY_SPEED = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("default", **_ANY_SPEED)
hypothesis.settings.register_profile("ci", derandomize=True, **_ANY_SPEED)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

WRITERS = runpy.run_path(str(Path(__file__).parent / "evaluation" / "conftest.py"))["WRITERS"]
WORDS = ["Yes", "No", "True", "False", "is", "the", "it", "car", "dog", "red", "what", "what ?", "?", ".", "a"]


if torch.cuda.is_available():  # one configuration of each kernel: to time them all takes minutes
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "0")


@pytest.fixture(scope="session")
def benchmark_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one folder for each of the six benchmarks."""
    root = tmp_path_factory.mktemp("benchmarks")
    for name, write in WRITERS.items():
        write(root / name)
    return root


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vocabulary = {word: number for number, word in enumerate(["<|endoftext|>", "[UNK]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def make_run(tokenizer_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """make_run("name", "seed=1"): the folder of a finished run."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

    def make(name: str = "small", *overrides: str) -> Path:
        config = config_io.load(
            RunConfig,
            overrides=[
                "encoder.names=[test_resnet]",
                "encoder.weights=[random]",
                "encoder.layer=[final]",
                "encoder.image_size=[32]",
                "encoder.precision=float32",
                "connector.name=linear",
                "language={d_model: 16, n_layer: 1, vocab_size: 64, ssm_cfg: {d_state: 8, headdim: 8}}",
                f"tokenizer={tokenizer_file}",
                f"features.root={tmp_path / 'features'}",
                "evaluation.batch_size=2",
                "evaluation.max_new_tokens=4",
                "logger.wandb=disabled",
                *overrides,
            ],
        )
        files = RunFiles(tmp_path / "runs" / "group" / name)
        write_text(files.config, config_io.to_yaml(config))
        vlm = build_vlm(config.model, seed=config.seed)
        save_weights(vlm, files.weights, {"connector", "language"})
        files.checkpoint.parent.mkdir()
        state, kept = vlm.state_dict(), kept_names(vlm, kept_parts(config.train.stage))  # as VLMModule saves it
        torch.save({"state_dict": {f"vlm.{name}": state[name] for name in kept}, "global_step": 3}, files.checkpoint)
        write_json(files.training, {})
        return files.folder

    return make
