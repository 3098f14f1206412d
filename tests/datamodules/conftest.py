"""A tiny byte-level tokenizer with the real one's special tokens, and small shards with real JPEGs and PNGs."""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from PIL import Image
from tokenizers import decoders, models, pre_tokenizers, trainers

from datamodules.shards.reader import ShardSet, write_shards
from datamodules.text.tokenizer import Tokenizer

CORPUS = [
    "What is the colour of the ball to the left of the dog? Answer the question using a single word or phrase.",
    "<|user|>\nIs there a cat in the photo?\n<|assistant|>\nYes. No. True. False. red green blue",
    "USER: A chat between a curious user and an assistant. ASSISTANT: The answer is 42 1 2 3 4 5 6 7 8 9",
]


@pytest.fixture(scope="session")
def padding_fraction() -> Callable[[Iterable[Sequence[int]], np.ndarray], float]:
    """Share of tokens that are padding when each group of samples is padded to its longest."""

    def fraction(groups: Iterable[Sequence[int]], lengths: np.ndarray) -> float:
        parts = [lengths[np.asarray(group)] for group in groups]
        return 1 - sum(part.sum() for part in parts) / sum(part.max() * len(part) for part in parts)

    return fraction


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS * 20, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    inner.save(str(path))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.from_file(tokenizer_file)


def encode_image(seed: int, suffix: str = "jpg", size: tuple[int, int] = (32, 24)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix])
    return file.getvalue()


@pytest.fixture(scope="session")
def make_image() -> Callable[..., bytes]:
    return encode_image


def make_sample(number: int) -> tuple[dict[str, Any], bytes | None]:
    """Every fifth sample is text only, every third has two questions, lengths vary."""
    turns = []
    for turn in range(2 if number % 3 == 0 else 1):
        words = " ".join(["ball"] * (1 + (number * 7 + turn) % 23))
        turns += [
            {"from": "human", "value": f"Question {number}.{turn}: what about the {words}?"},
            {"from": "gpt", "value": f"answer {number}.{turn}"},
        ]
    record: dict[str, Any] = {"id": f"sample {number}", "conversations": turns}
    if number % 5 == 0:
        return record, None
    suffix = "png" if number % 2 else "jpg"
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    record["image"] = f"photos/{number}.{suffix}"
    return record, encode_image(number % 20, suffix)


@pytest.fixture(scope="session")
def samples() -> list[tuple[dict[str, Any], bytes | None]]:
    return [make_sample(number) for number in range(61)]


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory: pytest.TempPathFactory, samples: list) -> Path:
    """61 samples in four shards: 20, 20, 20 and 1. Do not change it."""
    folder = tmp_path_factory.mktemp("shards") / "train"
    write_shards(samples, folder, samples_per_shard=20)
    return folder


@pytest.fixture(scope="session")
def shard_set(shard_folder: Path) -> ShardSet:
    return ShardSet.open([shard_folder])
