"""Vision encoders from timm: one, or several side by side, as a grid of features for a connector.

The paper's encoder is [DINOv2 ; SigLIP] at 384 px, the last block but one of each (ML-Mamba, arXiv 2407.19832, after
Prismatic, arXiv 2402.07865):

    EncoderConfig(
        names=["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_384.webli"],
        layer=[-2, -2],
        image_size=[378, 384],  # 27 x 27 patches each
    )
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from ablate.core.errors import UserError, nearest, unknown_name
from ablate.core.fields import AnyFloat, AnyInt, CountOrZero, Positive, Share
from ablate.model.weights import check_tensors, find_weights, read_tensors
from ablate.ssm.precision import connected_zero
from datamodules.images.decode import to_rgb

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Preprocessing:
    """How a picture becomes an encoder's input. What is left empty is as the encoder was trained (timm's data config).

    mean, std: of the three channels, for values between 0 and 1.
    interpolation: "bicubic", "bilinear", ...
    crop_pct: share of the resized picture's side that the crop keeps.
    crop_mode: "center" (crop), "squash" (the whole picture, its aspect lost), "border" (the whole picture, padded).
    """

    mean: list[AnyFloat] = field(default_factory=list)
    std: list[Positive] = field(default_factory=list)
    interpolation: str = ""
    crop_pct: Share = 0.0
    crop_mode: str = ""


@dataclass
class EncoderConfig:
    """One encoder, or several whose features are concatenated on the channel in this order.

    The lists hold one entry per name, or are empty for the defaults.

    names: timm models.
    weights: "pretrained" or "" (from the hub), "random", or a path to .safetensors, .pth or .bin, or to their folder.
    layer: an integer is a block (ViT) or a stage (CNN) as in timm's `forward_intermediates`, from the end if negative;
        "final" is what `forward_features` returns; any other name is a submodule's output. Default -1. Tokens that are
        no patches (class, registers) are left out, and no norm is applied behind a block.
    image_size: side of the square input in pixels; 0 for the encoder's own.
    preprocessing: see `Preprocessing`.
    precision: "float32", "bfloat16", "float16", or "auto": half precision where this machine is faster with it.
    frozen: run without gradient and in eval mode, whatever happens around it.
    """

    names: list[str] = field(default_factory=lambda: ["tf_efficientnet_lite0"])
    weights: list[str] = field(default_factory=list)
    layer: list[AnyInt | str] = field(default_factory=list)
    image_size: list[CountOrZero] = field(default_factory=list)
    preprocessing: list[Preprocessing] = field(default_factory=list)
    precision: str = "auto"
    frozen: bool = True


@dataclass
class ImageTransform:
    """PIL image of any mode -> float tensor (3, H, W), ready for one encoder. Picklable, for data loader workers.

    Modes become RGB by `datamodules.images.decode.to_rgb`.
    """

    settings: dict[str, Any]

    def __post_init__(self) -> None:
        self._transform = create_transform(**self.settings)

    def __call__(self, image: Image.Image) -> Tensor:
        return self._transform(to_rgb(image))


class TimmTower(nn.Module):
    """One timm model up to the chosen layer: images (b, 3, H, W) -> (b, h, w, dim) in the tower's dtype.

    Attributes:
        grid: (h, w) of the features. dim: their channels. image_size: the input's side in pixels.
        transform: the preprocessing, PIL image -> tensor (3, H, W).
    """

    def __init__(
        self,
        name: str,
        weights: str,
        layer: int | str,
        image_size: int,
        preprocessing: Preprocessing,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        # timm maps its old names to new ones; under the new one a cache of features serves both.
        name = timm.models.get_deprecated_models().get(name) or name
        self.name, self.layer = name, layer
        model = _create_model(name, weights, image_size)
        data = _data_config(model, image_size, preprocessing)
        self.image_size = data["input_size"][-1]
        self.transform = ImageTransform(data)
        self.prefix_tokens = getattr(model, "num_prefix_tokens", 0)
        self._read = _prune(model, name, layer)
        # Convolutions run faster on channels-last tensors, on the CPU and in half precision on a GPU.
        self.model = model.to(dtype=dtype, memory_format=torch.channels_last)
        self.grid, self.dim = self._shape()

    def forward(self, images: Tensor) -> Tensor:
        images = images.to(next(self.model.parameters()).dtype).contiguous(memory_format=torch.channels_last)
        if isinstance(self._read, int):
            features = self.model.forward_intermediates(
                images, indices=[self._read], stop_early=True, intermediates_only=True, output_fmt="NCHW"
            )[0]
        elif self._read == "final":
            features = self.model.forward_features(images)
        else:
            features = _output_of(self.model, self._read, images)
        return self._to_grid(features, images)

    def _to_grid(self, features: Tensor, images: Tensor) -> Tensor:
        """(b, c, h, w), (b, h, w, c) or tokens (b, n, c) -> (b, h, w, c)."""
        if features.ndim == 4:
            channels_last = isinstance(self._read, str) and getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            return features if channels_last else features.permute(0, 2, 3, 1)
        if features.ndim == 3:
            patches = features[:, self.prefix_tokens :]
            height = round(math.sqrt(patches.shape[1] * images.shape[-2] / images.shape[-1]))
            if height and patches.shape[1] % height == 0:
                return patches.unflatten(1, (height, -1))
        raise UserError(
            f"Layer {self.layer!r} of encoder {self.name} returns shape {tuple(features.shape)}, which is no grid of "
            "features. Choose a block or a stage by its number, or a module whose output is a feature map."
        )

    def _shape(self) -> tuple[tuple[int, int], int]:
        """Grid and channels, found with a pass over tensors without data."""
        tensors = {name: tensor.to("meta") for name, tensor in chain(self.named_parameters(), self.named_buffers())}
        images = torch.empty(1, 3, self.image_size, self.image_size, device="meta")
        was_training = self.training
        try:
            with torch.no_grad():
                features = torch.func.functional_call(self.eval(), tensors, (images,))
        except (AssertionError, RuntimeError) as error:
            raise UserError(f"Encoder {self.name} cannot take images of {self.image_size} px: {error}") from error
        self.train(was_training)
        return tuple(features.shape[1:3]), features.shape[3]


class VisionEncoder(nn.Module):
    """Towers side by side: one list of images per tower -> features (b, h, w, dim), concatenated on the channel.

    Where grids differ, the features are resized (bilinear) to the first tower's grid.

    Attributes:
        grid: (h, w) of the features. dims: the channels of each tower. dim: of all together.
        transforms: each tower's preprocessing, PIL image -> tensor (3, H, W), in the order of the towers.
    """

    def __init__(self, towers: list[TimmTower], *, frozen: bool = True) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.frozen = frozen
        self.grid: tuple[int, int] = towers[0].grid
        self.dims = tuple(tower.dim for tower in towers)
        self.dim = sum(self.dims)
        self._digests: list[str] | None = None
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
        if self._digests is None or not self.frozen:
            self._digests = [_digest(tower.model) for tower in self.towers]
        return {
            "encoders": [
                {
                    "name": tower.name,
                    "weights": digest,
                    "layer": tower.layer,
                    "preprocessing": {key: _plain(value) for key, value in tower.transform.settings.items()},
                    "precision": str(next(tower.model.parameters()).dtype).removeprefix("torch."),
                }
                for tower, digest in zip(self.towers, self._digests, strict=True)
            ],
            "grid": list(self.grid),
        }


def create_encoder(config: EncoderConfig) -> VisionEncoder:
    """Build the encoder. Random weights are drawn from torch's global generator.

    Raises:
        UserError: an unknown name, layer or precision; lists of different lengths; weights which cannot be had or do
            not fit.
    """
    if not config.names:
        raise UserError("encoder.names is empty: give at least one timm model.")
    dtype = _choose_dtype(config.precision, config.frozen)
    per_tower = zip(
        config.names,
        _one_per_name(config, "weights", "pretrained"),
        _one_per_name(config, "layer", -1),
        _one_per_name(config, "image_size", 0),
        _one_per_name(config, "preprocessing", Preprocessing()),
        strict=True,
    )
    return VisionEncoder([TimmTower(*fields, dtype) for fields in per_tower], frozen=config.frozen)


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


def _create_model(name: str, weights: str, image_size: int) -> nn.Module:
    if not timm.is_model(name):
        near = nearest(name.partition(".")[0], timm.list_models())
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"Unknown encoder {name!r}.{hint} timm.list_models() lists all {len(timm.list_models())}.")
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag after the dot
        raise UserError(f"Unknown encoder {name!r}: {error}") from error
    # Models with position embeddings are built for one size; convolutions take any.
    size = {"img_size": image_size} if image_size and config and config.fixed_input_size else {}
    try:
        if weights == "random":
            return timm.create_model(name, **size)
        if weights in ("", "pretrained"):
            return _from_hub(name, config, size)
        return _from_file(name, Path(weights), size)
    except AssertionError as error:
        raise UserError(f"Encoder {name} cannot be built for images of {image_size} px: {error}") from error


def _from_hub(name: str, config: Any, size: dict[str, int]) -> nn.Module:
    advice = f'Put the path of a weights file, or "random", at the place of {name} in encoder.weights.'
    if config is None or not config.has_weights:
        raise UserError(f"There are no pretrained weights for encoder {name}. {advice}")
    unreachable = f"The weights of encoder {name} are not in the local cache and the hub cannot be reached"
    if not _is_cached(config.hf_hub_id) and not _hub_answers():
        raise UserError(f"{unreachable}. {advice}")
    try:
        return timm.create_model(name, pretrained=True, **size)
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise UserError(f"{unreachable}: {error} {advice}") from error


def _is_cached(repository: str | None) -> bool:
    files = ("model.safetensors", "pytorch_model.bin")
    return repository is not None and any(
        isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in files
    )


def _hub_answers() -> bool:
    """One quick question first: asked for a file, the hub's client tries ten times, for most of a minute."""
    try:
        huggingface_hub.utils.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    except Exception:  # the client library, and so the error's class, differs between versions of the hub's package
        return False
    return True


