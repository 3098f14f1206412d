"""The batches of one rank, made in worker processes, handed out in the planned order from a place that can be saved."""

import gc
import hashlib
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ablate.core.errors import UserError
from datamodules import IGNORE_INDEX
from datamodules.batches.collate import Batch, Row, collate
from datamodules.batches.rejects import Rejects
from datamodules.config import DataConfig
from datamodules.errors import BadSample
from datamodules.images.decode import MAX_PIXELS, decode_image
from datamodules.images.feature_cache import FeatureStore
from datamodules.order.mixture import Mixture
from datamodules.order.packing import plan_packed_epoch
from datamodules.order.plan import BatchRow, Step, Steps, blocks_of, plan_epoch, rank_steps, steps_per_batch
from datamodules.shards.reader import ShardSet
from datamodules.shards.remote import fetched_ahead
from datamodules.text.conversation import ConversationEncoder

log = logging.getLogger(__name__)

# Remote shards to fetch before they are needed, where there are no blocks to go by.
SHARDS_AHEAD = 2

ImageTransform = Callable[[Image.Image], Tensor]


@dataclass
class DataReport:
    """What was left out on the way, on this rank.

    Attributes:
        skipped: samples that could not be used, by key, with the reason; a sample counts once however often it is met.
        cut: samples whose text was cut to `max_length`, by key, with the number of tokens cut.
    """

    skipped: dict[str, str] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)

    def add(self, other: "DataReport") -> None:
        """Take in another report, and log what is new in it."""
        for key in other.skipped.keys() - self.skipped.keys():
            log.warning("Skipped %s: %s (%d so far)", key, other.skipped[key], len(self.skipped) + 1)
            self.skipped[key] = other.skipped[key]
        for key in other.cut.keys() - self.cut.keys():
            if not self.cut:
                log.warning(
                    "Text is cut to max_length, first in %s (%d tokens); counted from here", key, other.cut[key]
                )
            self.cut[key] = other.cut[key]

    def __str__(self) -> str:
        return f"{len(self.skipped)} samples skipped, {len(self.cut)} cut to max_length"


class StepDataset(Dataset[tuple[Batch, DataReport] | UserError]):
    """Step -> batch: reads, decodes, tokenizes and collates. Runs in worker processes.

    A user's error is returned, not raised: raised in a worker, it would arrive wrapped in that process's traceback.
    """

    def __init__(
        self,
        shards: ShardSet,
        encoder: ConversationEncoder,
        transforms: Sequence[ImageTransform],
        *,
        features: FeatureStore | None = None,
        on_bad_sample: Literal["error", "skip"] = "error",
        max_pixels: int = MAX_PIXELS,
    ):
        self.shards = shards
        self.encoder = encoder
        self.transforms = list(transforms)
        self.features = features
        self.on_bad_sample = on_bad_sample
        self.max_pixels = max_pixels

    def __getitem__(self, step: Step) -> tuple[Batch, DataReport] | UserError:
        report = DataReport()
        try:
            found = [self._row_or_skip(index, DataReport() if step.idle else report) for index in step.samples]
            rows = [row for row in found if row is not None]
            packs = _without_skipped(step.packs, found) if rows else ()
            rows = rows or [self._empty_row()]
            if step.idle:
                for row in rows:
                    row.labels = [IGNORE_INDEX] * len(row.labels)
                    row.key = f"{row.key} (idle)"
            return collate(rows, pad_id=self.encoder.tokenizer.pad_id, features=self.features, packs=packs), report
        except UserError as error:
            return error

    def row(self, index: int, report: DataReport | None = None) -> Row:
        """One sample as the model will see it.

        Raises:
            BadSample, ShardError: as the shard, the conversation or the image require.
        """
        digest = self.shards.image_sha256(index)
        if self.features is not None:
            # An image that the cache lacks is decoded all the same, to tell a damaged image from an unfinished cache.
            with_image = digest not in self.features
        else:
            with_image = bool(self.transforms)
        sample = self.shards.read(index, with_image=with_image)
        encoded = self.encoder.encode(sample.record, has_image=bool(digest), key=sample.key)
        if report is not None and encoded.cut:
            report.cut[sample.key] = encoded.cut
        images = None
        if sample.image is not None:
            image = decode_image(sample.image, key=sample.key, max_pixels=self.max_pixels)
            images = [transform(image) for transform in self.transforms]
        return Row(sample.key, encoded.input_ids, encoded.labels, images=images, image_sha256=digest)

    def tokens(self, index: int) -> int:
        """Length of one sample, visual tokens included; its image is not read.

        Raises:
            BadSample, ShardError: as the shard or the conversation require.
        """
        sample = self.shards.read(index, with_image=False)
        has_image = bool(self.shards.image_sha256(index))
        return len(self.encoder.encode(sample.record, has_image=has_image, key=sample.key).input_ids)

    def _row_or_skip(self, index: int, report: DataReport) -> Row | None:
        try:
            return self.row(index, report)
        except BadSample as bad:
            if self.on_bad_sample == "error":
                raise
            report.skipped[bad.key] = bad.reason
            return None

    def _empty_row(self) -> Row:
        """Stands in where every sample of a step was skipped: one token, nothing to learn."""
        return Row("(all skipped)", [self.encoder.tokenizer.eos_id], [IGNORE_INDEX])


