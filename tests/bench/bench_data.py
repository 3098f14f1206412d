"""The data path: padding of batches by length and of packed rows; an epoch from cached features beside one through the
encoder.

On the demo where `ablate data demo` has made it, else on records and noise images of the same sizes.
"""

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Before the libraries load, or each makes a pool of threads for every core.
os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import timm
import tokenizers
import torch
from PIL import Image
from tokenizers import decoders, models, pre_tokenizers, trainers

from ablate.core.config import load
from ablate.demo.config import DemoPaths
from ablate.runs.config import RunConfig
from datamodules.config import DataConfig
from datamodules.images.feature_cache import FeatureCache, break_even_passes, estimate_bytes
from datamodules.llava import LlavaDataModule
from datamodules.order.packing import packed_padding, plan_packed_epoch
from datamodules.order.plan import plan_epoch
from datamodules.shards.reader import ShardSet, write_shards
from datamodules.text.tokenizer import Tokenizer

ENCODER, GRID, DIM = "tf_efficientnet_lite0", (7, 7), 1280
BATCH, RUNS, SAMPLES = 32, 3, 256
PADDING_GOAL, PACKED_GOAL, SPEED_GOAL = 0.10, 0.03, 5.0


def synthetic_samples(count: int = 2 * SAMPLES) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Records with the demo's lengths, and JPEGs of its size."""
    generator = np.random.default_rng(0)
    words = ["the", "red", "ball", "is", "to", "the", "left", "of", "a", "small", "dog", "near", "some", "green"]
    for number in range(count):
        turns: list[dict[str, str]] = []
        for _ in range(int(generator.integers(1, 7))):
            question = " ".join(generator.choice(words, int(generator.integers(4, 25))))
            answer = " ".join(generator.choice(words, int(generator.integers(1, 3))))
            turns += [{"from": "human", "value": f"{question}?"}, {"from": "gpt", "value": answer}]
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        file = io.BytesIO()
        coarse = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((224, 224), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        yield {"id": str(number), "image": f"{number}.jpg", "conversations": turns}, file.getvalue()


def padding_fraction(groups: Iterable[Sequence[int]], lengths: np.ndarray) -> float:
    """Share of tokens that are padding when each group of samples is padded to its longest: 0 to 1."""
    real = padded = 0.0
    for group in groups:
        tokens = lengths[np.asarray(group)]
        real += tokens.sum()
        padded += tokens.max() * len(tokens)
    return 1 - real / padded if padded else 0.0


def small_tokenizer() -> Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    records = (record for record, _ in synthetic_samples(64))
    texts = [turn["value"] for record in records for turn in record["conversations"]]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner)


def shards_and_tokenizer(scratch: Path) -> tuple[Path, Tokenizer, str]:
    demo = DemoPaths(Path("data/demo"))
    if (demo.train / "index.json").is_file() and demo.tokenizer.is_file():
        return demo.train, Tokenizer.from_file(demo.tokenizer), "the demo's training set"
    write_shards(synthetic_samples(), scratch / "synthetic")
    return scratch / "synthetic", small_tokenizer(), "synthetic records of the demo's sizes"


def first_samples(folder: Path, out: Path) -> Path:
    """A copy of the first samples: enough to time, in a minute."""
    samples = (ShardSet.open([folder]).read(index) for index in range(SAMPLES))
    write_shards(((sample.record, sample.image) for sample in samples), out)
    return out


class Encoder:
    """timm's network with random weights: the time that it takes does not depend on them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = timm.create_model(ENCODER, pretrained=False).eval()
        self.transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=self.model))

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, 224, 224) -> (n, 7, 7, 1280)."""
        return self.model.forward_features(images).permute(0, 2, 3, 1)

    def pictures(self, images: list[Image.Image]) -> torch.Tensor:
        return self(torch.stack([self.transform(image) for image in images]))


