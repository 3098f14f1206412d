"""The order of an epoch: every sample exactly once, the same global batches on any number of ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.order.plan import (
    Step,
    Steps,
    estimate_lengths,
    plan_epoch,
    rank_steps,
    steps_per_batch,
)

plans = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 17),
        "seed": st.integers(0, 2**40),
        "epoch": st.integers(0, 1000),
        "shuffle": st.booleans(),
        "bucket_batches": st.integers(0, 9),
    }
)
lengths_of = st.lists(st.integers(1, 500), min_size=1, max_size=150).map(np.array)


def learned(steps: list[Step]) -> list[int]:
    return [sample for step in steps if not step.idle for sample in step.samples]


@given(lengths=lengths_of, plan=plans)
def test_every_sample_exactly_once(lengths, plan):
    batches = plan_epoch(lengths, **plan)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(len(batch) == plan["batch_size"] for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= plan["batch_size"]


@given(lengths=lengths_of, plan=plans)
def test_drop_last_drops_only_the_smaller_batch(lengths, plan):
    whole = plan_epoch(lengths, **plan, drop_last=True)
    assert all(len(batch) == plan["batch_size"] for batch in whole)
    for kept, batch in zip(whole, plan_epoch(lengths, **plan), strict=False):
        np.testing.assert_array_equal(kept, batch)
    assert len(whole) == len(lengths) // plan["batch_size"]


@given(lengths=lengths_of, plan=plans, world_size=st.integers(1, 8), micro_batch=st.integers(0, 5))
def test_ranks_share_the_global_batches_and_stay_in_step(lengths, plan, world_size, micro_batch):
    batches = plan_epoch(lengths, **plan)
    ranks = [rank_steps(batches, world_size=world_size, rank=r, micro_batch=micro_batch) for r in range(world_size)]
    assert len({len(steps) for steps in ranks}) == 1
    position = 0
    for batch in batches:
        count = steps_per_batch(len(batch), world_size=world_size, micro_batch=micro_batch)
        parts = [steps[position : position + count] for steps in ranks]
        assert sorted(sample for part in parts for sample in learned(part)) == sorted(batch)
        shares = [len(learned(part)) for part in parts]
        assert max(shares) - min(shares) <= 1
        position += count
    assert position == len(ranks[0])
    for step in (step for steps in ranks for step in steps):
        assert len(step.samples) >= 1
        assert not micro_batch or len(step.samples) <= micro_batch
        assert not step.idle or len(step.samples) == 1


@given(lengths=lengths_of, plan=plans)
def test_one_process_takes_whole_batches_and_is_never_idle(lengths, plan):
    batches = plan_epoch(lengths, **plan)
    assert rank_steps(batches, world_size=1, rank=0) == [Step(tuple(batch.tolist())) for batch in batches]


def test_fewer_samples_than_ranks_leave_ranks_idle_and_drop_nothing():
    steps = [rank_steps([np.array([7, 8])], world_size=4, rank=rank) for rank in range(4)]
    assert steps == [[Step((7,))], [Step((8,))], [Step((7,), idle=True)], [Step((7,), idle=True)]]


def test_order_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(1, 300, 500)

    def order(seed, epoch):
        return np.concatenate(plan_epoch(lengths, batch_size=16, seed=seed, epoch=epoch)).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_order_is_the_same_in_every_version():
    """A changed order would break the resuming of runs made before: change it knowingly."""
    batches = plan_epoch(np.arange(10), batch_size=3, seed=1, epoch=2)
    assert [batch.tolist() for batch in batches] == [[7, 8, 9], [4, 5, 6], [0, 1, 3], [2]]


def test_without_shuffle_the_order_is_that_of_the_shards():
    batches = plan_epoch(np.arange(7), batch_size=3, seed=0, epoch=5, shuffle=False)
    assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_sorting_within_windows_cuts_padding_and_keeps_batches_random(padding_fraction):
    lengths = np.random.default_rng(0).integers(10, 1000, 4096)
    shuffled = plan_epoch(lengths, batch_size=32, seed=0, epoch=0, bucket_batches=1)
    bucketed = plan_epoch(lengths, batch_size=32, seed=0, epoch=0, bucket_batches=64)
    assert padding_fraction(shuffled, lengths) > 0.4
    assert padding_fraction(bucketed, lengths) < 0.02
    longest = [lengths[batch].max() for batch in bucketed[:64]]
    assert abs(np.corrcoef(longest, np.arange(64))[0, 1]) < 0.4


def test_estimated_lengths():
    found = estimate_lengths(
        np.array([40, 40, 8000]),
        np.array([2, 4, 2]),
        np.array([True, False, True]),
        num_visual_tokens=49,
        tokens_per_turn=3,
        max_length=1000,
    )
    assert found.tolist() == [49 + 10 + 6, 10 + 12, 1000]


STEPS = st.builds(
    Step,
    samples=st.lists(st.integers(0, 2**40), min_size=1, max_size=4).map(tuple),
    idle=st.booleans(),
    packs=st.lists(st.integers(1, 9), max_size=3).map(tuple),
)


@given(st.lists(STEPS, max_size=8), st.integers(0, 9))
def test_steps_in_arrays_are_the_steps(steps, done):
    kept = Steps(steps)
    assert list(kept) == steps
    assert list(kept.following(done)) == steps[done:]
    with pytest.raises(IndexError, match=f"of {len(steps)}"):
        kept[len(steps)]
