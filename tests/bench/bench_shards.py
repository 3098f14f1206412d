"""Making shards beside the bare loop that does no more than it must: read, encode, write.

The bare loop parses the annotations at once, reads each image, writes JSON and image into a tar file and ends with the
file on disk (fsync), in as many processes. Ours also reads the annotations as a stream, looks for repeated entries and
for paths that lead away, checks conversations and images, hashes every image and shard, and writes an index.
"""

import hashlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

from datamodules.images.decode import Resize
from datamodules.shards.make import ShardSettings, make_shards

FEW, MORE, PER_SHARD, DIFFERENT, RUNS, GOAL = 200, 1600, 100, 40, 5, 0.80
SHORTEST, QUALITY = 336, 90
RESIZED = f"copy and encode, shortest={SHORTEST}, quality={QUALITY}"
CHECKSUMS = "bit for bit, beside a loop with the same checksums"
COPIED = "bit for bit, beside a loop without checksums"
MANY = 1_200_000


def write_world(root: Path, samples: int) -> int:
    """Records with LLaVA's mean of about five turns, and JPEGs of COCO's size; returns the images' bytes."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(DIFFERENT):
        coarse = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)).astype(np.int16)
        picture = (picture + generator.integers(-24, 25, picture.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=90)
        images.append(file.getvalue())
    (root / "images").mkdir(parents=True)
    records = []
    for number in range(samples):
        (root / "images" / f"{number}.jpg").write_bytes(images[number % DIFFERENT])
        records.append(record(number) | {"image": f"{number}.jpg"})
    (root / "in.json").write_text(json.dumps(records))
    return sum(len(images[number % DIFFERENT]) for number in range(samples))


def record(number: int) -> dict:
    turns = [{"from": ("human", "gpt")[turn % 2], "value": f"{number} {'word ' * 30}"} for turn in range(6)]
    return {"id": str(number), "conversations": turns}


def bare_loop(task: tuple[Path, Path, int, int, str]) -> None:
    root, out, first, step, kind = task
    records = json.loads((root / "in.json").read_bytes())
    for start in range(first * PER_SHARD, len(records), step * PER_SHARD):
        with (out / f"{start}.tar").open("wb") as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                for each in records[start : start + PER_SHARD]:
                    image = (root / "images" / each["image"]).read_bytes()
                    image = shrink(image) if kind == RESIZED else image
                    for suffix, data in (("jpg", image), ("json", json.dumps(each).encode())):
                        info = tarfile.TarInfo(f"{each['id']}.{suffix}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
                    if kind == CHECKSUMS:
                        hashlib.sha256(image)
            file.flush()
            os.fsync(file.fileno())
        if kind == CHECKSUMS:
            hashlib.sha256((out / f"{start}.tar").read_bytes())


def shrink(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data))
    scale = SHORTEST / min(image.size)
    file = io.BytesIO()
    size = [round(side * scale) for side in image.size]
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def reference(root: Path, out: Path, workers: int, kind: str) -> None:
    out.mkdir()
    tasks = [(root, out, first, workers, kind) for first in range(workers)]
    if workers == 1:
        bare_loop(tasks[0])
        return
    with multiprocessing.Pool(workers) as pool:
        pool.map(bare_loop, tasks)


def ours(root: Path, out: Path, workers: int, kind: str) -> None:
    rule = Resize("shortest", SHORTEST, QUALITY) if kind == RESIZED else None
    settings = ShardSettings((root / "in.json",), root / "images", samples_per_shard=PER_SHARD, resize=rule)
    make_shards(settings, out, workers=workers)


def seconds(make: Callable[..., None], root: Path, *arguments: object) -> float:
    out = root / "out"
    start = time.perf_counter()
    make(root, out, *arguments)
    took = time.perf_counter() - start
    shutil.rmtree(out)
    return took


def report_speed(root: Path, kinds: Sequence[str], samples: int) -> None:
    size = write_world(root, samples)
    print(f"{samples} JPEGs of {size / samples / 1000:.0f} kB; medians of {RUNS} interleaved runs")
    for kind in kinds:
        for workers in (1, 2):
            pairs = [(seconds(ours, root, workers, kind), seconds(reference, root, workers, kind)) for _ in range(RUNS)]
            mine, bare = (statistics.median(times) for times in zip(*pairs, strict=True))
            ratio = statistics.median(theirs / own for own, theirs in pairs)
            verdict = f"goal {GOAL:.0%}: {'met' if ratio >= GOAL else 'MISSED'}"
            print(
                f"{kind}, {workers} process{'es' * (workers > 1)}: {samples / mine:.0f} samples/s "
                f"({size / mine / 1e6:.0f} MB/s), bare loop {samples / bare:.0f} ({size / bare / 1e6:.0f} MB/s): "
                f"{ratio:.0%}; {verdict if kind != COPIED else 'for the record'}"
            )


def report_memory(root: Path) -> None:
    """A process of its own: peak memory is a property of a process."""
    with (root / "many.json").open("w") as file:
        file.write("[")
        for number in range(MANY):
            file.write(", " * bool(number) + json.dumps(record(number)))
        file.write("]")
    size = (root / "many.json").stat().st_size
    done = subprocess.run([sys.executable, __file__, str(root)], capture_output=True, text=True, check=True)
    peak, took = map(float, done.stdout.split())
    print(
        f"{MANY:,} entries of text in one JSON array ({size / 2**30:.2f} GiB): {took:.0f} s, peak memory "
        f"{peak / 2**20:.2f} GiB; goal under 4 GiB: {'met' if peak < 4 * 2**20 else 'MISSED'}"
    )


def make_many(root: Path) -> None:
    start = time.perf_counter()
    settings = ShardSettings((root / "many.json",), root / "images", samples_per_shard=10_000)
    make_shards(settings, root / "many", workers=2)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter() - start)


def main() -> None:
    if len(sys.argv) > 1:
        make_many(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        report_speed(Path(scratch) / "few", [RESIZED], FEW)
        report_speed(Path(scratch) / "more", [CHECKSUMS, COPIED], MORE)
        report_memory(Path(scratch) / "more")


if __name__ == "__main__":
    main()
