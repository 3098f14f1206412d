"""LlavaDataModule: a LightningDataModule for LLaVA-style shards."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import lightning
import numpy as np
import torch

from ablate.core.errors import UserError
from datamodules.batches.lightning_loop import batches_processed
from datamodules.batches.loader import DataReport, EpochLoader, ImageTransform, StepDataset
from datamodules.batches.rejects import Rejects
from datamodules.config import DataConfig
from datamodules.images.decode import decode_image
from datamodules.images.feature_cache import FeatureStore, ImageLoader
from datamodules.order.mixture import Mixture
from datamodules.order.packing import packed_padding
from datamodules.order.plan import estimate_lengths, steps_per_batch
from datamodules.order.token_counts import token_counts
from datamodules.order.validation import held_out
from datamodules.shards.reader import ShardSet
from datamodules.shards.remote import ShardCache, check_locality
from datamodules.text.conversation import ConversationEncoder
from datamodules.text.tokenizer import Tokenizer

PADDING_SHOWN = 0.03

__all__ = ["DataConfig", "FeatureSource", "LlavaDataModule"]


class FeatureSource(Protocol):
    """Features of a frozen encoder that are computed before the first batch."""

    def prepare(self, data: "LlavaDataModule") -> None:
        """On one rank of each node, while the others wait."""

    def fill(self, data: "LlavaDataModule", device: torch.device) -> FeatureStore | None:
        """On all ranks together; None: images are encoded as they come."""


class LlavaDataModule(lightning.LightningDataModule):
    """Training batches from shards, and validation batches of images that are kept out of training.

    It knows no model: what it needs of one arrives through `connect`, which `VLMModule` calls unless it has been.

        data = LlavaDataModule(config, seed=0)
        trainer.fit(VLMModule(run_config), datamodule=data)

    The order of the samples follows from (config, seed, epoch); the ranks share it, whatever their number. The place in
    it is part of Lightning's checkpoints through `state_dict`. It does not rely on the loader's own saved state, which
    Lightning drops where `configure_optimizers` asks for `estimated_stepping_batches` (Lightning #20550).

    Args:
        config: the settings.
        seed: of the order of the samples; not negative.
        rank, world_size: the share of this process; None = as the trainer says (one process without a trainer).
        rejects: the file in which skipped samples are named, for rank 0; other ranks add their number to its name, and
            all read each other's: the share that may be skipped is that of all ranks together.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        rejects: Path | None = None,
    ):
        super().__init__()
        self.config = config
        self.rejects = rejects
        self.seed = seed
        self._rank = rank
        self._world_size = world_size
        self._dataset: StepDataset | None = None
        self._shards: ShardSet | None = None
        self._features: FeatureSource | None = None
        self._loader: EpochLoader | None = None
        self._validation: EpochLoader | None = None
        self._state: dict[str, Any] = {}

    def connect(
        self,
        tokenizer: Tokenizer,
        image_transforms: Sequence[ImageTransform],
        num_visual_tokens: int,
        features: FeatureStore | FeatureSource | None = None,
    ) -> None:
        """Say for which model the batches are.

        Args:
            tokenizer: of the language model.
            image_transforms: one per vision encoder: RGB image -> (3, H, W).
            num_visual_tokens: tokens that an image becomes.
            features: where given, batches hold these instead of images. A source computes them before the first batch.

        Raises:
            UserError: the template's name is unknown, or `max_length` is too short for an image.
            ShardError: a shard is missing or damaged.
        """
        config = self.config
        template = config.prompt_template
        encoder = ConversationEncoder(tokenizer, template, num_visual_tokens, config.max_length)
        given: Any = features
        self._features, store = (given, None) if hasattr(given, "fill") else (None, given)
        self._dataset = StepDataset(
            self.shards,
            encoder,
            image_transforms,
            features=store,
            on_bad_sample=config.on_bad_sample,
            max_pixels=config.max_image_pixels,
        )
        self._loader = self._validation = None

    @property
    def connected(self) -> bool:
        """Whether `connect` has been called."""
        return self._dataset is not None

    @property
    def shards(self) -> ShardSet:
        """The samples, opened at first use."""
        if self._shards is None:
            config = self.config
            cache = ShardCache(Path(config.cache_dir) / "shards", config.cache_bytes, config.allow_pipe)
            sources = [ShardSet.open(source.shards, cache) for source in config.all_sources]
            for source in sources:
                source.check_unread(config.max_bad_share, config.ignore_suffixes)
            self._shards = ShardSet([shard for source in sources for shard in source.shards])
            check_locality(
                self._shards.shards,
                limit_bytes=config.cache_bytes,
                shuffle=config.shuffle,
                block_shards=config.block_shards,
            )
            weights = tuple(source.weight for source in config.all_sources)
            self._held_out = self._draw_validation()
            parts = np.split(~self._held_out, np.cumsum([len(source) for source in sources])[:-1])
            members = np.flatnonzero(~self._held_out) if config.validation else None
            self._mixture = Mixture(tuple(int(part.sum()) for part in parts), weights, members)
            for given, size, taken in zip(config.all_sources, self._mixture.sizes, self._mixture.counts, strict=True):
                if not taken:
                    raise UserError(
                        f"With a weight of {given.weight}, no epoch takes any of the {size} samples of "
                        f"{', '.join(given.shards)}: make it at least {1 / size:.2g}, or leave the source out."
                    )
            if self.config.verify_checksums:
                self._shards.verify()
        return self._shards

    @property
    def mixture(self) -> Mixture:
        """Which samples an epoch takes, and how often."""
        self.shards  # noqa: B018 - opens them
        return self._mixture

    @property
    def validation_samples(self) -> np.ndarray:
        """(samples for validation,) int64: their numbers; none of their images is trained on."""
        self.shards  # noqa: B018 - opens them
        return np.flatnonzero(self._held_out)

    def _draw_validation(self) -> np.ndarray:
        """(samples,) bool: which are for validation."""
        shards, share = self._shards, self.config.validation
        assert shards is not None
        if not share:
            return np.zeros(len(shards), dtype=bool)
        names = [shards.image_sha256(index) or shards.key(index) for index in range(len(shards))]
        drawn = held_out(names, share, self.config.validation_seed)
        if drawn.all() or not drawn.any():
            raise UserError(
                f"data.validation={share:g} of {len(set(names))} images keeps {'all' if drawn.all() else 'none'} of "
                "them out of training. Choose another share, or another data.validation_seed."
            )
        return drawn

    @property
    def samples_per_epoch(self) -> int:
        """Samples that an epoch takes, repeated ones counted as often as they come."""
        return sum(self.mixture.counts)

    @property
    def images_per_epoch(self) -> float:
        """Samples with an image that an epoch takes, repeated ones as often as they come; the mean over all epochs."""
        mixture = self.mixture
        parts = np.split(self.shards.has_image[~self._held_out], np.cumsum(mixture.sizes)[:-1])
        return float(sum(count * part.mean() for count, part in zip(mixture.counts, parts, strict=True)))

    def describe_sources(self) -> list[dict[str, Any]]:
        """What each source is and what it realises: shards, samples, weight, samples_per_epoch, share of an epoch."""
        mixture = self.mixture
        columns = zip(self.config.all_sources, mixture.sizes, mixture.counts, mixture.shares(), strict=True)
        return [
            {
                "shards": source.shards,
                "samples": size,
                "weight": source.weight,
                "samples_per_epoch": count,
                "share": round(share, 6),
            }
            for source, size, count, share in columns
        ]

    @property
    def dataset(self) -> StepDataset:
        """Makes batches of steps; `dataset.row(index)` is one sample as the model sees it."""
        if self._dataset is None:
            raise RuntimeError("LlavaDataModule.connect(...) must be called before batches are asked for.")
        return self._dataset

    @property
    def encoder(self) -> ConversationEncoder:
        """Turns questions into prompts with the same template as the training data."""
        return self.dataset.encoder

    @property
    def report(self) -> DataReport:
        """Samples skipped so far, on all ranks where a file names them, and texts cut, on this rank in this attempt."""
        if self._loader is None:
            return DataReport()
        report, rejects = self._loader.report, self._loader.rejects
        skipped, cut = report.skipped if rejects is None else rejects.skipped, report.cut
        if self._validation is not None:
            skipped = skipped | self._validation.report.skipped
            cut = cut | self._validation.report.cut
        return DataReport(skipped, cut)

    @property
    def accumulate_grad_batches(self) -> int:
        """Batches that this rank adds up for one optimizer step, for `Trainer(accumulate_grad_batches=...)`."""
        _, world_size = self._share()
        return steps_per_batch(self.config.batch_size, world_size=world_size, micro_batch=self.config.micro_batch)

    def lengths(self) -> np.ndarray:
        """(samples,) tokens of each sample, by which batches are formed: exact (int64) for packing, else estimated."""
        if self.config.packing:
            folder = Path(self.config.cache_dir)
            return token_counts(self.dataset, num_workers=self.config.num_workers, folder=folder)
        shards, encoder = self.shards, self.encoder
        one_turn = len(encoder.prompt_ids("a", has_image=False)) / 2
        return estimate_lengths(
            shards.chars,
            shards.turns,
            shards.has_image,
            num_visual_tokens=encoder.num_visual_tokens,
            tokens_per_turn=one_turn,
            max_length=self.config.max_length,
        )

    def batches_per_epoch(self) -> int:
        """Optimizer steps in an epoch, the same in every one."""
        config = self.config
        if not config.packing:
            return max(1, (math.floor if config.drop_last else math.ceil)(self.samples_per_epoch / config.batch_size))
        return self._make_loader(rank=0, world_size=1).batches

    def packing_summary(self) -> str:
        """How full the packed rows are, in a sentence; empty without packing."""
        if not (budget := self.config.packing):
            return ""
        lengths, rows = self.lengths(), self._make_loader(rank=0, world_size=1).rows
        padding = packed_padding(rows, lengths, budget)
        advice = " (a larger data.packing leaves less)" if padding > PADDING_SHOWN else ""
        samples = self.samples_per_epoch
        return f"{samples} conversations in {len(rows)} rows of {budget} tokens: {padding:.1%} padding{advice}"

    def images(self) -> Iterator[tuple[str, ImageLoader]]:
        """Every different image once, as `FeatureCache.build` takes them."""
        seen = set()
        for index in np.flatnonzero(self.shards.has_image).tolist():
            digest = self.shards.image_sha256(index)
            if digest not in seen:
                seen.add(digest)
                yield digest, functools.partial(self._decode, index)

    def prepare_data(self) -> None:
        if self._features is not None:
            self._features.prepare(self)

    def setup(self, stage: str) -> None:
        """Lightning calls this when a fit begins: a loader made before may be another rank's, or at another place."""
        if stage == "fit":
            self._loader = self._validation = None
        if self._features is not None and (stage == "fit" or self.dataset.features is None):
            device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
            self.dataset.features = self._features.fill(self, device)

    def train_dataloader(self) -> EpochLoader:
        """The batches of this rank. The same object every time, so that its place is this module's place."""
        if self._loader is None:
            rank, world_size = self._share()
            self._loader = self._make_loader(rank, world_size, self._rejects(rank, world_size))
            if self._state:
                self._loader.load_state_dict(self._state)
                self._state = {}
        return self._loader

    def val_dataloader(self) -> EpochLoader | list[Any]:
        """The validation batches of this rank, in the order of the samples; none without `data.validation`."""
        samples = self.validation_samples
        if not len(samples):
            return []
        if self._validation is None:
            rank, world_size = self._share()
            self._validation = self._make_loader(
                rank,
                world_size,
                Rejects(None, max_share=self.config.max_bad_share, samples=len(samples), rank=rank),
                config=replace(self.config, shuffle=False, drop_last=False, block_shards=0),
                mixture=Mixture((len(samples),), (1.0,), samples),
                resumes=False,
            )
        return self._validation

    def _make_loader(
        self,
        rank: int,
        world_size: int,
        rejects: Rejects | None = None,
        *,
        config: DataConfig | None = None,
        mixture: Mixture | None = None,
        resumes: bool = True,
    ) -> EpochLoader:
        return EpochLoader(
            self.dataset,
            self.lengths(),
            config or self.config,
            seed=self.seed,
            world_size=world_size,
            rank=rank,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            processed=functools.partial(batches_processed, self.trainer) if self.trainer is not None else None,
            mixture=mixture or self.mixture,
            rejects=rejects,
            resumes=resumes,
        )

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch; empty before the first batch."""
        return self._loader.state_dict() if self._loader is not None else self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved place, now or when the loader is made.

        Raises:
            UserError: the data or its order has changed since.
        """
        if self._loader is None:
            self._state = state_dict
        elif state_dict:
            self._loader.load_state_dict(state_dict)

    def _share(self) -> tuple[int, int]:
        rank = self.trainer.global_rank if self.trainer is not None else 0
        world_size = self.trainer.world_size if self.trainer is not None else 1
        return (
            rank if self._rank is None else self._rank,
            world_size if self._world_size is None else self._world_size,
        )

    def _rejects(self, rank: int, world_size: int) -> Rejects:
        mixture = self.mixture
        different = sum(map(min, mixture.counts, mixture.sizes))
        return Rejects(
            self.rejects,
            max_share=self.config.max_bad_share,
            samples=different if self.rejects is not None else math.ceil(different / world_size),
            rank=rank,
            data=self.shards.digest[:12],
        )

    def _decode(self, index: int) -> Any:
        sample = self.shards.read(index)
        assert sample.image is not None, sample.key
        return decode_image(sample.image, key=sample.key, max_pixels=self.config.max_image_pixels)
