"""Sources by weight, and the samples that are skipped."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.core.config import load
from ablate.core.errors import UserError
from datamodules.batches.rejects import Rejects
from datamodules.config import DataConfig
from datamodules.llava import LlavaDataModule
from datamodules.order.mixture import Mixture
from datamodules.shards.reader import write_shards

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
        # Both sources have a train-00000.tar, which their folders tell apart.
        first = Counter(key for key in taken if key.startswith("a/train-0000"))
        assert len(first) == 20
        assert set(first.values()) == {2}
    second = [{key for key in taken if key.startswith("b/train-00000.tar:")} for taken in epochs]
    assert list(map(len, second)) == [15, 15]
    assert not second[0] & second[1]


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


def test_images_of_an_epoch_are_counted_by_weight(tokenizer, two_sources, tmp_path, samples):
    """The forecast of the feature cache: text alone, however often it is taken, has no image to encode."""
    write_shards(samples[::5], tmp_path / "text")
    images = sum(image is not None for _, image in samples[:20])
    sources = f"sources=[{{shards: [{two_sources[0]}], weight: 1.5}}, {{shards: [{tmp_path}/text], weight: 3.0}}]"
    assert make(tokenizer, load(DataConfig, (), [sources])).images_per_epoch == pytest.approx(1.5 * images)


def test_a_source_of_which_nothing_would_be_taken_is_refused(tokenizer, two_sources):
    sources = f"sources=[{{shards: [{two_sources[0]}], weight: 0.02}}, {{shards: [{two_sources[1]}]}}]"
    with pytest.raises(UserError, match=r"weight of 0\.02, no epoch takes any of the 20 samples.*at least 0\.05"):
        make(tokenizer, load(DataConfig, (), [sources]))


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


def named_in(folder) -> list[tuple[int, str]]:
    """(epoch, key) of every line of every rank."""
    lines = [json.loads(line) for path in sorted(folder.glob("rejects*")) for line in path.read_text().splitlines()]
    return [(line["epoch"], line["key"]) for line in lines]


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
    assert named_in(path.parent) == [(0, "a"), (0, "b"), (0, "c"), (1, "a")]
    with pytest.raises(UserError, match=r"4 of 100 samples.*rejects\.jsonl.*The first: a: torn"):
        again.add(0, {"d": "gone"})
    assert len(path.read_text().splitlines()) == 5
    with pytest.raises(UserError, match="4 of 100 samples"):  # nor does the same command get past them
        Rejects(path, max_share=0.03, samples=100).add(0, {"d": "gone"})


def test_ranks_count_together(tmp_path):
    path = tmp_path / "rejects.jsonl"
    ranks = [Rejects(path, rank=rank, max_share=0.03, samples=100) for rank in range(3)]
    for rank, key in [(0, "a"), (2, "b"), (2, "b"), (1, "c"), (0, "c")]:
        ranks[rank].add(0, {key: "torn"})
    assert sorted(named_in(tmp_path)) == [(0, "a"), (0, "b"), (0, "c")]
    assert all(rejects.skipped.keys() == {"a", "b", "c"} for rejects in ranks)
    with (tmp_path / "rejects-rank2.jsonl").open("a") as file:
        file.write('{"epoch": 0, "ke')  # that rank was killed, and there is none of its number any more
    alone = Rejects(path, max_share=0.03, samples=100)
    alone.add(0, {"b": "torn"})
    with pytest.raises(UserError, match=r"4 of 100.*rejects\.jsonl and .*rank1\.jsonl and .*rank2\.jsonl"):
        alone.add(0, {"d": "torn"})


def test_what_was_skipped_of_data_since_mended_does_not_count(tmp_path):
    path = tmp_path / "rejects.jsonl"
    Rejects(path, data="before", max_share=0.03, samples=100).add(0, {"a": "torn", "b": "torn", "c": "torn"})
    mended = Rejects(path, data="after", max_share=0.03, samples=100)
    mended.add(0, {"d": "torn"})
    assert mended.skipped == {"d": "torn"}


@pytest.fixture
def three_bad(tmp_path, samples):
    changed = [
        (record | {"conversations": record["conversations"][:1]}, image) if number in (3, 7, 11) else (record, image)
        for number, (record, image) in enumerate(samples)
    ]
    write_shards(changed, tmp_path / "bad")
    return str(tmp_path / "bad")


def skipping(folders, share, **settings) -> DataConfig:
    return DataConfig(shards=folders, on_bad_sample="skip", max_bad_share=share, **({"batch_size": 4} | settings))


def test_too_many_bad_samples_end_the_run(tokenizer, tmp_path, three_bad):
    path = tmp_path / "rejects.jsonl"
    with pytest.raises(UserError, match=r"3 of 61 samples.*max_bad_share allows \(0\.04\).*without an answer"):
        taken_of(make(tokenizer, skipping([three_bad], 0.04), rejects=path), 0)
    assert len(named_in(tmp_path)) == 3
    resumed = make(tokenizer, skipping([three_bad], 0.05), rejects=path)
    assert len(taken_of(resumed, 0)) == 58
    assert len(resumed.report.skipped) == len(named_in(tmp_path)) == 3


@pytest.mark.parametrize("share", [0.04, 0.05])
def test_the_share_is_that_of_all_ranks(tokenizer, tmp_path, three_bad, share):
    """3 of 61 are 4.9 %, whichever ranks they fall to: one bad sample of a rank's 8 would be 12.5 %."""
    config = skipping([three_bad], share, batch_size=8)
    path = tmp_path / "rejects.jsonl"
    ranks = [make(tokenizer, config, rank=rank, world_size=8, rejects=path) for rank in range(8)]
    if share == 0.05:
        taken = [key for rank in ranks for key in taken_of(rank, 0) if "(" not in key]
        assert len(taken) == 58
        assert {len(rank.report.skipped) for rank in ranks} == {3}
    else:
        with pytest.raises(UserError, match="3 of 61 samples"):
            list(map(taken_of, ranks, [0] * 8))
    assert len(named_in(tmp_path)) == len(set(named_in(tmp_path))) == 3


