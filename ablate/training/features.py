"""The frozen encoder's features of all images of a run, computed once and shared by every run with that encoder."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ablate.model import VisionEncoder
from ablate.training.config import FeaturesConfig, RunConfig
from ablate.training.progress import Reporter, duration
from datamodules.features import DTYPES, FeatureCache, ImageLoader, break_even_epochs
from datamodules.files import exclusive
from datamodules.llava import LlavaDataModule


class TrainingData(LlavaDataModule):
    """The run's batches; before the first, the features of all images are computed, where they are to be kept.

    Lightning calls `prepare_data` on one rank of each node while the others wait, then `setup` on all.

    Attributes:
        cache: None if images are encoded as they come.
    """

    def __init__(self, config: RunConfig, encoder: VisionEncoder, *, device: torch.device, reporter: Reporter) -> None:
        super().__init__(config.data, seed=config.seed)
        self.cache = open_cache(config.features, encoder) if config.features.cache and config.encoder.frozen else None
        self._run, self._vision, self._device, self._reporter = config, encoder, device, reporter

    def prepare_data(self) -> None:
        if self.cache is None:
            return
        fill_cache(
            self.cache,
            self.images(),
            self._vision,
            config=self._run.features,
            device=self._device,
            reporter=self._reporter,
            on_bad_sample=self.config.on_bad_sample,
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.cache is not None:
            self.cache.refresh()


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
    on_bad_sample: str = "error",
) -> None:
    """Compute the features that the cache lacks. Processes that need the same cache wait for the first of them."""
    items = list(images)
    with exclusive(cache.folder / ".lock"):
        cache.refresh()
        missing = set(cache.missing(image for image, _ in items))
        if not missing:
            return
        encoder.to(device)
        todo = [item for item in items if item[0] in missing]
        done = 0
        with reporter.phase("encode images", len(todo)) as phase:

            def progress(images: int) -> None:
                nonlocal done
                done += images
                phase.update(done)

            report = cache.build(
                todo, _encoder_of_pictures(encoder, device), progress, batch_size=config.batch_size,
                on_bad_sample=on_bad_sample,
            )  # fmt: skip
    for bad in report.skipped:
        reporter.say(f"skipped {bad}")
    reporter.say(_summary(cache, [image for image, _ in todo if image in cache], report.encode_seconds))


def _encoder_of_pictures(encoder: VisionEncoder, device: torch.device) -> Callable[[list[Image.Image]], Tensor]:
    def encode(pictures: list[Image.Image]) -> Tensor:
        towers = [torch.stack([transform(picture) for picture in pictures]) for transform in encoder.transforms]
        return encoder([images.to(device, non_blocking=True) for images in towers])

    return encode


def _summary(cache: FeatureCache, images: list[str], encode_seconds: float) -> str:
    """Whether the cache was worth it, measured: with a small encoder and a slow disk it need not be."""
    sample = list(islice(images, 256))
    start = time.perf_counter()
    for image in sample:
        cache.get([image])
    read_seconds = (time.perf_counter() - start) * len(images) / max(1, len(sample))
    return (
        f"encoded {len(images)} images in {duration(encode_seconds)}; reading them takes {read_seconds:.2f}s, so "
        f"the cache pays from {break_even_epochs(encode_seconds, read_seconds):.2f} epochs on, all runs together"
    )
