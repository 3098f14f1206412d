"""The frozen encoder's features of all images of a run, computed once and shared by every run with that encoder."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ablate.core.console import Reporter, duration
from ablate.core.files import read_json, write_json
from ablate.model import VisionEncoder
from ablate.runs.config import FeaturesConfig, RunConfig
from ablate.runs.folder import RunFiles
from ablate.runs.identity import run_folder
from datamodules.images.feature_cache import (
    DTYPES,
    BuildReport,
    FeatureCache,
    FeatureStore,
    ImageLoader,
    block_images,
    break_even_passes,
    estimate_bytes,
)
from datamodules.llava import LlavaDataModule

# The rest of the disk is left for checkpoints and results.
SHARE_OF_FREE_DISK = 0.9


class CachedFeatures:
    """A `FeatureSource`: the features of all images of a run, where computing them once pays.

    The first rank decides that, once for all attempts at the run (features.json): cached features are rounded, and a
    run that is continued must not see others. Then all ranks compute them together.
    """

    def __init__(self, config: RunConfig, encoder: VisionEncoder, *, device: torch.device, reporter: Reporter) -> None:
        self._cache = open_cache(config.features, encoder)
        self._run, self._vision, self._device, self._reporter = config, encoder, device, reporter
        self._decision = RunFiles(run_folder(config)).features

    def prepare(self, data: LlavaDataModule) -> None:
        """Decide whether features are kept."""
        images = list(data.images()) if read_json(self._decision) is None else []
        if not images:
            return
        forecast = predict(
            self._cache,
            images,
            self._vision,
            config=self._run.features,
            device=self._device,
            passes=self._samples_with_image(data) / len(images) * self._run.features.runs,
        )
        if forecast.images:
            self._reporter.say(str(forecast))
        write_json(self._decision, forecast.to_json())

    def _samples_with_image(self, data: LlavaDataModule) -> float:
        """Of the whole training: an image counts in each conversation about it, and in each epoch."""
        epochs: float = self._run.train.epochs
        if self._run.train.max_steps is not None:
            epochs = self._run.train.max_steps / data.batches_per_epoch()
        return epochs * data.images_per_epoch

    def fill(self, data: LlavaDataModule, device: torch.device) -> FeatureStore | None:
        """Compute the features that are missing; None where images are encoded as they come."""
        if not data.shards.has_image.any() or not read_json(self._decision)["cached"]:
            return None
        fill_cache(
            self._cache,
            data.images(),
            self._vision,
            config=self._run.features,
            device=device,
            reporter=self._reporter,
            on_bad_sample=data.config.on_bad_sample,
        )
        return self._cache


@dataclass(frozen=True)
class Forecast:
    """What a cache will take and save, from a few images before it is filled.

    Attributes:
        images: that are still to be encoded.
        bytes, free_bytes: on disk: what they will take, and what there is.
        encode_seconds, write_seconds, read_seconds: all of them once. None where it was not worth measuring.
        break_even: passes over the images, of all runs together, from which on the cache pays.
        passes: that are planned, of all runs together.
        reason: why it is left off; "" = it is not.
        runs: that share the passes.
    """

    images: int
    bytes: int
    free_bytes: int
    passes: float
    encode_seconds: float | None = None
    write_seconds: float | None = None
    read_seconds: float | None = None
    break_even: float | None = None
    reason: str = ""
    runs: int = 1

    def to_json(self) -> dict[str, Any]:
        values = {name: None if value == math.inf else value for name, value in asdict(self).items()}
        return {"cached": not self.reason, **values}

    def __str__(self) -> str:
        text = (
            f"features of {self.images} images: {self.bytes / 1e6:,.1f} MB of disk ({self.free_bytes / 1e6:,.0f} free)"
        )
        if self.break_even is not None and self.encode_seconds is not None:
            text += (
                f"; predicted: {duration(self.encode_seconds)} to encode, {self.write_seconds:.2f}s to write, "
                f"{self.read_seconds:.2f}s to read: the cache pays from {self.break_even:.2f} passes over the images "
                f"on, and {_plain(self.passes)} are planned: {_plain(self.passes / self.runs)} in each of {self.runs} "
                "runs (features.runs)"
            )
        return text + (f". No cache: {self.reason}" if self.reason else "")


def _plain(number: float) -> str:
    """1.25, 8, 1,000: never 1e+03."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def predict(
    cache: FeatureCache,
    items: Sequence[tuple[str, ImageLoader]],
    encoder: VisionEncoder,
    *,
    config: FeaturesConfig,
    device: torch.device,
    passes: float,
) -> Forecast:
    """Whether to fill the cache for so many passes over the images, all runs together.

    To know, a batch of the missing images is encoded, written and read.
    """
    missing = set(cache.missing(image for image, _ in items))
    free = shutil.disk_usage(cache.folder).free
    if not missing:
        return Forecast(0, 0, free, passes, runs=config.runs)
    height, width = encoder.grid
    size = estimate_bytes(len(missing), (height, width), encoder.dim, cache.dtype)
    forecast = Forecast(len(missing), size, free, passes, runs=config.runs)
    if size > SHARE_OF_FREE_DISK * free:
        return replace(
            forecast,
            reason="the disk is too small. Free some, set features.root to another disk, or features.dtype=int8.",
        )
    if passes <= 1:
        reason = "each image is encoded once anyway. Set features.runs if other runs will read them, too."
        return replace(forecast, reason=reason)
    measured = _measure(cache, [item for item in items if item[0] in missing], encoder, config.batch_size, device)
    if measured is None:  # not one image can be decoded: filling the cache will say so
        return forecast
    encode, write, read = (seconds * len(missing) for seconds in measured)
    pays = break_even_passes(encode, read, encode + write)
    reason = "" if pays <= passes else "it would not pay. More epochs, or features.runs for runs that share it, would."
    return replace(
        forecast, encode_seconds=encode, write_seconds=write, read_seconds=read, break_even=pays, reason=reason
    )