def _from_file(name: str, path: Path, size: dict[str, int]) -> nn.Module:
    path = find_weights(path)
    tensors = read_tensors(path)
    model = timm.create_model(name, **size)
    expected = model.state_dict()
    if tensors.keys() != expected.keys():
        # Another project's names: the same tensors in the order in which the modules were made. A .safetensors file
        # does not keep that order.
        in_order = [t.shape for t in tensors.values()] == [t.shape for t in expected.values()]
        if not in_order or ".safetensors" in path.name:
            return _converted_by_timm(name, path, size, tensors, expected)
        tensors = dict(zip(expected, tensors.values(), strict=True))
    if any(tensors[key].shape != expected[key].shape for key in expected):
        return _converted_by_timm(name, path, size, tensors, expected)
    model.load_state_dict(tensors)
    return model


def _converted_by_timm(
    name: str, path: Path, size: dict[str, int], tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> nn.Module:
    """timm knows the original releases' names, and resizes position embeddings to the image size."""
    if not tensors:
        check_tensors(tensors, expected, path)
    overlay = {"state_dict": timm.models.clean_state_dict(dict(tensors)), "custom_load": False}
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **size)
        model.pretrained_cfg.pop("state_dict", None)  # a second copy of the weights
        return model
    except Exception as error:  # its filters fail in their own ways on tensors they do not know
        check_tensors(tensors, expected, path)
        raise UserError(f"The weights in {path} do not fit encoder {name}: {error}") from error


