"""The feature cache: exact, resumable, and never another encoder's."""

import json
import multiprocessing
import pickle
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors
import torch
from PIL import Image

from ablate.core.errors import UserError
from datamodules.errors import BadSample
from datamodules.images.decode import sha256
from datamodules.images.feature_cache import DTYPES, FeatureCache, break_even_passes, estimate_bytes, image_items

KEY = {"encoder": ["a"], "weights": ["00ff"], "layer": -1, "preprocessing": {"size": 224}}


class Encoder:
    """Features that name their image: the value of its first pixel. Counts calls."""

    def __init__(self, stop_after: int | None = None):
        self.seen = 0
        self.stop_after = stop_after

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        self.seen += len(images)
        if self.stop_after is not None and self.seen > self.stop_after:
            raise KeyboardInterrupt
        values = torch.tensor([float(image.getpixel((0, 0))[0]) for image in images])
        return values[:, None, None, None] + torch.arange(24.0).reshape(1, 2, 3, 4) / 64


def items(count: int, start: int = 0) -> list:
    return [(sha256(bytes([n])), lambda n=n: Image.new("RGB", (4, 4), (n, 0, 0))) for n in range(start, start + count)]


def names(count: int, start: int = 0) -> list[str]:
    return [name for name, _ in items(count, start)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_come_back_as_encoded_in_any_order(tmp_path, dtype):
    cache = FeatureCache(tmp_path, KEY, dtype)
    report = cache.build(items(10), Encoder(), batch_size=3, block_size=4)
    assert (report.encoded, report.present, report.skipped) == (10, 0, [])
    order = [7, 0, 9, 7]
    found = FeatureCache(tmp_path, KEY, dtype).get([names(10)[n] for n in order])
    expected = Encoder()([Image.new("RGB", (4, 4), (n, 0, 0)) for n in order]).to(dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found.zero_()  # a copy: the cache stays as it is
    assert cache.get(names(10)[9:])[0, 0, 0, 0] == 9


def test_building_again_computes_nothing(tmp_path):
    FeatureCache(tmp_path, KEY).build(items(5), Encoder())
    encoder, done = Encoder(), []
    cache = FeatureCache(tmp_path, KEY)
    assert len(cache) == 5
    report = cache.build([*items(7), *items(2)], encoder, done.append)
    assert encoder.seen == 2
    assert (report.encoded, report.present) == (2, 7)
    assert sum(done) == 9


def test_stopped_build_keeps_its_blocks(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path, KEY).build(items(20), Encoder(stop_after=11), batch_size=2, block_size=4)
    cache = FeatureCache(tmp_path, KEY)
    assert len(cache) == 8
    encoder = Encoder()
    cache.build(items(20), encoder, batch_size=2, block_size=4)
    assert encoder.seen == 12
    assert cache.missing(names(20)) == []
    assert cache.get(names(20))[:, 0, 0, 0].tolist() == list(range(20))
    assert not [*tmp_path.glob(".*.tmp"), *(tmp_path / ".locks").iterdir()]


@pytest.mark.parametrize(("dtype", "most"), [("float16", 4e-4), ("bfloat16", 3e-3), ("int8", 1e-2), ("float32", 0)])
def test_what_storing_costs_is_measured(tmp_path, dtype, most):
    features = torch.randn(12, 2, 3, 32, generator=torch.Generator().manual_seed(0))
    cache = FeatureCache(tmp_path, KEY, DTYPES[dtype])
    cache.build(items(12), lambda images: features[[image.getpixel((0, 0))[0] for image in images]], block_size=5)
    again = FeatureCache(tmp_path, KEY, DTYPES[dtype])
    found = again.get(names(12)).float()
    measured = ((found - features).square().mean() / features.square().mean()).sqrt().item()
    assert again.error == pytest.approx(measured, rel=1e-5)
    assert measured <= most
    if dtype == "int8":  # no value is off by more than half a step of its patch
        assert ((found - features).abs() <= features.abs().amax(dim=-1, keepdim=True) / 127 * 0.5001).all()


def test_int8_keeps_zeros_and_the_largest_value(tmp_path):
    features = torch.zeros(1, 1, 2, 4)
    features[0, 0, 1] = torch.tensor([-254.0, 0.0, 2.0, 126.0])
    cache = FeatureCache(tmp_path, KEY, torch.int8)
    cache.build(items(1), lambda _: features)
    assert torch.equal(cache.get(names(1)), features)
    assert estimate_bytes(1, (1, 2), 4, torch.int8) == 2 * (4 + 4)


def stored_images(folder) -> list[str]:
    stored = []
    for path in folder.glob("block-*"):
        with safetensors.safe_open(path, framework="pt") as file:
            stored += json.loads(file.metadata()["images"])
    return stored


def _build_slowly(folder, count, pause=0.002):
    """A builder for another process."""
    encoder = Encoder()

    def slowly(images):
        time.sleep(pause)
        return encoder(images)

    FeatureCache(folder, KEY).build(items(count), slowly, batch_size=2, block_size=3)


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_random_kills_of_several_builders_lose_nothing_and_store_nothing_twice(tmp_path, kills):
    context, draw = multiprocessing.get_context("fork"), random.Random(kills)
    count, pause = (30, 0.002) if kills < 10 else (250, 0.04)
    hit = 0
    for _ in range(kills // 2):
        builders = [context.Process(target=_build_slowly, args=(tmp_path, count, pause)) for _ in range(2)]
        for builder in builders:
            builder.start()
        for builder in draw.sample(builders, 2):
            builder.join(draw.uniform(0, 0.05))
            builder.kill()
            builder.join()
            hit += builder.exitcode == -signal.SIGKILL
    assert hit == kills or kills < 10  # none was done before
    _build_slowly(tmp_path, count)
    cache = FeatureCache(tmp_path, KEY)
    assert cache.missing(names(count)) == []
    assert cache.get(names(count))[:, 0, 0, 0].tolist() == list(range(count))
    stored = stored_images(tmp_path)
    assert len(stored) == len(set(stored)) == count
    assert not [*tmp_path.glob(".block*"), *(tmp_path / ".locks").iterdir()]


def test_several_processes_share_the_work(tmp_path):
    """Whoever comes finds groups to do, and nobody leaves before all are done."""
    context = multiprocessing.get_context("fork")
    builder = context.Process(target=_build_slowly, args=(tmp_path, 60))
    builder.start()
    encoder, cache = Encoder(), FeatureCache(tmp_path, KEY)
    report = cache.build(items(60), encoder, batch_size=2, block_size=3)
    assert cache.missing(names(60)) == []
    builder.join()
    assert builder.exitcode == 0
    assert report.encoded + report.present == 60
    assert sorted(stored_images(tmp_path)) == sorted(names(60))


def test_two_builders_of_one_folder(tmp_path):
    caches = [FeatureCache(tmp_path, KEY) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda n: caches[n].build(items(8, start=4 * n), Encoder(), block_size=3), range(2)))
    assert FeatureCache(tmp_path, KEY).get(names(12))[:, 0, 0, 0].tolist() == list(range(12))
    caches[0].refresh()
    assert len(caches[0]) == 12


@pytest.mark.parametrize(
    ("change", "named"),
    [({"weights": ["1"]}, "weights"), ({"layer": -2}, "layer"), ({"new": 1}, "new: None there, 1 here")],
)
def test_features_of_another_kind_are_refused(tmp_path, change, named):
    FeatureCache(tmp_path, KEY)
    with pytest.raises(UserError, match=named):
        FeatureCache(tmp_path, KEY | change)


def test_another_dtype_is_another_cache(tmp_path):
    FeatureCache(tmp_path, KEY)
    with pytest.raises(UserError, match=r"float16.*bfloat16"):
        FeatureCache(tmp_path, KEY, torch.bfloat16)
    with pytest.raises(UserError, match="int32"):
        FeatureCache(tmp_path, KEY, torch.int32)


def test_key_may_hold_tuples(tmp_path):
    FeatureCache(tmp_path, {"grid": (7, 7)})
    FeatureCache(tmp_path, {"grid": (7, 7)})


def test_unreadable_key(tmp_path):
    (tmp_path / "key.json").write_text("not json")
    with pytest.raises(UserError, match="cannot be used as a feature cache"):
        FeatureCache(tmp_path, KEY)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used as a feature cache"):
        FeatureCache(tmp_path / "file", KEY)


def test_damaged_and_foreign_blocks_are_named(tmp_path):
    cache = FeatureCache(tmp_path / "a", KEY)
    cache.build(items(3), Encoder())
    (block,) = (tmp_path / "a").glob("block-*")
    other = FeatureCache(tmp_path / "b", KEY | {"layer": 3})
    (other.folder / block.name).write_bytes(block.read_bytes())
    with pytest.raises(UserError, match="another cache"):
        other.refresh()
    block.write_bytes(block.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"block-.* is damaged.*Delete it"):
        FeatureCache(tmp_path / "a", KEY)


def test_missing_image_says_how_many(tmp_path):
    cache = FeatureCache(tmp_path, KEY)
    cache.build(items(2), Encoder())
    assert names(1)[0] in cache
    with pytest.raises(UserError, match="lacks 2 of 4 images"):
        cache.get(names(4))


def test_values_too_large_for_float16_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"not finite in float16.*bfloat16"):
        FeatureCache(tmp_path, KEY).build(items(1), lambda images: torch.full((1, 1, 1, 1), 1e6))


def test_features_that_are_no_numbers_are_not_told_to_be_too_large(tmp_path):
    with pytest.raises(UserError, match=r"no numbers .*encoder\.weights"):
        FeatureCache(tmp_path, KEY).build(items(1), lambda images: torch.full((1, 1, 1, 1), float("nan")))


def test_undecodable_image_stops_or_is_counted(tmp_path):
    def broken():
        raise BadSample("a.jpg", "broken")

    with pytest.raises(BadSample, match=r"a\.jpg"):
        FeatureCache(tmp_path, KEY).build([*items(2), ("x", broken)], Encoder())
    cache = FeatureCache(tmp_path, KEY)
    report = cache.build([*items(2), ("x", broken)], Encoder(), on_bad_sample="skip")
    assert [bad.key for bad in report.skipped] == ["a.jpg"]
    assert (len(cache), "x" in cache) == (2, False)


def test_pickled_cache_reads(tmp_path):
    cache = FeatureCache(tmp_path, KEY)
    cache.build(items(3), Encoder())
    cache.get(names(3))
    again = pickle.loads(pickle.dumps(cache))
    torch.testing.assert_close(again.get(names(3)), cache.get(names(3)))


def test_image_files(tmp_path, make_image):
    (tmp_path / "a.jpg").write_bytes(make_image(3))
    ((name, load),) = image_items([tmp_path / "a.jpg"])
    assert name == sha256(make_image(3))
    assert load().size == (32, 24)


def test_predictions():
    assert estimate_bytes(100, (7, 7), 1280) == 100 * 49 * 1280 * 2
    assert estimate_bytes(1, (2, 3), 4, torch.float32) == 96
    assert break_even_passes(10, 1) == pytest.approx(10 / 9)
    assert break_even_passes(10, 5, build_seconds=20) == 4
    assert break_even_passes(1, 1) == float("inf")


def test_estimate_is_the_real_size(tmp_path):
    FeatureCache(tmp_path, KEY).build(items(50), Encoder())
    (block,) = tmp_path.glob("block-*")
    header = 50 * 80
    assert estimate_bytes(50, (2, 3), 4) <= block.stat().st_size <= estimate_bytes(50, (2, 3), 4) + header


def test_features_of_images_decoded_by_another_rule_are_another_cache(tmp_path, monkeypatch):
    before = FeatureCache(tmp_path / "a", {"encoder": "x"}).key
    monkeypatch.setattr("datamodules.images.feature_cache.RGB_RULE", -1)
    assert FeatureCache(tmp_path / "b", {"encoder": "x"}).key != before
