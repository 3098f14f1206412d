"""Stopped anywhere and continued on any number of ranks, a run sees what it would have seen; pure, so many cases."""

import json
from itertools import chain, pairwise
from types import SimpleNamespace

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from datamodules.batches.collate import Row, collate
from datamodules.batches.loader import ORDER, DataReport, EpochLoader
from datamodules.config import DataConfig
from datamodules.order.mixture import Mixture
from datamodules.order.plan import blocks_of, plan_epoch

BUDGET = 40


class Numbers(Dataset):
    """Batches whose keys are the numbers of their samples; shards of the given sizes."""

    def __init__(self, sizes):
        self.shards = SimpleNamespace(shards=[range(size) for size in sizes], digest="d", uses=lambda steps: [])

    def __getitem__(self, step):
        rows = [Row(f"{number} idle" if step.idle else str(number), [1], [1]) for number in step.samples]
        return collate(rows, pad_id=0, packs=step.packs), DataReport()


@st.composite
def worlds(draw):
    """Shards, an order, and some attempts: (ranks, rows at once, global batches until the next stop).

    The first shards are one source, the others another; both have a weight.
    """
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=7).filter(any))
    order = {
        "batch_size": draw(st.integers(5, 9)),
        "seed": draw(st.integers(0, 2**40)),
        "shuffle": draw(st.booleans()),
        "bucket_batches": draw(st.integers(0, 4)),
        "packing": draw(st.sampled_from([0, BUDGET])),
        "block_shards": draw(st.integers(0, 3)),
        "drop_last": False,
    }
    weight = st.integers(1, 2) if order["packing"] else st.sampled_from([0.3, 0.5, 1.0, 1.7, 2.0])
    first = sum(sizes[: draw(st.integers(0, len(sizes)))])
    order["mixture"] = Mixture((first, sum(sizes) - first), (float(draw(weight)), float(draw(weight))))
    assume(sum(order["mixture"].counts))
    attempt = st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 9))
    return sizes, order, draw(st.lists(attempt, min_size=1, max_size=6))


def loaders_of(sizes, order, world_size, micro_batch, state):
    lengths = np.random.default_rng(sum(sizes)).integers(1, BUDGET + 1, sum(sizes))
    config = DataConfig(max_length=BUDGET, micro_batch=micro_batch, **{name: order[name] for name in ORDER})
    fixed = {"seed": order["seed"], "mixture": order["mixture"], "world_size": world_size}
    loaders = [EpochLoader(Numbers(sizes), lengths, config, rank=rank, **fixed) for rank in range(world_size)]
    for loader in loaders:
        if state is not None:
            loader.load_state_dict(json.loads(json.dumps(state)))
            loader.set_epoch(loader.epoch)  # as Lightning does before each epoch
    return loaders


def run(loaders, batches):
    """What all ranks see in so many global batches, each as a set, over as many epochs as that takes."""
    seen = []
    while len(seen) < batches:
        starts = loaders[0]._batch_starts
        first = starts.index(loaders[0].handed_out)
        last = min(first + batches - len(seen), len(starts) - 1)
        assert len({len(loader) for loader in loaders}) == 1  # no rank waits for another at the end
        parts = [[] for _ in range(first, last)]
        for loader in loaders:
            iterator = iter(loader)
            for part, (start, end) in zip(parts, pairwise(starts[first : last + 1]), strict=True):
                for _ in range(start, end):
                    part += [key for key in next(iterator)["keys"] if not key.endswith("idle")]
            if last == len(starts) - 1:
                loader.set_epoch(loader.epoch + 1)
        seen += [sorted(map(int, part)) for part in parts]
    return seen


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_any_stops_and_ranks_see_the_same_global_batches(world):
    sizes, order, attempts = world
    one = loaders_of(sizes, order, 1, 0, None)
    per_epoch = one[0].batches
    straight = run(one, 2 * per_epoch)
    for epoch in range(2):
        whole = straight[epoch * per_epoch : (epoch + 1) * per_epoch]
        taken = order["mixture"].samples(seed=order["seed"], epoch=epoch)
        assert sorted(chain.from_iterable(whole)) == taken.tolist()  # with one source of weight 1, each sample once
    state, seen = None, []
    for world_size, micro_batch, batches in [*attempts, (1, 0, len(straight))]:
        loaders = loaders_of(sizes, order, world_size, micro_batch, state)
        seen += run(loaders, min(batches, len(straight) - len(seen)))
        states = [loader.state_dict() for loader in loaders]
        state = states[-1]
        assert all(other == state for other in states)  # the first rank's checkpoint serves all
    assert seen == straight