def _data_config(model: nn.Module, image_size: int, preprocessing: Preprocessing) -> dict[str, Any]:
    given = {key: value for key, value in asdict(preprocessing).items() if value}
    for key in ("mean", "std"):
        if len(given.get(key, (0, 0, 0))) != 3:
            raise UserError(f"encoder.preprocessing {key} is {given[key]}: expected three numbers, one per channel.")
    size = {"input_size": (3, image_size, image_size)} if image_size else {}
    return resolve_model_data_config(model, args=given | size)


def _prune(model: nn.Module, name: str, layer: int | str) -> int | str:
    """Drop what lies behind the layer, and return the layer as `TimmTower.forward` reads it."""
    if isinstance(layer, str):
        model.reset_classifier(0, "")
        modules = [module for module, _ in model.named_modules() if module]
        if layer != "final" and layer not in modules:
            shallow = [module for module in modules if module.count(".") < 2]
            raise unknown_name(f"layer of encoder {name}", layer, ["final", *shallow])
        return layer
    if not hasattr(model, "prune_intermediate_layers"):
        raise UserError(f'Encoder {name} has no numbered layers: set encoder.layer to "final" or to a module\'s name.')
    try:
        return model.prune_intermediate_layers([layer], prune_norm=True, prune_head=True)[0]
    except AssertionError as error:
        raise UserError(f"Encoder {name} has no layer {layer}: {error}.") from error


def _output_of(model: nn.Module, module: str, images: Tensor) -> Tensor:
    outputs = []
    handle = model.get_submodule(module).register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        model.forward_features(images)
    finally:
        handle.remove()
    if not outputs or not isinstance(outputs[-1], Tensor):
        raise UserError(f"Module {module} of the encoder returned no tensor: choose another layer.")
    return outputs[-1]


def _resize(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """(b, h, w, c) -> (b, *grid, c), bilinear; antialiased, so that a finer grid is averaged and not sampled."""
    if features.shape[1:3] == grid:
        return features
    resized = F.interpolate(features.permute(0, 3, 1, 2).float(), size=grid, mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).to(features.dtype)


def _digest(module: nn.Module) -> str:
    """sha256 of the names, dtypes, shapes and bytes of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