def epoch_seconds(data: LlavaDataModule, encode: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Time until every batch of an epoch has its features."""
    start = time.perf_counter()
    for batch in data.train_dataloader():
        if "images" in batch:
            batch["features"] = encode(batch["images"][0])
    return time.perf_counter() - start


def exact_lengths(data: LlavaDataModule) -> np.ndarray:
    return np.array([data.dataset.tokens(index) for index in range(len(data.shards))])


def report_padding(data: LlavaDataModule) -> None:
    """In batches as the demo's runs have them."""
    settings = load(RunConfig, ["experiments/demo.yaml"]).data
    data.config.batch_size, data.config.bucket_batches = settings.batch_size, settings.bucket_batches
    lengths = exact_lengths(data)
    bucketed = padding_fraction([list(step.samples) for step in data.train_dataloader().steps], lengths)
    data.config.bucket_batches = 1
    data.setup("fit")
    shuffled = padding_fraction([list(step.samples) for step in data.train_dataloader().steps], lengths)
    print(
        f"padding: {bucketed:.1%} of the tokens in batches of {settings.batch_size} by length among "
        f"{settings.bucket_batches}, {shuffled:.1%} in shuffled ones ({len(lengths)} samples of {lengths.min()} to "
        f"{lengths.max()} tokens, median {np.median(lengths):.0f}); "
        f"goal under {PADDING_GOAL:.0%}: {'met' if bucketed < PADDING_GOAL else 'MISSED'}"
    )


# The sources of LLaVA-1.5's 665K mix with their sizes (arXiv 2310.03744, table 7). The paper gives no lengths: the
# medians of the text's tokens are estimates from the sources' formats (one question and a word, several of them in one
# conversation, paragraphs), spread log-normally. Only ShareGPT has no image.
LLAVA_665K = {
    "LLaVA instructions": (158_000, 260, 0.5),
    "ShareGPT": (40_000, 900, 0.8),
    "VQAv2": (83_000, 170, 0.5),
    "GQA": (72_000, 260, 0.4),
    "OKVQA": (9_000, 45, 0.3),
    "OCRVQA": (80_000, 110, 0.3),
    "A-OKVQA": (66_000, 75, 0.3),
    "TextCaps": (22_000, 70, 0.3),
    "RefCOCO": (48_000, 300, 0.5),
    "VG": (86_000, 350, 0.5),
}
MAX_LENGTH = 2048


def llava_lengths(visual: int) -> np.ndarray:
    """Tokens of 664,000 conversations as long as LLaVA-1.5's."""
    generator = np.random.default_rng(0)
    parts = []
    for source, (count, median, sigma) in LLAVA_665K.items():
        text = generator.lognormal(np.log(median), sigma, count)
        parts.append(text + visual * (source != "ShareGPT"))
    return np.clip(np.concatenate(parts), 1, MAX_LENGTH).astype(np.int64)


def report_packing(name: str, lengths: np.ndarray, budget: int) -> None:
    plan = {"batch_size": BATCH, "seed": 0, "epoch": 0}
    start = time.perf_counter()
    rows = [row for batch in plan_packed_epoch(lengths, budget=budget, **plan) for row in batch]
    seconds = time.perf_counter() - start
    packed = packed_padding(rows, lengths, budget)
    bucketed = padding_fraction(plan_epoch(lengths, **plan), lengths)
    shuffled = padding_fraction(plan_epoch(lengths, bucket_batches=1, **plan), lengths)
    print(
        f"packing, {name} ({len(lengths)} conversations, mean {lengths.mean():.0f} tokens): {packed:.2%} padding in "
        f"rows of {budget}, planned in {seconds:.1f} s; {bucketed:.1%} in batches of {BATCH} by length, "
        f"{shuffled:.1%} in shuffled ones; goal under {PACKED_GOAL:.0%}: {'met' if packed < PACKED_GOAL else 'MISSED'}"
    )


def report_cache(folder: Path, make: Callable[..., LlavaDataModule], encoder: Encoder) -> None:
    data = make()
    images = len(list(data.images()))
    predicted = estimate_bytes(images, GRID, DIM)
    cache = FeatureCache(folder, {"encoder": ENCODER, "weights": "random"})
    start = time.perf_counter()
    built = cache.build(data.images(), encoder.pictures)
    build = time.perf_counter() - start
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"cache: {built.encoded} images in {build:.1f} s ({built.write_seconds / build:.1%} of it writing), "
        f"{size / 2**20:.1f} MiB (predicted {predicted / 2**20:.1f})"
    )
    looped, cached = [], []
    for _ in range(RUNS):
        looped.append(epoch_seconds(make(), encoder))
        cached.append(epoch_seconds(make(features=cache), encoder))
    loop_seconds, cache_seconds = statistics.median(looped), statistics.median(cached)
    ratio = loop_seconds / cache_seconds
    print(
        f"epoch of {len(data.shards)} samples, data and encoding: {loop_seconds:.2f} s with the encoder in the loop, "
        f"{cache_seconds:.3f} s from the cache: {ratio:.0f}x; goal {SPEED_GOAL:.0f}x: "
        f"{'met' if ratio >= SPEED_GOAL else 'MISSED'}; the cache pays from "
        f"{break_even_passes(loop_seconds, cache_seconds, build):.2f} passes on"
    )


def main() -> None:
    encoder = Encoder()
    with tempfile.TemporaryDirectory() as scratch:
        shards, tokenizer, source = shards_and_tokenizer(Path(scratch))

        def make(folder: Path, features: FeatureCache | None = None) -> LlavaDataModule:
            data = LlavaDataModule(DataConfig(shards=[str(folder)], batch_size=BATCH))
            data.connect(tokenizer, [encoder.transform], GRID[0] * GRID[1], features)
            return data

        print(f"on {source}; {ENCODER} at 224 px, float16 cache; medians of {RUNS} interleaved runs")
        report_padding(make(shards))
        lengths = exact_lengths(make(shards))
        for budget in (1024, 2048):
            report_packing("demo" if "demo" in source else "synthetic", lengths, budget)
        for visual in (576, 729):  # LLaVA-1.5's, ML-Mamba's
            for budget in (4096, 8192):
                report_packing(f"LLaVA's 665K with {visual} visual tokens", llava_lengths(visual), budget)
        few = first_samples(shards, Path(scratch) / "few")
        report_cache(Path(scratch) / "features", partial(make, few), encoder)


if __name__ == "__main__":
    main()
