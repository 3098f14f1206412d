"""One tower, or several side by side, as a grid of features for a connector.

The paper's encoder is [DINOv2 ; SigLIP] at 384 px, the last block but one of each (ML-Mamba, arXiv 2407.19832, after
Prismatic, arXiv 2402.07865):

    EncoderConfig(
        names=["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_384.webli"],
        layer=[-2, -2],
        image_size=[378, 384],  # 27 x 27 patches each
    )
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ablate.core.config import LATER
from ablate.core.errors import UserError, unknown_name
from ablate.core.fields import AnyInt, CountOrZero
from ablate.model.encoders.base import Preprocessing, Tower, TowerSettings, registry
from ablate.ssm.precision import connected_zero

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class EncoderConfig:
    """One encoder, or several whose features are concatenated on the channel in this order.

    The lists hold one entry per name, or are empty for the defaults.

    names: models of timm, or of the families that `family` names.
    weights: "pretrained" or "" (from the hub), "random", or a path to .safetensors, .pth or .bin, or to their folder.
    layer: an integer is a block (ViT) or a stage (CNN) as in timm's `forward_intermediates`, from the end if negative;
        "final" is what `forward_features` returns; any other name is a submodule's output. Default -1. Tokens that are
        not patches (class, registers) are left out, and no norm is applied after a block.
    image_size: side of the square input in pixels; 0 for the encoder's own.
    preprocessing: see `Preprocessing`.
    precision: "float32", "bfloat16", "float16", or "auto": half precision where this machine is faster with it.
    frozen: always run without gradient and in eval mode.
    family: registered encoder families, see `ablate list encoders`; empty for timm.
    fields: the families' own fields.
    """

    names: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    layer: list[AnyInt | str] = field(default_factory=list)
    image_size: list[CountOrZero] = field(default_factory=list)
    preprocessing: list[Preprocessing] = field(default_factory=list)
    precision: str = "auto"
    frozen: bool = True
    family: list[str] = field(default_factory=list, metadata=LATER)
    fields: list[dict[str, Any]] = field(default_factory=list, metadata=LATER)


class VisionEncoder(nn.Module):
    """Towers side by side: one list of images per tower -> features (b, h, w, dim), concatenated on the channel.

    Where grids differ, the features are resized (bilinear) to the first tower's grid.

    Attributes:
        grid: (h, w) of the features. dims: the channels of each tower. dim: of all together.
        transforms: each tower's preprocessing, PIL image -> tensor (3, H, W), in the order of the towers.
    """

    def __init__(self, towers: Sequence[Tower], *, frozen: bool = True) -> None:
        super().__init__()
        self.towers: Any = nn.ModuleList(towers)
        self.frozen = frozen
        self.grid: tuple[int, int] = towers[0].grid
        self.dims = tuple(tower.dim for tower in towers)
        self.dim = sum(self.dims)
        self._keys: list[dict[str, Any]] | None = None
        if frozen:
            self.requires_grad_(False)
            self.train()

    @property
    def transforms(self) -> list[Callable[[Image.Image], Tensor]]:
        return [tower.transform for tower in self.towers]

    def train(self, mode: bool = True) -> VisionEncoder:
        """A frozen encoder stays in eval mode: its batch statistics and dropout must not change the features."""
        return super().train(mode and not self.frozen)

    def forward(self, images: list[Tensor]) -> Tensor:
        """images: one tensor (b, 3, H, W) per tower -> (b, h, w, dim) in the towers' dtype."""
        if len(images) != len(self.towers):
            raise UserError(f"The encoder has {len(self.towers)} towers but got images for {len(images)}.")
        sizes = [tower.image_size for tower in self.towers]
        expected = [(len(images[0]), 3, size, size) for size in sizes]
        if [tuple(batch.shape) for batch in images] != expected:
            raise UserError(
                f"The encoder got images of shape {', '.join(str(tuple(batch.shape)) for batch in images)}, expected "
                f"{', '.join(map(str, expected))}: make them with its own transforms."
            )
        if not len(images[0]):  # timm's models cannot
            dtype = next(self.parameters()).dtype
            zero = connected_zero(*(parameter for parameter in self.parameters() if parameter.requires_grad))
            return images[0].new_zeros(0, *self.grid, self.dim, dtype=dtype) + zero.to(dtype)
        device = images[0].device.type
        # The precision is chosen at creation; autocast would change it, and the cached features with it.
        with torch.no_grad() if self.frozen else nullcontext(), torch.autocast(device, enabled=False):
            features = [tower(batch) for tower, batch in zip(self.towers, images, strict=True)]
            features = [_resize(feature, features[0].shape[1:3]) for feature in features]
            fused = features[0] if len(features) == 1 else torch.cat(features, dim=-1)
        if fused.shape[1:] != (*self.grid, self.dim):
            names = ", ".join(tower.name for tower in self.towers)
            raise UserError(
                f"Encoder {names} made features of shape {tuple(fused.shape)}, expected (images, height, width, "
                f"channels) = {(len(fused), *self.grid, self.dim)}, as it was when it was built."
            )
        return fused

    def key_fields(self) -> dict[str, Any]:
        """All that decides the features, as plain data: the key of a cache of frozen features."""
        if self._keys is None or not self.frozen:
            self._keys = [tower.key_fields() for tower in self.towers]
        return {"encoders": self._keys, "grid": list(self.grid)}


