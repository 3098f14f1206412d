"""Packed rows: every conversation in one, none over the budget, hardly any padding, as many in every epoch."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.functional import to_tensor

from ablate.core.errors import UserError
from datamodules.batches.loader import StepDataset
from datamodules.config import DataConfig
from datamodules.errors import BadSample
from datamodules.llava import LlavaDataModule
from datamodules.order.mixture import Source
from datamodules.order.packing import PREFERENCES, fill_rows, packed_padding, plan_packed_epoch, row_shapes
from datamodules.order.plan import Step, blocks_of, rank_steps
from datamodules.shards.reader import write_shards

BUDGET = 100
VISUAL = 6
lengths_of = st.lists(st.integers(1, BUDGET), min_size=1, max_size=120).map(np.array)
orders = st.fixed_dictionaries(
    {"batch_size": st.integers(1, 9), "seed": st.integers(0, 2**40), "shuffle": st.booleans()}
)


def rows_of(lengths, **plan):
    return [row for batch in plan_packed_epoch(lengths, budget=BUDGET, **plan) for row in batch]


@given(lengths=lengths_of, order=orders, epoch=st.integers(0, 1000))
def test_every_sample_in_one_row_and_no_row_over_the_budget(lengths, order, epoch):
    batches = plan_packed_epoch(lengths, budget=BUDGET, epoch=epoch, **order)
    rows = [row for batch in batches for row in batch]
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(row and lengths[list(row)].sum() <= BUDGET for row in rows)
    assert all(len(batch) == order["batch_size"] for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= order["batch_size"]


@given(lengths=lengths_of, order=orders, sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_as_many_rows_in_every_epoch(lengths, order, sizes):
    """Lightning asks for the number of steps once."""
    assert len({len(rows_of(lengths, epoch=epoch, **order)) for epoch in range(3)}) == 1
    assert rows_of(lengths, epoch=1, **order) == rows_of(lengths, epoch=1, **order)
    lengths = np.resize(lengths, sum(sizes))
    blocks = blocks_of(sizes, 2, seed=order["seed"])
    assert len({len(rows_of(lengths, epoch=epoch, blocks=blocks, **order)) for epoch in range(3)}) == 1


@given(lengths=lengths_of, order=orders, world_size=st.integers(1, 5), micro_batch=st.integers(0, 3))
def test_ranks_share_the_rows_and_stay_in_step(lengths, order, world_size, micro_batch):
    batches = plan_packed_epoch(lengths, budget=BUDGET, epoch=0, **order)
    ranks = [rank_steps(batches, world_size=world_size, rank=r, micro_batch=micro_batch) for r in range(world_size)]
    assert len({len(steps) for steps in ranks}) == 1
    dealt = []
    for step in (step for steps in ranks for step in steps if not step.idle):
        assert sum(step.packs) == len(step.samples)
        assert not micro_batch or len(step.packs) <= micro_batch
        ends = np.cumsum([0, *step.packs])
        dealt += [step.samples[a:b] for a, b in pairwise(ends)]
    assert sorted(dealt) == sorted(row for batch in batches for row in batch)


def test_a_rank_without_a_row_is_idle():
    steps = [rank_steps([[(4, 2), (7,)]], world_size=3, rank=rank) for rank in range(3)]
    assert steps == [[Step((4, 2), packs=(2,))], [Step((7,), packs=(1,))], [Step((4,), idle=True)]]


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8), shards=st.integers(1, 4), seed=st.integers(0, 99))
def test_rows_keep_to_their_block(sizes, shards, seed):
    lengths = np.random.default_rng(seed).integers(1, 60, sum(sizes))
    blocks = blocks_of(sizes, shards, seed=seed)
    of_sample = {int(sample): number for number, block in enumerate(blocks) for sample in block}
    rows = rows_of(lengths, batch_size=4, seed=seed, epoch=1, blocks=blocks)
    visited = [{of_sample[sample] for sample in row} for row in rows]
    assert all(len(blocks_of_row) == 1 for blocks_of_row in visited)
    order = [next(iter(of_row)) for of_row in visited]
    assert len([n for n, before in zip(order, [None, *order], strict=False) if n != before]) == len(blocks)


@pytest.mark.parametrize(
    ("histogram", "budget", "shapes"),
    [
        ({8: 1, 3: 1, 2: 1}, 10, [((8, 2), 1), ((3,), 1)]),
        ({60: 1, 55: 1, 45: 1, 40: 1}, 100, [((60, 40), 1), ((55, 45), 1)]),
        ({6: 4, 2: 4, 1: 4}, 9, [((6, 2, 1), 4)]),
        ({5: 3}, 10, [((5, 5), 1), ((5,), 1)]),
        ({7: 1, 4: 1, 3: 2}, 14, [((7, 4, 3), 1), ((3,), 1)]),
        ({}, 10, []),
    ],
)
def test_rows_are_filled_as_far_as_they_can_be(histogram, budget, shapes):
    assert fill_rows(histogram, budget, PREFERENCES["longest"]) == shapes


def test_the_way_with_the_fewest_rows_is_taken():
    histogram = {7: 1, 6: 1, 5: 1, 4: 2, 3: 3, 2: 3}
    ways = [fill_rows(histogram, 12, preference) for preference in PREFERENCES.values()]
    assert sum(n for _, n in row_shapes(histogram, 12)) == min(sum(n for _, n in way) for way in ways)


@given(lengths=lengths_of)
def test_the_first_row_is_as_full_as_any_with_the_longest(lengths):
    values, numbers = np.unique(lengths, return_counts=True)
    (longest, *rest), _ = row_shapes(dict(zip(values.tolist(), numbers.tolist(), strict=True)), BUDGET)[0]
    assert longest == lengths.max()
    sums = {0}
    for length in sorted(lengths.tolist())[:-1]:
        sums |= {total + length for total in sums}
    assert sum(rest) == max(total for total in sums if total <= BUDGET - longest)


def test_large_budgets_are_planned_in_larger_units():
    lengths = np.random.default_rng(0).integers(1000, 32768, 2000)
    batches = plan_packed_epoch(lengths, budget=65536, batch_size=4, seed=0, epoch=0)
    rows = [row for batch in batches for row in batch]
    assert sorted(sample for row in rows for sample in row) == list(range(2000))
    assert max(lengths[list(row)].sum() for row in rows) <= 65536
    assert packed_padding(rows, lengths, 65536) < 0.03


def test_epochs_deal_samples_of_one_length_anew():
    lengths = np.repeat([10, 30, 60], 50)
    mates = [frozenset(map(frozenset, rows_of(lengths, batch_size=4, seed=0, epoch=e))) for e in range(3)]
    assert len(set(mates)) == 3


@pytest.mark.parametrize(
    ("median", "sigma", "visual", "budget"),
    [(85, 0.2, 49, 1024), (60, 1.0, 576, 4096), (60, 1.0, 729, 4096)],
    ids=["demo", "LLaVA at 336 px", "ML-Mamba"],
)
def test_hardly_any_padding(median, sigma, visual, budget):
    generator = np.random.default_rng(0)
    lengths = np.minimum(visual + generator.lognormal(np.log(median), sigma, 20_000), 2048).astype(int)
    lengths = np.minimum(lengths, budget)
    batches = plan_packed_epoch(lengths, budget=budget, batch_size=8, seed=0, epoch=0)
    rows = [row for batch in batches for row in batch]
    assert packed_padding(rows, lengths, budget) < 0.03


def test_without_shuffle_rows_follow_the_samples():
    rows = rows_of(np.array([50, 50, 1, 99, 30]), batch_size=2, seed=0, epoch=3, shuffle=False)
    assert rows == [(0, 1), (2, 3), (4,)]


def test_the_smaller_last_batch_can_be_left_out():
    plan = {"budget": 10, "batch_size": 2, "seed": 0, "epoch": 0}
    lengths = np.full(5, 9)
    assert [len(batch) for batch in plan_packed_epoch(lengths, **plan)] == [2, 2, 1]
    assert [len(batch) for batch in plan_packed_epoch(lengths, **plan, drop_last=True)] == [2, 2]


def test_a_sample_over_the_budget_is_named():
    with pytest.raises(UserError, match="Sample 1 has 101 tokens, more than packing=100"):
        rows_of(np.array([3, 101]), batch_size=1, seed=0, epoch=0)


# Through the data module


@pytest.fixture
def make_packed(shard_folder, tokenizer, tmp_path):
    def make(*, rank=None, world_size=None, **settings):
        settings = {"shards": [str(shard_folder)], "batch_size": 2, "packing": 256, "max_length": 200} | settings
        config = DataConfig(**settings, cache_dir=str(tmp_path / "cache"))
        data = LlavaDataModule(config, rank=rank, world_size=world_size)
        data.connect(tokenizer, [lambda image: to_tensor(image.resize((4, 4)))], VISUAL)
        return data

    return make


def test_a_source_in_part_cannot_be_packed(make_packed, shard_folder):
    """Each epoch would have another number of rows, and Lightning asks for the number once."""
    part = [Source([str(shard_folder)], 1.5)]
    with pytest.raises(UserError, match=r"whole weights, got 1\.5.*packing to 0"):
        make_packed(sources=part).train_dataloader()


def test_sources_of_whole_weights_are_packed(make_packed, shard_folder):
    data = make_packed(sources=[Source([str(shard_folder)], 2.0)])
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.set_epoch(epoch)
        times = Counter(key for batch in loader for key in batch["keys"])
        assert len(times) == len(data.shards)
        assert set(times.values()) == {2}
        assert len(loader) == loader.batches == data.batches_per_epoch()


def test_packed_batches_hold_every_conversation_whole(make_packed):
    data = make_packed()
    images, seen = 0, []
    for batch in data.train_dataloader():
        assert batch["input_ids"].shape[1] <= 256
        assert len(batch["input_ids"]) <= 2
        for place, key in enumerate(batch["keys"]):
            row = data.dataset.row(int(key.split(":")[1]))
            mine = (batch["seq_idx"] == place) & batch["mask"]
            assert batch["input_ids"][mine].tolist() == row.input_ids
            assert batch["labels"][mine].tolist() == row.labels
            if row.images is not None:
                torch.testing.assert_close(batch["images"][0][images], row.images[0])
                images += 1
        assert images == sum(len(per_encoder) for per_encoder in batch.get("images", []))
        images, seen = 0, seen + batch["keys"]
    assert sorted(seen) == sorted(data.shards.key(index) for index in range(61))
    assert "61 conversations in" in data.packing_summary()


def test_ranks_and_epochs_take_as_many_steps(make_packed):
    loaders = [make_packed(rank=rank, world_size=2, micro_batch=1).train_dataloader() for rank in range(2)]
    batches = make_packed().batches_per_epoch()
    for epoch in range(3):
        for loader in loaders:
            loader.set_epoch(epoch)
        assert len(loaders[0]) == len(loaders[1]) == loaders[0].batches == batches


def test_a_bad_conversation_leaves_its_row_to_the_others(make_packed, samples, tmp_path, make_image):
    changed = list(samples)
    changed[3] = (samples[3][0] | {"conversations": samples[3][0]["conversations"][:1]}, samples[3][1])
    changed[7] = (samples[7][0], make_image(99, "png")[:300])
    write_shards(changed, tmp_path / "bad")
    data = make_packed(shards=[str(tmp_path / "bad")], on_bad_sample="skip", max_bad_share=0.1)
    found = [key for batch in data.train_dataloader() for key in batch["keys"]]
    assert len(found) == len(set(found)) == 59
    assert len(data.report.skipped) == 2
    with pytest.raises(BadSample, match="000000003"):
        make_packed(shards=[str(tmp_path / "bad")]).train_dataloader()


def test_tokens_are_counted_once_and_exactly(make_packed, tmp_path, monkeypatch):
    data = make_packed(num_workers=2)
    lengths = data.lengths()
    assert lengths.tolist() == [len(data.dataset.row(index).input_ids) for index in range(61)]
    monkeypatch.setattr(StepDataset, "tokens", None)
    assert make_packed().lengths().tolist() == lengths.tolist()
    (kept,) = (tmp_path / "cache").glob("*.npy")
    kept.write_bytes(kept.read_bytes()[:100])
    monkeypatch.undo()
    assert make_packed().lengths().tolist() == lengths.tolist()
    assert make_packed(max_length=60).lengths().max() == 60  # other settings, other counts


def test_a_row_must_hold_the_longest_conversation():
    with pytest.raises(UserError, match="packing is 100, less than max_length, 2048"):
        DataConfig(packing=100)