@settings(max_examples=60, deadline=None)
@given(worlds(), st.integers(0, 99), st.integers(1, 5), st.integers(0, 3))
def test_a_global_batch_begun_goes_on_or_is_started_over(world, stop, world_size, micro_batch):
    """Stopped between two steps of one batch: the same ranks go on, others begin it again; no weight has learned."""
    sizes, order, attempts = world
    ranks, rows, _ = attempts[0]
    first = loaders_of(sizes, order, ranks, rows, None)[0]
    stop = stop % len(first)
    iterator = iter(first)
    for _ in range(stop):
        next(iterator)
    state = first.state_dict()
    same = loaders_of(sizes, order, ranks, rows, state)[0]
    assert [batch["keys"] for batch in same] == [batch["keys"] for batch in iterator]
    other = loaders_of(sizes, order, world_size, micro_batch, state)[0]
    done = other._batch_starts.index(other.handed_out) if (world_size, micro_batch) != (ranks, rows) else None
    assert done in (None, sum(start <= stop for start in first._batch_starts) - 1)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9), shards=st.integers(1, 4), seed=st.integers(0, 99))
def test_blocks_need_few_shards_at_a_time(sizes, shards, seed):
    blocks = blocks_of(sizes, shards, seed=seed)
    of_sample = np.repeat(np.arange(len(sizes)), sizes)
    orders = []
    for epoch in range(3):
        batches = plan_epoch(np.ones(sum(sizes)), batch_size=1, seed=seed, epoch=epoch, bucket_batches=1, blocks=blocks)
        order = np.concatenate(batches)
        assert sorted(order) == list(range(sum(sizes)))
        cuts = np.cumsum([len(block) for block in blocks if len(block)])
        visited = [set(of_sample[part]) for part in np.split(order, _ends(order, blocks))[:-1]]
        assert all(len(group) <= shards for group in visited)
        assert sum(map(len, visited)) == len(sizes)  # and each shard once
        orders.append(order.tolist())
        assert cuts[-1] == len(order)
    assert sum(sizes) < 9 or orders[0] != orders[1]


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any),
    shards=st.integers(1, 4),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_blocks_of_what_an_epoch_takes_are_those_of_all_samples(sizes, shards, seed, data):
    """Taken once, twice or not at all, samples stay with their block; empty blocks go."""
    taken = np.sort(data.draw(st.lists(st.integers(0, sum(sizes) - 1), min_size=1, max_size=40)))
    found = [taken[places].tolist() for places in blocks_of(sizes, shards, seed=seed, taken=taken)]
    expected = [
        [n for n in taken.tolist() if n in set(block.tolist())] for block in blocks_of(sizes, shards, seed=seed)
    ]
    assert found == [block for block in expected if block]


def _ends(order, blocks):
    """Where each block of the order ends."""
    sizes = {int(sample): len(block) for block in blocks for sample in block}
    ends, place = [], 0
    while place < len(order):
        place += sizes[int(order[place])]
        ends.append(place)
    return ends


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=9),
    shards=st.integers(1, 3),
    batch_size=st.integers(1, 8),
    bucket_batches=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_batches_by_length_stay_within_their_block(sizes, shards, batch_size, bucket_batches, seed):
    """A block is done, but for one batch that reaches over its end, before samples of the next are needed."""
    blocks = blocks_of(sizes, shards, seed=seed)
    lengths = np.random.default_rng(seed).integers(1, 100, sum(sizes))
    plan = {"batch_size": batch_size, "seed": seed, "bucket_batches": bucket_batches}
    batches = plan_epoch(lengths, epoch=0, blocks=blocks, **plan)
    of_sample = {int(sample): number for number, block in enumerate(blocks) for sample in block}
    needed = [{of_sample[int(sample)] for sample in batch} for batch in batches]
    for number, block in enumerate(blocks):
        if len(block):
            places = [place for place, blocks_here in enumerate(needed) if number in blocks_here]
            inner = places[1:-1]
            assert places == list(range(places[0], places[-1] + 1))
            assert all(needed[place] == {number} for place in inner)
