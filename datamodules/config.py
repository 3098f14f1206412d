"""The settings of the training data."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ablate.core.config import LATER
from ablate.core.errors import UserError
from ablate.core.fields import INT64, Count, CountOrZero, Range, Share, check_ranges
from datamodules.images.decode import MAX_PIXELS
from datamodules.order.mixture import Source
from datamodules.text.conversation import PromptTemplate, get_template


@dataclass
class DataConfig:
    """Where the training conversations are and how they become batches."""

    # Folders of shards, or single .tar files: paths, or URLs (https, s3, gs, ...) with an index.json next to them;
    # .tar.gz files, here or as URLs, and pipe:COMMAND, which are unpacked once into the cache.
    shards: list[str] = field(default_factory=list)
    # Several sources by weight, instead of `shards`: [{shards: [...], weight: 1.0}, ...]. The weight says how often an
    # epoch takes each sample of the source (datamodules/order/mixture.py).
    sources: list[Source] = field(default_factory=list)
    # Conversations (with packing: rows of them) per optimizer step, over all ranks and accumulation steps.
    batch_size: Count = 32
    # At most this many of those at once on one rank (the rest is accumulated); 0 = a rank's whole share.
    micro_batch: CountOrZero = 0
    # Fill rows of at most so many tokens with several conversations, which do not see each other; 0 = a row for each.
    # The text of all is tokenized once before the first step, to know its length.
    packing: CountOrZero = 0
    # Processes that read, decode and tokenize for one rank; 0 = do it in the training process.
    num_workers: CountOrZero = 0
    # A name from `datamodules.text.conversation.TEMPLATES`.
    template: str = "cobra"
    # A custom template, instead of a named one.
    custom_template: PromptTemplate | None = None
    # Longest sequence in tokens, visual tokens included. Longer text is cut at its end and counted.
    max_length: Count = 2048
    # Stop at a sample that cannot be used, or leave it out and count it.
    on_bad_sample: Literal["error", "skip"] = "error"
    # With "skip": the share of an epoch's samples that may be left out before the run stops. rejects.jsonl in the run's
    # folder names each of them.
    max_bad_share: Share = 0.01
    # Members of the shards that are not read (all but .json and images) are counted by suffix, and more than
    # max_bad_share for each sample are an error. These suffixes may be there in any number: [txt, cls], ["*"] for all.
    ignore_suffixes: list[str] = field(default_factory=list)
    # Batches among which samples are sorted by length; 1 = no sorting, 0 = the whole epoch. Packed rows are not sorted.
    bucket_batches: CountOrZero = 64
    shuffle: bool = True
    # Shuffle the samples of so many shards together, one such block after another, so that few shards are needed at a
    # time; 0 = of all. For shards that are far away and more than the cache holds.
    block_shards: CountOrZero = 0
    # Leave out the epoch's last batch where it is smaller than batch_size.
    drop_last: bool = False
    # What need not be computed or fetched again is kept here: token counts, remote shards.
    cache_dir: str = "data/cache"
    # Most bytes of remote shards on this disk; those not read for longest make room. 0 = no limit.
    cache_bytes: CountOrZero = 0
    # Run the commands of shards that are given as pipe:COMMAND. They run in a shell, with your rights.
    allow_pipe: bool = field(default=False, metadata=LATER)
    # Share of the images that are kept out of training, with all conversations about them, for the validation loss.
    # Which ones follows from validation_seed and each image's bytes alone, so runs of other seeds keep out the same.
    validation: Share = field(default=0.0, metadata=LATER)
    validation_seed: Annotated[int, Range(0, INT64)] = field(default=0, metadata=LATER)
    # Read every shard once at the start and compare its SHA-256 with the index.
    verify_checksums: bool = False
    # Larger images (width x height) are refused: a few kilobytes can unpack to gigabytes.
    max_image_pixels: Count = MAX_PIXELS

    def __post_init__(self) -> None:
        check_ranges(self, "data")
        if self.packing and self.packing < self.max_length:
            raise UserError(
                f"packing is {self.packing}, less than max_length, {self.max_length}: a row must hold the longest "
                f"conversation. Set packing to {self.max_length} or more, or lower max_length."
            )
        if self.on_bad_sample not in ("error", "skip"):
            raise UserError(f'on_bad_sample is "{self.on_bad_sample}"; it must be "error" or "skip".')

    @property
    def all_sources(self) -> list[Source]:
        """`sources` where there are any, else `shards` as the only one.

        Raises:
            UserError: there are neither.
        """
        if not (self.sources or self.shards):
            raise UserError("data.shards is empty: give at least one folder of shards or one .tar file.")
        return self.sources or [Source(self.shards)]

    @property
    def prompt_template(self) -> PromptTemplate:
        """`custom_template` where there is one, else the one that `template` names."""
        return self.custom_template or get_template(self.template)
