from io import StringIO

import torch
from rich.console import Console

from ablate.model import VisionEncoder, build_vlm
from ablate.training import Reporter, open_cache, train
from ablate.training.features import fill_cache
from datamodules.llava import LlavaDataModule


def test_images_are_encoded_once_for_all_connectors_and_seeds(configure, tmp_path, monkeypatch):
    """The frozen encoder here has the same weights in every run, as a pretrained one has."""
    encoded = []
    forward = VisionEncoder.forward

    def counting(self, images):
        encoded.append(len(images[0]))
        return forward(self, images)

    monkeypatch.setattr(VisionEncoder, "forward", counting)
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


def test_nothing_is_cached_for_an_encoder_that_learns(configure, tmp_path):
    train(configure(f"features.root={tmp_path / 'features'}", "train.stage=full", "encoder.frozen=false"))
    assert not (tmp_path / "features").exists()
