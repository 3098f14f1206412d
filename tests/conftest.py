"""Hypothesis for machines of any speed; a run that counts as trained (its weights are its initial ones); benchmarks."""

import io
import os
import runpy
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image

from ablate.core import config as config_io
from ablate.core.config import load
from ablate.core.files import write_json, write_text
from ablate.model import build_vlm
from ablate.model.recipe import create as create_recipe
from ablate.model.weights import kept_names
from ablate.runs.config import RunConfig
from ablate.runs.folder import RunFiles
from ablate.runs.weights import save_weights
from datamodules.shards.reader import write_shards

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
        kept = kept_names(vlm, create_recipe(config.train.stage).kept_parts())  # as VLMModule saves it
        state = vlm.state_dict()
        torch.save({"state_dict": {f"vlm.{name}": state[name] for name in kept}, "global_step": 3}, files.checkpoint)
        write_json(files.training, {})
        return files.folder

    return make


# -- A tiny model and its data, trained in a second --------------------------------------------------

SAMPLES = 22
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `shards/` and `tokenizer.json`. One sample in five has no image."""
    folder = tmp_path_factory.mktemp("world")
    write_tokenizer(folder / "tokenizer.json")
    write_shards(samples(), folder / "shards")
    return folder


@pytest.fixture
def configure(world: Path, tmp_path: Path):
    """Make a RunConfig from overrides; runs go to this test's folder, the feature cache is the session's."""

    def _configure(*overrides: str) -> RunConfig:
        return load(RunConfig, overrides=[*SMALL, *world_overrides(world), f"root={tmp_path / 'runs'}", *overrides])

    return _configure


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The tensors are tiny: a second thread only waits for the first, for long on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)


SMALL = [
    "encoder.names=[test_resnet]",
    "encoder.weights=[random]",
    "encoder.layer=[final]",
    "encoder.image_size=[64]",
    "encoder.precision=float32",
    "connector.name=linear",
    "language={d_model: 16, n_layer: 1, vocab_size: 64, ssm_cfg: {d_state: 8, headdim: 8}}",
    "data.batch_size=4",
    "train.learning_rate=1e-2",
    "train.checkpoint_every=0",
    "logger.wandb=disabled",
    "features.runs=1000",
]


def world_overrides(world: Path) -> list[str]:
    return [
        f"tokenizer={world}/tokenizer.json",
        f"data.shards=[{world}/shards]",
        f"features.root={world}/features",
        f"data.cache_dir={world}/cache",
    ]


def samples():
    generator = np.random.default_rng(0)
    for number in range(SAMPLES):
        name, colour = list(COLOURS.items())[number % 3]
        if number % 5 == 4:
            question, image = "what is one and one", None
            answer = "two"
        else:
            question, answer = "<image>\nwhat colour is it", f"it is {name}" if number % 2 else name
            image = png(np.clip(generator.normal(colour, 20, (48, 64, 3)), 0, 255).astype(np.uint8))
        record = {
            "id": f"sample-{number}",
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        }
        yield (record | {"image": f"{number}.png"} if image else record), image


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tokenizer(path: Path) -> None:
    words = ["what", "colour", "is", "it", "red", "green", "blue", "one", "and", "two", "<|", "|>", "user", "assistant"]
    vocabulary = {"<|endoftext|>": 0, "[UNK]": 1, **{word: number for number, word in enumerate(words, start=2)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(path))
