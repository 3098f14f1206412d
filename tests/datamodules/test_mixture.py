"""Sources by weight, and the samples that are skipped."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.config import load
from ablate.errors import UserError
from datamodules.config import DataConfig
from datamodules.llava import LlavaDataModule
from datamodules.mixture import Mixture
from datamodules.rejects import Rejects
from datamodules.shards import write_shards

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=4)
WEIGHTS = st.floats(0.05, 4)


def by_source(mixture: Mixture, samples: np.ndarray) -> list[np.ndarray]:
    """How often each sample of each source is taken."""
    counts = np.bincount(samples, minlength=sum(mixture.sizes))
    return np.split(counts, np.cumsum(mixture.sizes)[:-1])


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, data=st.data(), seed=st.integers(0, 9), epochs=st.integers(1, 6))
def test_weights_say_how_often_a_sample_is_taken(sizes, data, seed, epochs):
    weights = data.draw(st.lists(WEIGHTS, min_size=len(sizes), max_size=len(sizes)))
    mixture = Mixture(tuple(sizes), tuple(weights))
    total = np.zeros(sum(sizes), dtype=int)
    for epoch in range(epochs):
        samples = mixture.samples(seed=seed, epoch=epoch)
        assert samples.tolist() == sorted(mixture.samples(seed=seed, epoch=epoch).tolist())
        for taken, size, weight, count in zip(by_source(mixture, samples), sizes, weights, mixture.counts, strict=True):
            assert taken.sum() == count
            assert abs(count - size * weight) <= 0.5
        total += np.bincount(samples, minlength=len(total))
        for taken in np.split(total, np.cumsum(sizes)[:-1]):
            assert taken.max() - taken.min() <= 1
    if sum(mixture.counts):
        assert sum(mixture.shares()) == pytest.approx(1)


@given(sizes=SIZES, seed=st.integers(0, 9), epoch=st.integers(0, 5))
def test_with_weights_of_one_an_epoch_is_every_sample_once(sizes, seed, epoch):
    mixture = Mixture(tuple(sizes), (1.0,) * len(sizes))
    assert mixture.samples(seed=seed, epoch=epoch).tolist() == list(range(sum(sizes)))


def test_seed_and_epoch_choose_the_samples():
    mixture = Mixture((1000,), (0.5,))
    drawn = [mixture.samples(seed=seed, epoch=epoch) for seed, epoch in [(0, 0), (0, 1), (0, 2), (1, 0)]]
    assert sorted([*drawn[0], *drawn[1]]) == list(range(1000))
    assert 200 < len(np.intersect1d(drawn[0], drawn[2])) < 300
    assert 200 < len(np.intersect1d(drawn[0], drawn[3])) < 300


# In the data module


@pytest.fixture
def two_sources(tmp_path, samples):
    write_shards(samples[:20], tmp_path / "a", samples_per_shard=8)
    write_shards(samples[20:50], tmp_path / "b")
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def make(tokenizer, config: DataConfig, **arguments) -> LlavaDataModule:
    data = LlavaDataModule(config, **arguments)
    data.connect(tokenizer, [], 4)
    return data


def taken_of(data: LlavaDataModule, epoch: int) -> list[str]:
    loader = data.train_dataloader()
    loader.set_epoch(epoch)
    return [key for batch in loader for key in batch["keys"]]


def test_an_epoch_has_the_sources_in_their_shares(tokenizer, two_sources):
    overrides = [
        f"sources=[{{shards: [{two_sources[0]}], weight: 2.0}}, {{shards: [{two_sources[1]}], weight: 0.5}}]",
        "batch_size=4",
    ]
    data = make(tokenizer, load(DataConfig, (), overrides))
    assert data.samples_per_epoch == 55
    described = data.describe_sources()
    assert [(each["samples_per_epoch"], each["share"]) for each in described] == [(40, 0.727273), (15, 0.272727)]
    epochs = [taken_of(data, epoch) for epoch in range(2)]
    for taken in epochs:
        assert len(taken) == 55
        assert sum(key.startswith("train-00000.tar:00000000") for key in taken) >= 16
    # Both sources have a train-00000.tar; its last samples are the second source's alone.
    late = [sorted(key for key in taken if int(key.rpartition(":")[2]) >= 20) for taken in epochs]
    assert not set(late[0]) & set(late[1])
    assert len(set(late[0]) | set(late[1])) == 10


def test_blocks_of_shards_change_the_order_and_not_what_is_taken(tokenizer, two_sources):
    sources = f"sources=[{{shards: [{two_sources[0]}], weight: 2.0}}, {{shards: [{two_sources[1]}], weight: 0.5}}]"
    whole, blocks = (
        make(tokenizer, load(DataConfig, (), [sources, "batch_size=4", f"block_shards={shards}"])) for shards in (0, 1)
    )
    for epoch in range(3):
        assert sorted(taken_of(whole, epoch)) == sorted(taken_of(blocks, epoch))
        assert taken_of(whole, epoch) != taken_of(blocks, epoch)


def test_shards_alone_are_one_source_of_weight_one(tokenizer, two_sources):
    alone = make(tokenizer, DataConfig(shards=two_sources, batch_size=4))
    named = make(tokenizer, load(DataConfig, (), [f"sources=[{{shards: {json.dumps(two_sources)}}}]", "batch_size=4"]))
    assert taken_of(alone, 1) == taken_of(named, 1)
    assert named.describe_sources()[0]["share"] == 1.0


def test_another_weight_is_another_order(tokenizer, two_sources):
    def config(weight):
        return load(
            DataConfig, (), [f"sources=[{{shards: {json.dumps(two_sources)}, weight: {weight}}}]", "batch_size=4"]
        )

    state = make(tokenizer, config(1.0)).train_dataloader().state_dict()
    with pytest.raises(UserError, match="mixture"):
        make(tokenizer, config(1.5)).train_dataloader().load_state_dict(state)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[{shards: []}]", "has no shards"),
        ("[{shards: [a], weight: 0}]", "above 0"),
        ("[{shards: [a], weight: .nan}]", "above 0"),
    ],
)
def test_sources_that_are_none(value, message):
    with pytest.raises(UserError, match=message):
        load(DataConfig, (), [f"sources={value}"])
    with pytest.raises(UserError, match="sources"):
        load(DataConfig, (), ["sources=[{shard: [a]}]"])


# Skipped samples


def test_rejects_are_named_once_and_counted_over_attempts(tmp_path):
    path = tmp_path / "run" / "rejects.jsonl"
    rejects = Rejects(path, max_share=0.03, samples=100)
    rejects.add(0, {"a": "torn"})
    rejects.add(0, {"a": "torn", "b": "no answer"})
    with path.open("a") as file:
        file.write('{"epoch": 0, "ke')  # a kill
    again = Rejects(path, max_share=0.03, samples=100)
    assert again.skipped == {"a": "torn", "b": "no answer"}
    again.add(0, {"b": "no answer"})
    again.add(0, {"c": "too large"})
    again.add(1, {"a": "torn"})  # an epoch has a count of its own
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["epoch"], line["key"]) for line in lines] == [(0, "a"), (0, "b"), (0, "c"), (1, "a")]
    with pytest.raises(UserError, match=r"4 of 100 samples.*rejects\.jsonl.*The first: a: torn"):
        again.add(0, {"d": "gone"})
    assert len(path.read_text().splitlines()) == 5


def test_too_many_bad_samples_end_the_run(tokenizer, tmp_path, samples):
    changed = [
        (record | {"conversations": record["conversations"][:1]}, image) if number in (3, 7, 11) else (record, image)
        for number, (record, image) in enumerate(samples)
    ]
    write_shards(changed, tmp_path / "bad")
    path = tmp_path / "rejects.jsonl"

    def data(share):
        config = DataConfig(shards=[str(tmp_path / "bad")], on_bad_sample="skip", max_bad_share=share, batch_size=4)
        return make(tokenizer, config, rejects=path)

    with pytest.raises(UserError, match=r"3 of 61 samples.*max_bad_share allows \(0\.04\).*without an answer"):
        taken_of(data(0.04), 0)
    assert len(path.read_text().splitlines()) == 3
    resumed = data(0.05)
    assert len(taken_of(resumed, 0)) == 58
    assert len(resumed.report.skipped) == len(path.read_text().splitlines()) == 3
    other_rank = make(tokenizer, resumed.config, rejects=path, rank=1, world_size=2)
    other_rank.config.max_bad_share = 0.0
    with pytest.raises(UserError, match=r"of 31 samples.*rejects-rank1\.jsonl"):
        taken_of(other_rank, 0)