def _measure(
    cache: FeatureCache,
    items: Sequence[tuple[str, ImageLoader]],
    encoder: VisionEncoder,
    batch_size: int,
    device: torch.device,
) -> tuple[float, float, float] | None:
    """Seconds for an image: to decode and encode, to write, to read; from two batches spread over all images."""
    encode = _encoder_of_pictures(encoder.to(device), device)
    spread = items[:: max(1, len(items) // (2 * batch_size))][: 2 * batch_size]
    warm, timed = spread[: len(spread) // 2], spread[len(spread) // 2 :]
    with tempfile.TemporaryDirectory(dir=cache.folder, prefix=".probe-") as folder:
        probe = FeatureCache(folder, cache.key_fields, cache.dtype)
        probe.build(warm, encode, batch_size=batch_size, on_bad_sample="skip")  # the first batch starts the kernels
        built = probe.build(timed, encode, batch_size=batch_size, on_bad_sample="skip")
        if not built.encoded:
            return None
        start = time.perf_counter()
        for image, _ in timed:
            if image in probe:
                probe.get([image])
        read = time.perf_counter() - start
    return built.encode_seconds / built.encoded, built.write_seconds / built.encoded, read / built.encoded


def open_cache(config: FeaturesConfig, encoder: VisionEncoder) -> FeatureCache:
    """The cache of this encoder's features: one folder in `config.root` for each way of computing them."""
    fields = encoder.key_fields()
    names = "+".join(tower["name"] for tower in fields["encoders"])
    digest = hashlib.sha256(json.dumps([fields, config.dtype], sort_keys=True).encode()).hexdigest()
    folder = Path(config.root) / f"{re.sub(r'[^A-Za-z0-9.+-]', '_', names)}-{digest[:12]}"
    return FeatureCache(folder, fields, DTYPES[config.dtype])


def fill_cache(
    cache: FeatureCache,
    images: Iterable[tuple[str, ImageLoader]],
    encoder: VisionEncoder,
    *,
    config: FeaturesConfig,
    device: torch.device,
    reporter: Reporter,
    on_bad_sample: Literal["error", "skip"] = "error",
) -> None:
    """Compute the features that the cache lacks, together with the other processes that need them."""
    items = list(images)
    cache.refresh()
    missing = cache.missing(image for image, _ in items)
    if not missing:
        return
    encoder.to(device)
    done = 0
    per_image = estimate_bytes(1, encoder.grid, encoder.dim, torch.float32)
    with reporter.phase("encode images", len(items)) as phase:

        def progress(images: int) -> None:
            nonlocal done
            done += images
            phase.update(done)

        report = cache.build(
            items,
            _encoder_of_pictures(encoder, device),
            progress,
            batch_size=config.batch_size,
            block_size=block_images(per_image),
            on_bad_sample=on_bad_sample,
        )
    for bad in report.skipped:
        reporter.say(f"skipped {bad}")
    if encoded := [image for image in missing if image in cache]:
        reporter.say(_summary(cache, encoded, report))


def _encoder_of_pictures(encoder: VisionEncoder, device: torch.device) -> Callable[[list[Image.Image]], Tensor]:
    def encode(pictures: list[Image.Image]) -> Tensor:
        towers = [torch.stack([transform(picture) for picture in pictures]) for transform in encoder.transforms]
        return encoder([images.to(device, non_blocking=True) for images in towers])

    return encode


def _summary(cache: FeatureCache, images: list[str], report: BuildReport) -> str:
    """Whether the cache was worth it, measured: with a small encoder and a slow disk it need not be."""
    sample = list(islice(images, 256))
    start = time.perf_counter()
    for image in sample:
        cache.get([image])
    read = (time.perf_counter() - start) / max(1, len(sample))
    # This process's share represents all.
    mine = max(1, report.encoded)
    encode, write = report.encode_seconds / mine, report.write_seconds / mine
    size = sum(path.stat().st_size for path in cache.folder.glob("block-*"))
    text = f"encoded {len(images)} images"
    if report.encoded < len(images):
        text += f" ({report.encoded} of them by this process)"
    text += (
        f" in {duration(report.encode_seconds)}; the cache has {size / 1e6:,.1f} MB; reading them takes "
        f"{read * len(images):.2f}s"
    )
    if report.encoded:  # else the others know what it took
        pays = break_even_passes(encode, read, encode + write)
        text += f", so the cache pays from {pays:.2f} passes over them on, all runs together"
    return (
        f"{text}; kept as {cache.key_fields['dtype']}, features are off by {cache.error:.2g} of their size "
        "(root mean square)"
    )
