"""Streaming from shards beside the bare loop, WebDataset and Hugging Face `datasets`; memory over a million samples.

Speed: shards of 640 x 480 JPEGs with a question each -> batches of decoded, resized, normalised images. Ours also
checks each image's hash, tokenizes, and can be stopped and continued at any sample; the others do none of that. The
bare loop is `tarfile` and the same decoding and resizing, in as many processes as there are workers, each on its part
of the shards, with nothing sent anywhere. All read whole epochs in turns; ratios are medians over the rounds.
"""

import io
import json
import multiprocessing
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from datamodules.config import DataConfig
from datamodules.images.decode import decode_image
from datamodules.llava import LlavaDataModule
from datamodules.shards.reader import write_shards

sys.path.insert(0, str(Path(__file__).parent))
from bench_data import small_tokenizer

SAMPLES, PER_SHARD, BATCH, WORKERS, ROUNDS = 3072, 192, 32, 2, 3
BARE_GOAL, PEER_GOAL, GROWTH_GOAL = 0.90, 1.0, 0.05
MILLION = int(os.environ.get("BENCH_SAMPLES", 1_000_000))

transform = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
)


def photos() -> Iterator[tuple[dict[str, Any], bytes]]:
    generator = np.random.default_rng(0)
    for number in range(SAMPLES):
        coarse = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        turns = [
            {"from": "human", "value": f"<image>\nWhat is to the left of the ball number {number}?"},
            {"from": "gpt", "value": "a dog"},
        ]
        yield {"id": str(number), "image": f"{number}.jpg", "conversations": turns}, file.getvalue()


def ours(folder: Path) -> Callable[[], int]:
    config = DataConfig(shards=[str(folder)], batch_size=BATCH, num_workers=WORKERS)
    data = LlavaDataModule(config)
    data.connect(small_tokenizer(), [transform], 49)
    loader = data.train_dataloader()
    return lambda: sum(len(batch["images"][0]) for batch in loader)


def read_part(paths: list[str]) -> int:
    count = 0
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith(".jpg"):
                    transform(decode_image(data, key=member.name))
                    count += 1
                else:
                    json.loads(data)
    return count


def bare(folder: Path) -> Callable[[], int]:
    paths = sorted(map(str, folder.glob("*.tar")))
    parts = [paths[worker::WORKERS] for worker in range(WORKERS)]

    def read() -> int:
        with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
            return sum(pool.map(read_part, parts))

    return read


def stacked(samples: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([transform(sample["jpg"].convert("RGB")) for sample in samples])


def plain_webdataset(folder: Path) -> Callable[[], int]:
    paths = sorted(map(str, folder.glob("*.tar")))
    pipeline = webdataset.WebDataset(paths, shardshuffle=len(paths), seed=0).shuffle(256).decode("pil")
    pipeline = pipeline.batched(BATCH, collation_fn=stacked)
    loader = webdataset.WebLoader(pipeline, batch_size=None, num_workers=WORKERS)
    return lambda: sum(map(len, loader))


def huggingface(folder: Path) -> Callable[[], int]:
    import datasets

    datasets.disable_progress_bars()
    files = sorted(map(str, folder.glob("*.tar")))
    stream = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
    stream = stream.shuffle(seed=0, buffer_size=256)
    loader = DataLoader(stream, batch_size=BATCH, num_workers=WORKERS, collate_fn=stacked)
    return lambda: sum(map(len, loader))


def report_speed(scratch: Path) -> None:
    folder = scratch / "photos"
    write_shards(photos(), folder, samples_per_shard=PER_SHARD)
    makers = {"bare loop": bare, "WebDataset": plain_webdataset, "Hugging Face datasets": huggingface}
    readers: dict[str, Callable[[], int]] = {"ours": ours(folder)}
    for name, make in makers.items():
        try:
            readers[name] = make(folder)
        except ImportError as error:
            print(f"{name}: skipped, {error}")
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(ROUNDS):
        for name, read in readers.items():
            start = time.perf_counter()
            count = read()
            seconds[name].append(time.perf_counter() - start)
            assert count == SAMPLES, f"{name} read {count} of {SAMPLES} samples"
    pace = SAMPLES / statistics.median(seconds["ours"])
    print(f"ours: {pace:.0f} samples/s, {SAMPLES} JPEGs of 640 x 480, {WORKERS} workers, {ROUNDS} rounds")
    for name in readers:
        if name != "ours":
            ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["ours"], strict=True))
            goal = BARE_GOAL if name == "bare loop" else PEER_GOAL
            print(
                f"ours beside {name}: {ratio:.2f}x its speed; goal {goal:.2f}x: {'met' if ratio >= goal else 'MISSED'}"
            )


def resident_bytes() -> int:
    """Of this process and its workers, shared pages once (PSS)."""
    total = 0
    for pid in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
    return total


def texts(count: int) -> Iterator[tuple[dict[str, Any], None]]:
    for number in range(count):
        turns = [{"from": "human", "value": f"What is {number}?"}, {"from": "gpt", "value": "a number"}]
        yield {"id": str(number), "conversations": turns}, None


def report_memory(scratch: Path) -> None:
    """The same shards many times over: the index and the plan have as many entries as with so many shards."""
    part = min(20_000, MILLION)
    folder = scratch / "texts"
    write_shards(texts(part), folder, samples_per_shard=part // 4)
    config = DataConfig(shards=[str(folder)] * (MILLION // part), batch_size=256, num_workers=WORKERS)
    data = LlavaDataModule(config)
    data.connect(small_tokenizer(), [], 0)
    loader = data.train_dataloader()
    marks, seen = {}, 0
    start = time.perf_counter()
    for number, batch in enumerate(loader, start=1):
        seen += len(batch["keys"])
        if number % max(1, len(loader) // 10) == 0:
            marks[seen] = resident_bytes()
    first, *later = marks.values()
    last = max(later)
    growth = last / first - 1
    pace = seen / (time.perf_counter() - start)
    print(
        f"memory over {seen:,} samples ({pace:,.0f}/s), this process and {WORKERS} workers: {first / 2**20:.0f} MiB "
        f"after a tenth, {last / 2**20:.0f} at most after that ({growth:+.1%}); goal under {GROWTH_GOAL:+.0%}: "
        f"{'met' if growth < GROWTH_GOAL else 'MISSED'}"
    )


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        report_speed(Path(scratch))
        report_memory(Path(scratch))


if __name__ == "__main__":
    main()
