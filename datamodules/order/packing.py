"""Several conversations in one row: which share one, and how long each is.

Rows hold at most `budget` tokens, visual tokens included. The model keeps the conversations of a row apart by `seq_idx`
(collate.py), so a row has the loss of its conversations on their own, and what shares a row is a matter of speed alone.

Rows are filled one after another: the longest conversation left, then those of the others that together come closest
to the budget, found exactly (the minimum-bin-slack rule of Gupta and Ho, 1999, on the histogram of lengths). How full
the rows come out depends on the lengths alone, and conversations of one length can stand for each other (Krell et al.,
arXiv 2107.02027): so the shapes of the rows, and with them their number, are the same in every epoch, while each epoch
assigns the conversations of a length to the places of that length anew.

A budget of five times the median length or more leaves hardly any padding; where three conversations fit and a third of
a fourth, no planner can fill the rest.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ablate.core.errors import UserError
from datamodules.order.plan import shuffled_blocks

# A finer unit than this share of the budget is not worth its time, which grows with the square: lengths are rounded up
# to it. Of 4096 tokens it is 4, and a row of six conversations loses 9 on average.
UNITS = 1024

Shape = tuple[int, ...]  # the lengths in a row, longest first


# Of several ways to fill a row equally well, which lengths to take: (lengths, rising; their mean) -> the same with the
# best last. None is best for every histogram, so all are tried.
PREFERENCES: dict[str, Callable[[list[int], float], list[int]]] = {
    "nearest the mean": lambda lengths, mean: sorted(lengths, key=lambda length: -abs(length - mean)),
    "longest": lambda lengths, mean: lengths,
    "shortest": lambda lengths, mean: lengths[::-1],
}


def row_shapes(histogram: Mapping[int, int], budget: int) -> list[tuple[Shape, int]]:
    """How to fill rows: (lengths that share a row, number of such rows); of the `PREFERENCES`, what takes fewest rows.

    Args:
        histogram: number of conversations of each length, 1 to `budget`.
    """
    least = -(-sum(length * number for length, number in histogram.items()) // budget)
    best: list[tuple[Shape, int]] = []
    rows = math.inf
    for preference in PREFERENCES.values():
        shapes = fill_rows(histogram, budget, preference)
        if (taken := sum(times for _, times in shapes)) < rows:
            best, rows = shapes, taken
        if rows <= least:
            break
    return best


def fill_rows(
    histogram: Mapping[int, int], budget: int, preference: Callable[[list[int], float], list[int]]
) -> list[tuple[Shape, int]]:
    """The longest first, then what fills its row best, until nothing is left; arguments and result as `row_shapes`."""
    left = {length: number for length, number in sorted(histogram.items()) if number}
    tokens, samples = sum(length * number for length, number in left.items()), sum(left.values())
    shapes = []
    while left:
        longest = next(reversed(left))
        left[longest] -= 1
        mean = (tokens - longest) / max(1, samples - 1)
        rest = _closest_sum(left, budget - longest, preference(list(left), mean))
        left[longest] += 1
        shape = (longest, *rest)
        uses = Counter(shape)
        times = min(left[length] // used for length, used in uses.items())
        for length, used in uses.items():
            left[length] -= times * used
            if not left[length]:
                del left[length]
        tokens -= times * sum(shape)
        samples -= times * len(shape)
        shapes.append((shape, times))
    return shapes


def _closest_sum(left: Mapping[int, int], space: int, order: Sequence[int]) -> list[int]:
    """Of the lengths left, those that fill the space best; of several ways, with as many of the last in `order`."""
    usable = [length for length in order if left[length] and length <= space]
    reachable = [1]  # bit s of entry n: the first n lengths can add up to s
    within = (1 << (space + 1)) - 1
    for length in usable:
        sums = reachable[-1]
        for _ in range(min(left[length], space // length)):
            sums |= (sums << length) & within
        reachable.append(sums)
    total = reachable[-1].bit_length() - 1
    chosen = []
    for length, before in zip(reversed(usable), reversed(reachable[:-1]), strict=True):
        most = min(left[length], total // length)
        used = next(n for n in range(most, -1, -1) if before >> (total - n * length) & 1)
        chosen += [length] * used
        total -= used * length
    return chosen


def plan_packed_epoch(
    lengths: np.ndarray,
    *,
    budget: int,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    drop_last: bool = False,
    blocks: Sequence[np.ndarray] = (),
) -> list[list[tuple[int, ...]]]:
    """The global batches of an epoch, each a list of rows, each row the numbers of its samples.

    Every sample is in one row exactly; the number of rows is the same in every epoch.

    Args:
        lengths: (samples,) int, exact, at least 1.
        budget: most tokens in a row.
        batch_size: rows in a global batch; the last one may have fewer.
        shuffle: False keeps the samples' order: a row ends where the next sample does not fit.
        drop_last: leave the smaller last batch out.
        blocks: from `plan.blocks_of`: samples share a row only with others of their block.

    Raises:
        UserError: a sample is longer than the budget.
    """
    if len(lengths) and lengths.max() > budget:
        raise UserError(
            f"Sample {int(lengths.argmax())} has {int(lengths.max())} tokens, more than packing={budget}. Raise "
            "packing, or lower max_length."
        )
    if shuffle:
        generator = np.random.default_rng([seed, epoch])
        order = shuffled_blocks(blocks or [np.arange(len(lengths))], generator)
        rows = [row for block in order for row in _packed_block(block, lengths, budget, generator)]
    else:
        rows = _in_order(lengths, budget)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return batches[:-1] if drop_last and batches and len(batches[-1]) < batch_size else batches


def packed_padding(rows: Sequence[Sequence[int]], lengths: np.ndarray, budget: int) -> float:
    """Share of the rows' tokens that would be padding if every row were filled up to the budget: 0 to 1."""
    return 1 - sum(int(lengths[list(row)].sum()) for row in rows) / (len(rows) * budget) if rows else 0.0


def _packed_block(
    block: np.ndarray, lengths: np.ndarray, budget: int, generator: np.random.Generator
) -> list[tuple[int, ...]]:
    """The rows of a block in random order; `block` is in random order already."""
    unit = -(-budget // UNITS)
    units = -(-lengths[block] // unit)
    values, numbers = np.unique(units, return_counts=True)
    by_length = np.split(block[np.argsort(units, kind="stable")], np.cumsum(numbers)[:-1])
    waiting = dict(zip(values.tolist(), (samples.tolist() for samples in by_length), strict=True))
    shapes = _shapes_of(tuple(zip(values.tolist(), numbers.tolist(), strict=True)), budget // unit)
    rows = [tuple(waiting[length].pop() for length in shape) for shape, times in shapes for _ in range(times)]
    return [rows[number] for number in generator.permutation(len(rows))]


@lru_cache(maxsize=4096)  # one for each block
def _shapes_of(histogram: tuple[tuple[int, int], ...], budget: int) -> list[tuple[Shape, int]]:
    """`row_shapes`, which are the same in every epoch."""
    return row_shapes(dict(histogram), budget)


def _in_order(lengths: np.ndarray, budget: int) -> list[tuple[int, ...]]:
    starts, space = [0], budget
    for sample, length in enumerate(lengths.tolist()):
        if length > space:
            starts.append(sample)
            space = budget
        space -= length
    return [tuple(range(start, end)) for start, end in pairwise([*starts, len(lengths)])]
