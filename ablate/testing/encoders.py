"""The contract of an encoder family, on a small encoder of it, on the CPU."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ablate.model.encoders.base import Tower, registry
from ablate.model.encoders.fused import VisionEncoder

__all__ = ["CHECKS", "Subject", "registry", "subjects"]


@dataclass(frozen=True)
class Subject:
    """A family, by name."""

    name: str

    def make(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tower:
        torch.manual_seed(seed)
        settings = replace(registry.get(self.name).test_settings, dtype=dtype)
        return registry.create(self.name, settings)


def subjects(name: str) -> dict[str, Subject]:
    return {"": Subject(name)}


def features_are_as_declared(subject: Subject) -> None:
    tower = subject.make().eval()
    features = tower(_images(tower))
    assert features.shape == (3, *tower.grid, tower.dim), f"{tuple(features.shape)}, declared {tower.grid}, {tower.dim}"
    assert features.isfinite().all()
    assert not torch.equal(features[0], features[1]), "two images, the same features"


def the_transform_takes_any_picture(subject: Subject) -> None:
    tower = subject.make()
    transform = pickle.loads(pickle.dumps(tower.transform))
    for size in ((40, 30), (8, 100), (1, 1)):
        for mode in ("RGB", "L", "RGBA", "P", "1", "CMYK"):
            pixels = transform(_picture(size).convert(mode))
            expected = (3, tower.image_size, tower.image_size)
            assert pixels.shape == expected, f"{mode} of {size}: {tuple(pixels.shape)}, expected {expected}"
            assert pixels.is_floating_point()


def images_do_not_see_each_other(subject: Subject) -> None:
    tower = subject.make().eval()
    images = _images(tower)
    together, alone = tower(images)[:1], tower(images[:1])
    error = float((together - alone).abs().max() / together.abs().max())
    assert error < 1e-4, f"features differ by {error:.1%} in a batch with other images"


def the_seed_decides_random_weights(subject: Subject) -> None:
    states = [subject.make(seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items()), "same seed, other weights"
    assert any(not torch.equal(tensor, states[2][name]) for name, tensor in states[0].items()), "the seed is not used"


def half_precision_is_near(subject: Subject) -> None:
    tower, half = subject.make().eval(), subject.make(dtype=torch.bfloat16).eval()
    half.load_state_dict(tower.state_dict())
    images = _images(tower)
    features, expected = half(images), tower(images)
    assert features.dtype == torch.bfloat16, f"settings.dtype is bfloat16, the features are {features.dtype}"
    error = float((features.float() - expected).norm() / expected.norm())
    assert error < 0.1, f"features differ by {error:.1%}"


def frozen_it_learns_nothing(subject: Subject) -> None:
    encoder = VisionEncoder([subject.make()], frozen=True).train()
    assert not any(module.training for module in encoder.modules()), "a part of it trains although it is frozen"
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder([_images(encoder.towers[0])])
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items()), "its state changed"


def unfrozen_it_learns(subject: Subject) -> None:
    encoder = VisionEncoder([subject.make()], frozen=False).train()
    encoder([_images(encoder.towers[0])]).square().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())


def the_key_names_what_decides_the_features(subject: Subject) -> None:
    keys = [subject.make(seed).key_fields() for seed in (0, 0, 1)]
    assert keys[0] == keys[1], "two keys for the same features"
    assert keys[0] != keys[2], "the same key for other weights: cached features would be mixed up"


CHECKS: list[Callable[[Subject], None]] = [
    features_are_as_declared,
    the_transform_takes_any_picture,
    images_do_not_see_each_other,
    the_seed_decides_random_weights,
    half_precision_is_near,
    frozen_it_learns_nothing,
    unfrozen_it_learns,
    the_key_names_what_decides_the_features,
]


def _picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Image.open(file)


def _images(tower: Tower) -> Tensor:
    return torch.stack([tower.transform(_picture((40, 30), seed)) for seed in range(3)])