def test_a_bad_sample_of_an_idle_step_is_named_by_its_own_rank_alone(tokenizer, tmp_path, samples):
    record, image = samples[3]
    write_shards([(record | {"conversations": record["conversations"][:1]}, image)], tmp_path / "bad")
    for rank in (1, 0):
        data = make(tokenizer, skipping([str(tmp_path / "bad")], 1.0, batch_size=2), rank=rank, world_size=2,
                    rejects=tmp_path / "rejects.jsonl")  # fmt: skip
        taken_of(data, 0)
    assert [path.name for path in tmp_path.glob("rejects*")] == ["rejects.jsonl"]
    assert len(named_in(tmp_path)) == 1


def test_samples_of_one_name_in_two_sources_are_told_apart(tokenizer, tmp_path, three_bad):
    shutil.copytree(three_bad, tmp_path / "copy")
    data = make(tokenizer, skipping([three_bad, str(tmp_path / "copy")], 0.05), rejects=tmp_path / "rejects.jsonl")
    assert len(taken_of(data, 0)) == 2 * 58
    assert len(data.report.skipped) == 6
    assert {key.partition("/")[0] for _, key in named_in(tmp_path)} == {"bad", "copy"}


def test_resumed_on_other_ranks_rejects_are_named_once(tokenizer, tmp_path, three_bad):
    path = tmp_path / "rejects.jsonl"
    config = skipping([three_bad], 0.05)
    ranks = [make(tokenizer, config, rank=rank, world_size=2, rejects=path) for rank in range(2)]
    iterators = [iter(rank.train_dataloader()) for rank in ranks]
    for _ in range(10):
        for iterator in iterators:
            next(iterator)
    state = ranks[0].state_dict()
    state["batch"] -= 3  # a checkpoint somewhat older
    alone = make(tokenizer, config, rejects=path)
    alone.load_state_dict(state)
    taken_of(alone, 0)
    assert len(named_in(tmp_path)) == len(set(named_in(tmp_path))) == 3