def check_encoder(config: EncoderConfig) -> list[dict[str, Any]]:
    """The fields of each encoder's family, typed; nothing is built.

    Raises:
        UserError: an unknown family or field; lists of different lengths.
    """
    families = _one_per_name(config, "family", "timm")
    given = zip(families, _one_per_name(config, "fields", {}), strict=True)
    fields = [registry.check(family, fields) for family, fields in given]
    return fields if config.fields else []


def create_encoder(config: EncoderConfig) -> VisionEncoder:
    """Build the encoder. Random weights are drawn from torch's global generator.

    Raises:
        UserError: an unknown name, layer or precision; lists of different lengths; weights which cannot be had or do
            not fit.
    """
    if not config.names:
        raise UserError("encoder.names is empty: give at least one model of timm, or a name for each encoder.family.")
    dtype = _choose_dtype(config.precision, config.frozen)
    per_tower = zip(
        _one_per_name(config, "family", "timm"),
        _one_per_name(config, "fields", {}),
        config.names,
        _one_per_name(config, "weights", "pretrained"),
        _one_per_name(config, "layer", -1),
        _one_per_name(config, "image_size", 0),
        _one_per_name(config, "preprocessing", Preprocessing()),
        strict=True,
    )
    return VisionEncoder(
        [
            registry.create(family, TowerSettings(name, weights, layer, size, preprocessing, dtype), **fields)
            for family, fields, name, weights, layer, size, preprocessing in per_tower
        ],
        frozen=config.frozen,
    )


def _one_per_name(config: EncoderConfig, name: str, default: Any) -> list[Any]:
    values = list(getattr(config, name))
    if values and len(values) != len(config.names):
        raise UserError(
            f"encoder.{name} has {len(values)} entries for {len(config.names)} encoders ({', '.join(config.names)}): "
            "give one each, or none for the defaults."
        )
    return values or [default] * len(config.names)


def _choose_dtype(precision: str, frozen: bool) -> torch.dtype:
    if precision != "auto":
        if precision not in _PRECISIONS:
            raise unknown_name("encoder precision", precision, ["auto", *_PRECISIONS])
        return _PRECISIONS[precision]
    if not frozen:
        return torch.float32  # small updates would be lost in half-precision weights
    if torch.cuda.is_available():
        # GPUs before Ampere only emulate bfloat16.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Without the instructions, bfloat16 on a CPU is slower than float32.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32


def _resize(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """(b, h, w, c) -> (b, *grid, c), bilinear; antialiased, so that a finer grid is averaged and not sampled."""
    if features.shape[1:3] == grid:
        return features
    resized = F.interpolate(features.permute(0, 3, 1, 2).float(), size=grid, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).to(features.dtype)
