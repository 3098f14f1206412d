"""An encoder that is not timm's: random convolutions over patches, a plain `nn.Module`."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ablate.model.encoders import Tower, TowerSettings, register


@dataclass
class Squash:
    """The whole picture, resized to a square, between -1 and 1."""

    size: int

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = np.asarray(image.convert("RGB").resize((self.size, self.size)), dtype=np.float32)
        return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)


@register("patch_statistics")
class PatchStatistics(Tower):
    """Convolutions of stride `patch`, with random weights.

    Args:
        patch: side of a patch, in pixels.
        width: channels of the features.
    """

    test_settings: ClassVar[TowerSettings] = TowerSettings("small", image_size=32)

    def __init__(self, settings: TowerSettings, *, patch: int = 8, width: int = 32) -> None:
        super().__init__(settings)
        self.image_size = settings.image_size or 64
        self.transform = Squash(self.image_size)
        self.grid, self.dim = (self.image_size // patch,) * 2, width
        self.layers = nn.Sequential(nn.Conv2d(3, width, patch, patch), nn.GELU(), nn.Conv2d(width, width, 1))
        self.layers.to(settings.dtype)

    def forward(self, images: Tensor) -> Tensor:
        features = self.layers(images.to(self.settings.dtype))  # (n, width, h, w)
        return features.permute(0, 2, 3, 1)
