"""The order of an epoch, decided from (seed, epoch) alone.

`plan_epoch` cuts all samples into global batches, one per optimizer step; `packing.plan_packed_epoch` does the same
with rows of several samples. `rank_steps` cuts each global batch into what each rank takes at each accumulation step.
It alone knows the number of ranks: one process and sixteen see the same global batches in the same order, and so, with
a loss summed over the tokens of the global batch, the same loss curve.

**Every epoch has the same number of global batches**, which Lightning takes for granted.

**Far-away shards** are needed few at a time where `blocks` says which samples lie together: the blocks come in random
order, the samples of each in random order, one block after the other; batches by length are formed within a block, and
one batch at most has samples of two.

**The last global batch** is smaller where the samples do not come out even; nothing is dropped (unless asked for) and
nothing repeated. Its samples are distributed like any other's. All ranks take the same number of steps; a rank for
which no sample is left takes an idle step: a sample with all its labels blanked, which adds zero to the loss and to
the token count, and keeps the ranks' collective calls in step.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

# English text in GPT-NeoX-20B's tokenizer. Batches are sorted by the estimate; its scale cancels, its error is padding.
CHARS_PER_TOKEN = 4.0


BatchRow = int | tuple[int, ...]  # of a batch: one sample, or several that are packed


@dataclass(frozen=True)
class Step:
    """What one rank takes at one step.

    Attributes:
        samples: their numbers; when idle, one sample whose labels are to be blanked.
        packs: how many of them, in order, share each row; empty = a row for each.
    """

    samples: tuple[int, ...]
    idle: bool = False
    packs: tuple[int, ...] = ()


class Steps(Sequence[Step]):
    """Steps, kept in a few arrays.

    Millions of Python objects would be copied page by page while the trainer and its forked workers count references.
    """

    def __init__(self, steps: Sequence[Step]):
        self._samples = np.fromiter(chain.from_iterable(step.samples for step in steps), np.int64)
        self._packs = np.fromiter(chain.from_iterable(step.packs for step in steps), np.int64)
        self._sample_ends = np.cumsum([0, *(len(step.samples) for step in steps)])
        self._pack_ends = np.cumsum([0, *(len(step.packs) for step in steps)])
        self._idle = np.array([step.idle for step in steps], dtype=bool)

    def __len__(self) -> int:
        return len(self._idle)

    def __getitem__(self, number: int) -> Step:  # type: ignore[override]  # no slices
        if not 0 <= number < len(self):
            raise IndexError(f"step {number} of {len(self)}")
        samples, packs = (
            tuple(values[ends[number] : ends[number + 1]].tolist())
            for values, ends in ((self._samples, self._sample_ends), (self._packs, self._pack_ends))
        )
        return Step(samples, bool(self._idle[number]), packs)

    def following(self, done: int) -> Iterator[Step]:
        """The steps after the first `done`."""
        return map(self.__getitem__, range(done, len(self)))


def estimate_lengths(
    chars: np.ndarray,
    turns: np.ndarray,
    has_image: np.ndarray,
    *,
    num_visual_tokens: int,
    tokens_per_turn: float,
    max_length: int,
) -> np.ndarray:
    """Tokens of each sample, (samples,) float64, without tokenizing any.

    Args:
        chars, turns, has_image: (samples,) as the shards' index has them.
        tokens_per_turn: what the template adds to a turn.
    """
    text = chars / CHARS_PER_TOKEN + turns * tokens_per_turn
    return np.minimum(text + has_image * num_visual_tokens, max_length)


def plan_epoch(
    lengths: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    bucket_batches: int = 64,
    drop_last: bool = False,
    blocks: Sequence[np.ndarray] = (),
) -> list[np.ndarray]:
    """The global batches of an epoch, each an array of sample numbers.

    Samples are shuffled; then, among every `bucket_batches` batches' worth of them, sorted by length and cut into
    batches, and those batches shuffled. So lengths in a batch are alike, and an epoch stays random at the scale of
    `bucket_batches * batch_size` samples. The smaller last batch, where there is one, is drawn at random.

    Args:
        lengths: (samples,) tokens of each sample; estimates will do.
        batch_size: samples in a global batch.
        bucket_batches: 1 = no sorting, 0 = sort over the whole epoch.
        shuffle: False keeps the samples' order (`bucket_batches` is then without effect).
        drop_last: leave the smaller last batch out.
        blocks: from `blocks_of`; none = all samples are one.
    """
    samples = len(lengths)
    whole = samples - samples % batch_size
    if not shuffle:
        order = np.arange(samples)
        batches = np.split(order[:whole], whole // batch_size) if whole else []
    else:
        generator = np.random.default_rng([seed, epoch])
        blocks = shuffled_blocks(blocks, generator) if blocks else [generator.permutation(samples)]
        order = np.concatenate(blocks)
        window = (bucket_batches or max(1, whole // batch_size)) * batch_size
        batches = []
        for first, last in pairwise(_cuts(blocks, whole, batch_size)):
            for start in range(first, last, window):
                members = order[start : min(start + window, last)]
                if bucket_batches != 1:
                    members = members[np.argsort(lengths[members], kind="stable")]
                groups = members.reshape(-1, batch_size)
                batches += list(groups[generator.permutation(len(groups))])
    if whole < samples and not drop_last:
        batches.append(order[whole:])
    return batches


def _cuts(blocks: Sequence[np.ndarray], whole: int, batch_size: int) -> list[int]:
    """Where in the order sorting windows must end: around each batch that reaches from one block into the next."""
    ends = np.cumsum([len(block) for block in blocks])
    around = {place for end in ends.tolist() for place in (end - end % batch_size, end + -end % batch_size)}
    return sorted({0, whole} | {place for place in around if place < whole})


def blocks_of(sizes: Sequence[int], shards: int, *, seed: int, taken: np.ndarray | None = None) -> list[np.ndarray]:
    """The samples of so many shards at a time, which shards being drawn from the seed: the same in every epoch.

    Args:
        sizes: samples of each shard; samples are numbered through them.
        shards: in a block; 0 = no blocks (an empty list).
        taken: numbers of the samples that an epoch takes, rising, repeated ones too; None = each once.

    Returns:
        for each block of which any sample was taken, the places of those in `taken`, rising.
    """
    if not shards:
        return []
    drawn = np.random.default_rng([seed]).permutation(np.flatnonzero(sizes))  # empty shards have no place in any
    of_shard = np.zeros(len(sizes), dtype=np.int64)
    of_shard[drawn] = np.arange(len(drawn)) // shards
    blocks = np.repeat(of_shard, sizes)
    if taken is not None:
        blocks = blocks[taken]
    places = np.argsort(blocks, kind="stable")
    return np.split(places, np.flatnonzero(np.diff(blocks[places])) + 1)


def shuffled_blocks(blocks: Sequence[np.ndarray], generator: np.random.Generator) -> list[np.ndarray]:
    """The blocks in random order, each with its samples in random order."""
    return [generator.permutation(blocks[number]) for number in generator.permutation(len(blocks))]


def rank_steps(
    batches: Iterable[Sequence[BatchRow]] | Iterable[np.ndarray], *, world_size: int, rank: int, micro_batch: int = 0
) -> list[Step]:
    """What one rank takes at every step of the epoch.

    Rank r takes rows r, r + world_size, ..., so that each rank gets short and long rows alike; a rank's share is then
    cut into `micro_batch` neighbours (of like length) to be accumulated. The number of steps is the same on all ranks.

    Args:
        batches: from `plan_epoch` or `plan_packed_epoch`.
        micro_batch: most rows in a step; 0 = a rank's whole share.
    """
    steps = []
    for batch in batches:
        rows = batch.tolist() if isinstance(batch, np.ndarray) else batch
        share = rows[rank::world_size]
        count = steps_per_batch(len(rows), world_size=world_size, micro_batch=micro_batch)
        parts = np.array_split(np.arange(len(share)), count)
        steps += [_step([share[n] for n in part]) if len(part) else _idle_step(rows) for part in parts]
    return steps


def _step(rows: Sequence[Any]) -> Step:
    """Of samples, or of packed rows."""
    if isinstance(rows[0], int):
        return Step(tuple(rows))
    return Step(tuple(chain.from_iterable(rows)), packs=tuple(map(len, rows)))


def _idle_step(rows: Sequence[BatchRow]) -> Step:
    return Step(_step(rows[:1]).samples[:1], idle=True)


def steps_per_batch(batch_size: int, *, world_size: int, micro_batch: int = 0) -> int:
    """Steps in which a global batch is accumulated, on every rank."""
    share = math.ceil(batch_size / world_size)
    return math.ceil(share / micro_batch) if micro_batch else 1