def _without_skipped(packs: Sequence[int], found: Sequence[Row | None]) -> list[int]:
    """The sizes of the packs that are left."""
    rows = iter(found)
    left = [sum(row is not None for row in islice(rows, size)) for size in packs]
    return [size for size in left if size]


def _forked(loader: DataLoader) -> Iterator[Any]:
    """Start the workers so that their garbage collection leaves this process's objects, and so their memory, alone."""
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()


def unchanged(result: Any) -> Any:
    """A `collate_fn` that keeps `DataLoader` from rebuilding what the dataset made."""
    return result


# What of a `DataConfig` decides the order of the samples, with the seed.
ORDER = ("batch_size", "shuffle", "bucket_batches", "drop_last", "packing", "block_shards")


class EpochLoader:
    """An iterable over the batches of one rank, one epoch at a time.

    Iteration starts after the `handed_out` steps of the current epoch; what workers have prepared ahead is not counted.
    `len` is the whole epoch, as Lightning expects of a loader that resumes within one.

    It is not a `DataLoader`, so Lightning neither replaces the order nor wraps it in a `DistributedSampler`.

    Args:
        dataset: makes batches of steps.
        lengths: (samples,) tokens of each sample, for the plan; exact (int) where rows are packed.
        config: the size of batches, their order and division: `ORDER`, `micro_batch` and `num_workers` of it are read.
        seed: of the order.
        world_size, rank: as `rank_steps`.
        processed: steps of this epoch whose training is done. Where training is interrupted within a step, it says one
            less than was handed out, and that step comes again.
        mixture: which samples an epoch takes, and how often; None = each once.
        rejects: where skipped samples are counted and named.
        resumes: False begins every iteration with the first batch, as validation does.
    """

    def __init__(
        self,
        dataset: StepDataset,
        lengths: Any,
        config: DataConfig,
        *,
        seed: int,
        world_size: int = 1,
        rank: int = 0,
        pin_memory: bool = False,
        processed: Callable[[], int] | None = None,
        mixture: Mixture | None = None,
        rejects: Rejects | None = None,
        resumes: bool = True,
    ):
        if not 0 <= rank < world_size:
            raise UserError(f"rank is {rank}; it must be at least 0 and less than world_size, {world_size}.")
        if config.batch_size < world_size:
            raise UserError(
                f"batch_size is {config.batch_size}, but there are {world_size} ranks. It counts the "
                f"{'rows' if config.packing else 'samples'} of all ranks together: make it at least {world_size}."
            )
        self.dataset = dataset
        self.lengths = lengths
        self.order = {"seed": seed, **{name: getattr(config, name) for name in ORDER}}
        self.mixture = mixture or Mixture((len(lengths),), (1.0,))
        if config.packing and not self.mixture.is_constant:
            raise UserError(
                f"packing={config.packing} needs sources of whole weights, got "
                f"{', '.join(map(str, self.mixture.weights))}: with part of a source, each epoch has other "
                "lengths and so another number of rows. Set packing to 0, or the weights to 1, 2, ..."
            )
        self.rejects = rejects
        # Other lengths (another tokenizer, another number of visual tokens) make other batches.
        self._lengths_digest = hashlib.sha256(np.ascontiguousarray(lengths).tobytes()).hexdigest()
        self.split = {"world_size": world_size, "rank": rank, "micro_batch": config.micro_batch}
        self.report = DataReport(skipped=dict(rejects.skipped) if rejects is not None else {})
        self._processed = processed
        self._resumes = resumes
        self.handed_out = 0
        self.recounted: int | None = None
        self._restored = False
        self._epoch_offset = 0
        self._workers: dict[str, Any] = {"num_workers": config.num_workers, "pin_memory": pin_memory}
        self._plan(epoch=0)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing is fetched before the first batch is asked for, when `set_epoch` has been called.
        if not self._resumes:
            self._go_to(self.epoch)
        elif self.handed_out >= len(self.steps):
            self._go_to(self.epoch + 1)
        # The workers live as long as the epoch. Persistent ones would be left to the garbage collector, which ends the
        # queues before the workers and then waits five seconds for each.
        loader = DataLoader(
            self.dataset,
            sampler=self.steps.following(self.handed_out),
            batch_size=None,
            collate_fn=unchanged,
            # The workers' own seed. Nothing here draws from it; PyTorch's default would advance the global generator
            # once an epoch, and once more after a resume.
            generator=torch.Generator().manual_seed(self.order["seed"]),
            **self._workers,
        )
        results = _forked(loader)  # before there is a thread
        uses = self.dataset.shards.uses([step.samples for step in self.steps.following(self.handed_out)])
        begun = self.handed_out
        with fetched_ahead(uses, ahead=self.order["block_shards"] or SHARDS_AHEAD) as tell:
            for result in results:
                if isinstance(result, UserError):
                    raise result
                batch, report = result
                self.report.add(report)
                if self.rejects is not None:
                    self.rejects.add(self.epoch, report.skipped)
                self.handed_out += 1
                tell(self.handed_out - begun)
                yield batch

    @property
    def batches(self) -> int:
        """Global batches, that is optimizer steps, in an epoch."""
        return len(self._batch_starts) - 1

    @property
    def rows(self) -> list[Any]:
        """The samples of each packed row of the epoch; empty without packing."""
        return [row for batch in self._batches() for row in batch] if self.order["packing"] else []

    @property
    def sampler(self) -> "EpochLoader":
        """Lightning calls `loader.sampler.set_epoch` before every epoch."""
        return self

    @property
    def batch_sampler(self) -> None:
        """Without one, Lightning inspects the sampler to find out whether validation data are shuffled."""

    @property
    def position(self) -> int:
        """Steps of this epoch that need not come again."""
        if self._processed is None:
            return self.handed_out
        return min(self.handed_out, self._processed())

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; within the current one, stay where it is.

        The first call after `load_state_dict` goes nowhere: it says what the caller numbers the restored epoch.
        Lightning counts an epoch that `max_steps` cut short as complete, and would lose the rest of it when such a run
        is extended.
        """
        if self._restored:
            self._restored = False
            self._epoch_offset = self.epoch - epoch
        elif epoch + self._epoch_offset != self.epoch:
            self._go_to(epoch + self._epoch_offset)

    def _go_to(self, epoch: int) -> None:
        self.handed_out = 0
        self._plan(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The place, and what decides the order of the samples, as plain values.

        `batch` global batches of `epoch` are done, and of the next one the first steps; `step` counts all steps done.
        """
        step = self.position
        batch = bisect_right(self._batch_starts, step) - 1
        return {
            "epoch": self.epoch,
            "batch": batch,
            "step": step,
            "world_size": self.split["world_size"],
            "micro_batch": self.split["micro_batch"],
            "samples": len(self.lengths),
            "data": self.dataset.shards.digest,
            "mixture": [list(self.mixture.sizes), list(self.mixture.weights)],
            "lengths": self._lengths_digest,
            **self.order,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place. The number of ranks may have changed: a global batch begun is then started over.

        `recounted` is afterwards None, or, where the saved place counts other steps than this loader's, the number of
        this loader's steps that are done of the saved epoch.

        Raises:
            UserError: the data or what decides its order has changed, so that the place means nothing.
        """
        mine = self.state_dict()
        fixed = ["data", "samples", "mixture", "lengths", *self.order]
        differs = [
            f"{name}: {state.get(name)} then, {mine[name]} now" for name in fixed if state.get(name) != mine[name]
        ]
        if differs:
            raise UserError(
                f"The checkpoint cannot be continued with this data ({'; '.join(differs)}). Restore those settings, or "
                "start a new run from its weights."
            )
        self._plan(state["epoch"])
        same_steps = all(state[name] == mine[name] for name in ("world_size", "micro_batch"))
        self.handed_out = state["step"] if same_steps else self._batch_starts[state["batch"]]
        self.recounted = None if same_steps else self.handed_out
        if self.handed_out == len(self.steps):
            self._go_to(self.epoch + 1)
        self._restored = True

    def _plan(self, epoch: int) -> None:
        self.epoch = epoch
        batches = self._batches()
        self.steps = Steps(rank_steps(batches, **self.split))
        split = {name: self.split[name] for name in ("world_size", "micro_batch")}
        counts = (steps_per_batch(len(batch), **split) for batch in batches)
        self._batch_starts = list(accumulate(counts, initial=0))  # the step with which each begins; last, their number
        if not self.steps:
            raise UserError(
                f"No batch: {sum(self.mixture.counts)} samples are fewer than batch_size {self.order['batch_size']}"
                f"{' rows' if self.order['packing'] else ''}, and drop_last leaves them out."
            )

    def _batches(self) -> list[list[BatchRow]]:
        # The plan numbers the samples that the epoch takes; repeated ones are several to it.
        taken = self.mixture.samples(seed=self.order["seed"], epoch=self.epoch)
        order: dict[str, Any] = dict(self.order, epoch=self.epoch)
        budget, block_shards = order.pop("packing"), order.pop("block_shards")
        sizes = [len(shard) for shard in self.dataset.shards.shards]
        order["blocks"] = blocks_of(sizes, block_shards, seed=order["seed"], taken=taken)
        if not budget:
            return [taken[batch].tolist() for batch in plan_epoch(self.lengths[taken], **order)]
        del order["bucket_batches"]
        batches = plan_packed_epoch(self.lengths[taken], budget=budget, **order)
        return [[tuple(taken[list(row)].tolist()) for row in batch] for batch in batches]
