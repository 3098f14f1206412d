"""The contract of an encoder family, and the registry of families."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from ablate.core.errors import UserError, unknown_name
from ablate.core.fields import Positive32, Range, Share
from ablate.core.registry import Registry

# What timm knows, but for "random".
_INTERPOLATIONS = ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest")
_CROP_MODES = ("border", "center", "squash")
_LEAST_CROP = 0.01


@dataclass
class Preprocessing:
    """How a picture becomes an encoder's input. What is left empty is as the encoder was trained (timm's data config).

    mean, std: of the three channels, for values between 0 and 1.
    interpolation: "bicubic", "bilinear", ...
    crop_pct: share of the resized picture's side that the crop keeps.
    crop_mode: "center" (crop), "squash" (the whole picture, its aspect lost), "border" (the whole picture, padded).
    """

    mean: list[Annotated[float, Range(-1e30, 1e30)]] = field(default_factory=list)
    std: list[Positive32] = field(default_factory=list)
    interpolation: str = ""
    crop_pct: Share = 0.0
    crop_mode: str = ""

    def __post_init__(self) -> None:
        for key, choices in (("interpolation", _INTERPOLATIONS), ("crop_mode", _CROP_MODES)):
            if (value := getattr(self, key)) and value not in choices:
                raise unknown_name(key, value, choices)
        if 0 < self.crop_pct < _LEAST_CROP:  # the picture is first made so many times as large
            raise UserError(f"crop_pct is {self.crop_pct}: expected {_LEAST_CROP} to 1, or 0 for the encoder's own")


@dataclass(frozen=True)
class TowerSettings:
    """What `EncoderConfig` says of one tower; empty values mean the family's own."""

    name: str = ""
    weights: str = "random"
    layer: int | str = -1
    image_size: int = 0
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    dtype: torch.dtype = torch.float32


class Tower(nn.Module):
    """One vision encoder: images (n, 3, image_size, image_size) -> features (n, h, w, dim). Base class of all families.

    A subclass takes the settings and then keyword-only fields, which `encoder.fields` sets. It reads the layer that the
    settings name, in their dtype, and refuses with UserError what it does not offer. Random weights are drawn from
    PyTorch's global generator.

    Attributes:
        name: which encoder of the family it is.
        grid: (h, w) of the features. dim: their channels. image_size: the input's side in pixels.
        transform: PIL image of any mode -> float tensor (3, image_size, image_size); picklable, for loader processes.
        test_settings: of a small encoder of the family, for the contract's tests.
    """

    test_settings: ClassVar[TowerSettings] = TowerSettings()

    name: str
    grid: tuple[int, int]
    dim: int
    image_size: int
    transform: Callable[[Image.Image], Tensor]

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.name = settings.name

    def forward(self, images: Tensor) -> Tensor:
        """images (n, 3, image_size, image_size), as `transform` makes them -> (n, *grid, dim)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def key_fields(self) -> dict[str, Any]:
        """All that decides the features, as plain data: part of the key of a cache of frozen features.

        By default the name, a digest of the weights, and the settings; a family whose transform or fields decide more
        adds them.
        """
        own = registry_name(self)
        settings = {key: str(value) for key, value in vars(self.settings).items() if key != "weights"}
        return {"family": own, "name": self.name, "weights": digest(self), "settings": settings}

    @classmethod
    def published(cls, name: str) -> tuple[Mapping[str, Any], Path | None]:
        """What provenance says of the family's own weights for `name`: plain data, and the file if it is here."""
        return {}, None


registry: Registry[type[Tower]] = Registry(
    "encoder", base=Tower, given=("settings",), package="ablate.model.encoders", entry_points="ablate.encoders"
)
register = registry.register
names = registry.names


def registry_name(tower: Tower) -> str:
    return next(name for name in registry.names() if registry.get(name) is type(tower))


def digest(module: nn.Module) -> str:
    """sha256 of the names, dtypes, shapes and bytes of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
