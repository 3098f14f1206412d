import shutil
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from ablate.model import VisionEncoder, build_vlm
from ablate.training import Reporter, RunFiles, features, open_cache, train
from ablate.training.features import fill_cache
from ablate.training.files import read_json
from ablate.training.recorder import Recorder
from datamodules.errors import BadSample
from datamodules.llava import LlavaDataModule


def test_images_are_encoded_once_for_all_connectors_and_seeds(configure, tmp_path, monkeypatch):
    """The frozen encoder here has the same weights in every run, as a pretrained one has."""
    encoded = []
    forward = VisionEncoder.forward

    def counting(self, images):
        encoded.append(len(images[0]))
        return forward(self, images)

    monkeypatch.setattr(VisionEncoder, "forward", counting)
    monkeypatch.setattr(features, "_measure", lambda *_: None)  # which encodes some to see how long it takes
    own = f"features.root={tmp_path / 'features'}"
    train(configure(own))
    images = sum(encoded)
    assert images == 18  # of 22 samples, the others are text alone
    for override in ("connector.name=mlp", "train.stage=align", "blind=true", "train.learning_rate=0.02"):
        train(configure(own, override))
    assert sum(encoded) == images


def test_another_encoder_gets_another_folder(configure, tmp_path):
    folders = set()
    for override in ("seed=0", "seed=1", "encoder.image_size=[32]", "features.dtype=float32"):
        config = configure(f"features.root={tmp_path}", override)
        folders.add(open_cache(config.features, build_vlm(config.model, seed=config.seed).encoder).folder)
    assert len(folders) == 4
    assert all(folder.parent == tmp_path and folder.name.startswith("test_resnet-") for folder in folders)


def test_cached_features_are_those_of_the_encoder(configure, tmp_path):
    config = configure(f"features.root={tmp_path}", "features.dtype=float32", "features.batch_size=5")
    encoder = build_vlm(config.model, seed=0).encoder
    images = dict(LlavaDataModule(config.data).images())
    cache = open_cache(config.features, encoder)
    out = Console(file=StringIO(), width=200)
    fields = {"config": config.features, "device": torch.device("cpu")}
    fill_cache(cache, images.items(), encoder, reporter=Reporter(None, out), **fields)
    for digest, image in list(images.items())[:3]:
        expected = encoder([encoder.transforms[0](image())[None]])
        torch.testing.assert_close(cache.get([digest]), expected, rtol=1e-5, atol=1e-5)
    assert "encoded 18 images" in out.file.getvalue()
    assert "the cache pays from" in out.file.getvalue()


def test_where_nothing_could_be_encoded_no_cost_is_told(configure, tmp_path):
    config = configure(f"features.root={tmp_path}")
    encoder = build_vlm(config.model, seed=0).encoder
    out = Console(file=StringIO(), width=200)

    def damaged():
        raise BadSample("a.tar:1", "it is damaged")

    fields = {"config": config.features, "device": torch.device("cpu"), "on_bad_sample": "skip"}
    fill_cache(
        open_cache(config.features, encoder), [("0" * 64, damaged)], encoder, reporter=Reporter(None, out), **fields
    )
    said = out.file.getvalue()
    assert "skipped Bad sample a.tar:1: it is damaged" in said
    assert "nan" not in said
    assert "cache pays" not in said


def test_nothing_is_cached_for_an_encoder_that_learns(configure, tmp_path):
    train(configure(f"features.root={tmp_path / 'features'}", "train.stage=full", "encoder.frozen=false"))
    assert not (tmp_path / "features").exists()


def decision(configure, tmp_path, *overrides):
    """What a run with these settings says about its features, and what it wrote down."""
    out = Console(file=StringIO(), width=400)
    config = configure(f"features.root={tmp_path / 'features'}", "train.max_steps=2", *overrides)
    folder = train(config, console=out)
    return read_json(RunFiles(folder).features), out.file.getvalue()


def blocks(tmp_path):
    return list((tmp_path / "features").rglob("block-*"))


def test_one_epoch_alone_is_not_worth_a_cache(configure, tmp_path):
    found, said = decision(configure, tmp_path, "features.runs=1")
    assert not found["cached"]
    assert "No cache: each image is encoded once anyway" in said
    assert not blocks(tmp_path)


def test_several_conversations_about_an_image_are_several_passes(configure, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_measure", lambda *_: (1.0, 0.1, 0.1))
    shards = configure().data.shards
    found, said = decision(
        configure,
        tmp_path,
        "train.max_steps=null",
        f"data.sources=[{{shards: {shards}, weight: 3}}]",
        "features.runs=2",
    )
    assert found["passes"] == pytest.approx(3 * 2)
    assert found["cached"]
    assert "and 6 are planned: 3 in each of 2 runs (features.runs)" in said


def test_a_disk_that_is_too_small_leaves_the_cache_off(configure, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    found, said = decision(configure, tmp_path)
    assert not found["cached"]
    assert "No cache: the disk is too small" in said
    assert not blocks(tmp_path)


@pytest.mark.parametrize(("seconds", "cached"), [((1.0, 0.1, 0.5), True), ((1.0, 0.1, 1.5), False), (None, True)])
def test_the_forecast_decides_and_is_told(configure, tmp_path, monkeypatch, seconds, cached):
    monkeypatch.setattr(features, "_measure", lambda *_: seconds)
    found, said = decision(configure, tmp_path)
    assert found["cached"] == cached
    assert bool(blocks(tmp_path)) == cached
    if seconds == (1.0, 0.1, 0.5):
        assert found["break_even"] == pytest.approx(1.1 / 0.5)
        assert (
            "18s to encode, 1.80s to write, 9.00s to read: the cache pays from 2.20 passes over the images on" in said
        )
    if not cached:
        assert "No cache: it would not pay" in said


def test_the_decision_holds_for_every_attempt(configure, tmp_path, monkeypatch):
    """Cached features are rounded: a run that goes on must not see others, whatever the clock says by then."""
    config = configure(f"features.root={tmp_path / 'features'}", "features.runs=1")
    monkeypatch.setattr(Recorder, "_record", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config)
    monkeypatch.undo()
    folder = train(configure(f"features.root={tmp_path / 'features'}", "features.runs=1000"))
    assert not read_json(RunFiles(folder).features)["cached"]
    assert not blocks(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_predicted_disk_is_the_real_one(configure, tmp_path, dtype):
    found, said = decision(configure, tmp_path, f"features.dtype={dtype}")
    size = sum(path.stat().st_size for path in blocks(tmp_path))
    assert found["bytes"] <= size <= found["bytes"] + 5000  # the names of the images
    assert f"kept as {dtype}, features are off by" in said
