"""Vision encoders of timm, up to a chosen layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import torch
from PIL import Image
from torch import Tensor, nn

from ablate.core.errors import UserError, nearest, unknown_name
from ablate.model.encoders.base import Preprocessing, Tower, TowerSettings, digest, register
from ablate.model.weights import check_tensors, find_weights, read_tensors
from datamodules.images.decode import to_rgb


def _timm() -> Any:
    """timm, once an encoder is made: importing it takes as long as importing PyTorch."""
    import timm

    return timm


@dataclass
class ImageTransform:
    """PIL image of any mode -> float tensor (3, H, W), ready for one encoder. Picklable, for data loader workers.

    Modes become RGB by `datamodules.images.decode.to_rgb`.
    """

    settings: dict[str, Any]

    def __post_init__(self) -> None:
        self._transform = _timm().data.create_transform(**self.settings)

    def __call__(self, image: Image.Image) -> Tensor:
        return self._transform(to_rgb(image))


@register("timm")
class TimmTower(Tower):
    """A model of timm, up to the chosen layer.

    `layer` is a block (ViT) or a stage (CNN) by number, "final", or the name of a submodule, see `EncoderConfig`.
    """

    test_settings: ClassVar[TowerSettings] = TowerSettings("test_vit", image_size=32)
    transform: ImageTransform

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__(settings)
        # timm maps its old names to new ones; under the new one a cache of features serves both.
        self.name = _timm().models.get_deprecated_models().get(settings.name) or settings.name
        self.layer = settings.layer
        model = _create_model(self.name, settings.weights, settings.image_size)
        data = _data_config(model, settings.image_size, settings.preprocessing)
        self.image_size = data["input_size"][-1]
        self.transform = ImageTransform(data)
        self.prefix_tokens = getattr(model, "num_prefix_tokens", 0)
        self._read = _prune(model, self.name, self.layer)
        # Convolutions run faster on channels-last tensors, on the CPU and in half precision on a GPU.
        self.model: Any = model.to(dtype=settings.dtype).to(memory_format=torch.channels_last)
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

    def key_fields(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights": digest(self.model),
            "layer": self.layer,
            "preprocessing": {key: _plain(value) for key, value in self.transform.settings.items()},
            "precision": str(next(self.model.parameters()).dtype).removeprefix("torch."),
        }

    @classmethod
    def published(cls, name: str) -> tuple[Mapping[str, Any], Path | None]:
        known = _timm().models.get_pretrained_cfg(name, allow_unregistered=True)
        hub = known.hf_hub_id if known else None
        files = ("model.safetensors", "pytorch_model.bin")
        cached = [huggingface_hub.try_to_load_from_cache(hub, file) for file in files if hub]
        path = next((Path(path) for path in cached if isinstance(path, str)), None)
        return {"hub": hub, "tag": known.tag if known else None}, path

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


def _create_model(name: str, weights: str, image_size: int) -> nn.Module:
    if not _timm().is_model(name):
        near = nearest(name.partition(".")[0], _timm().list_models())
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"Unknown encoder {name!r}.{hint} timm.list_models() lists all {len(_timm().list_models())}.")
    try:
        config = _timm().models.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag after the dot
        raise UserError(f"Unknown encoder {name!r}: {error}") from error
    # Models with position embeddings are built for one size; convolutions take any.
    size = {"img_size": image_size} if image_size and config and config.fixed_input_size else {}
    try:
        if weights == "random":
            return _timm().create_model(name, **size)
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
        return _timm().create_model(name, pretrained=True, **size)
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
    model = _timm().create_model(name, **size)
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
    overlay = {"state_dict": _timm().models.clean_state_dict(dict(tensors)), "custom_load": False}
    try:
        model = _timm().create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **size)
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
    return _timm().data.resolve_model_data_config(model, args=given | size)


def _prune(model: Any, name: str, layer: int | str) -> int | str:
    """Drop what follows the layer, and return the layer as `TimmTower.forward` reads it."""
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


def _output_of(model: Any, module: str, images: Tensor) -> Tensor:
    outputs = []
    handle = model.get_submodule(module).register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        model.forward_features(images)
    finally:
        handle.remove()
    if not outputs or not isinstance(outputs[-1], Tensor):
        raise UserError(f"Module {module} of the encoder returned no tensor: choose another layer.")
    return outputs[-1]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
