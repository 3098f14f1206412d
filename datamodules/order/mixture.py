"""Several sources in one epoch, each with a weight.

**A weight says how often an epoch takes each sample of the source**: 1 = every sample once, 2 = every sample twice,
0.5 = half of the samples, another half in the next epoch. A source is read in passes over all of its samples, each in a
new random order. An epoch continues where the previous one stopped. So an epoch takes `weight * samples` samples,
rounded, and after any number of epochs no sample of a source has been taken more than once more often than another.
With all weights 1, an epoch is every sample exactly once.

Which samples an epoch takes is decided from (seed, epoch) alone; `plan.py` orders them.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from ablate.core.errors import UserError
from ablate.core.fields import Positive


@dataclass
class Source:
    """Shards that are taken together.

    Attributes:
        shards: folders of shards, or single .tar files.
        weight: how often an epoch takes each sample, above 0.
    """

    shards: list[str] = field(default_factory=list)
    weight: Positive = 1.0

    def __post_init__(self) -> None:
        if not self.shards:
            raise UserError("A source in data.sources has no shards: give at least one folder or .tar file.")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UserError(
                f"The weight of {', '.join(self.shards)} is {self.weight}; it is how often an epoch takes each "
                "sample, so it must be above 0. Leave the source out to take none."
            )


@dataclass(frozen=True)
class Mixture:
    """Sources whose samples are numbered one after the other.

    Attributes:
        sizes: samples of each source.
        weights: how often an epoch takes each of them.
        members: (sum of `sizes`,) int64, rising: the numbers of the samples; None = all from 0 on.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    members: np.ndarray | None = field(default=None, compare=False)

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples of each source in an epoch."""
        return tuple(math.floor(size * weight + 0.5) for size, weight in zip(self.sizes, self.weights, strict=True))

    @property
    def is_constant(self) -> bool:
        """Whether every epoch takes the same samples, each as often."""
        return all(count % size == 0 for size, count in zip(self.sizes, self.counts, strict=True) if size)

    def samples(self, *, seed: int, epoch: int) -> np.ndarray:
        """The sample numbers of an epoch in rising order, (sum of `counts`,) int64; repeated ones are neighbours."""
        taken, start = [], 0
        for source, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            taken.append(start + _stretch(size, epoch * count, count, [seed, source]))
            start += size
        rising = np.sort(np.concatenate(taken))
        return rising if self.members is None else self.members[rising]

    def shares(self) -> list[float]:
        """Each source's share of the samples of an epoch, as realised: they add up to 1."""
        total = sum(self.counts)
        return [count / total for count in self.counts]


def _stretch(size: int, start: int, count: int, seed: list[int]) -> np.ndarray:
    """Elements `start` to `start + count` of the endless row of passes over `size` samples."""
    parts = [np.zeros(0, dtype=np.int64)]
    while count:
        number, skip = divmod(start, size)
        part = np.random.default_rng([*seed, number]).permutation(size)[skip : skip + count]
        parts.append(part)
        start += len(part)
        count -= len(part)
    return np.concatenate(parts)
