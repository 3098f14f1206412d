"""A small world for the training room: real shards, a real tokenizer, a real model of a few thousand parameters."""

import io
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image

from ablate.config import load
from ablate.training import RunConfig
from datamodules.shards import write_shards

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
