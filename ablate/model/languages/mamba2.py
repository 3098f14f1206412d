"""The Mamba-2 language model (Dao & Gu 2024, arXiv 2405.21060).

Names, layout and initialisation are those of mamba-ssm's `MambaLMHeadModel`, so the released `state-spaces/mamba2-*`
checkpoints load tensor for tensor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from safetensors.torch import save_file

from ablate.core.errors import UserError, unknown_name
from ablate.core.fields import LARGEST_SIZE, Count, Positive32, Range, Size
from ablate.core.filetypes import type_of
from ablate.model.languages.base import LanguageModel, LanguageSizes, register
from ablate.model.languages.stack import Block, StackedLanguageModel
from ablate.model.transformers_config import is_transformers, released_names, released_tensors
from ablate.model.weights import WEIGHT_FILES, check_tensors, find_weights, read_tensors
from ablate.ssm import Mamba2Mixer

Model = TypeVar("Model", bound=StackedLanguageModel)

_RELEASES = {"Mamba1": "state-spaces/mamba-*", "Mamba2": "state-spaces/mamba2-*"}


@dataclass
class SSMConfig:
    """Fields of every layer's mixer, `ablate.ssm.Mamba2Mixer`.

    d_state: width of the scan's state.
    d_conv: width of the causal convolution.
    expand: the inner width is expand * d_model.
    headdim: channels per head; the inner width must be a multiple of it.
    ngroups: groups of heads which share B and C.
    chunk_size: longest chunk of the chunked scan; null for what is fast on the device.
    bias, conv_bias: whether the projections and the convolution have biases.
    D_has_hdim: one skip weight per channel instead of one per head.
    rmsnorm: gated RMS norm before the output projection; without it the gate alone.
    norm_before_gate: norm, then gate, instead of gate, then norm.
    dt_min, dt_max, dt_init_floor: range of the step sizes at initialisation (log-uniform), and their floor.
    A_init_range: range of the decay rates -A at initialisation (uniform). Small rates remember longer.
    backend: of the scan: auto, recurrent, torch or mamba_ssm.
    """

    d_state: Size = 128
    d_conv: Annotated[int, Range(2, LARGEST_SIZE)] = 4
    expand: Size = 2
    headdim: Size = 64
    ngroups: Size = 1
    chunk_size: Count | None = None
    bias: bool = False
    conv_bias: bool = True
    D_has_hdim: bool = False
    rmsnorm: bool = True
    norm_before_gate: bool = False
    dt_min: Positive32 = 1e-3
    dt_max: Positive32 = 0.1
    dt_init_floor: Positive32 = 1e-4
    A_init_range: tuple[Positive32, Positive32] = (1.0, 16.0)
    backend: str = "auto"

    def __post_init__(self) -> None:
        self.A_init_range = tuple(self.A_init_range)  # type: ignore[assignment]  # files have lists


@dataclass
class MambaConfig(LanguageSizes):
    """Sizes of a language model with Mamba-2 layers. The defaults are those of mamba2-130m."""

    ssm_cfg: SSMConfig = field(default_factory=SSMConfig)


@register("mamba2")
class MambaLMHeadModel(StackedLanguageModel):
    """Mamba-2 with a language model head. Its sizes are `language.d_model`, `n_layer` and so on, and `ssm_cfg`.

    Raises:
        UserError: sizes which do not fit together.
    """

    config: MambaConfig
    sizes = (*LanguageModel.sizes, "residual_in_fp32", "ssm_cfg")

    def __init__(self, config: MambaConfig) -> None:
        def layers() -> Iterator[Block]:
            for _ in range(config.n_layer):
                yield Block(config.d_model, Mamba2Mixer(config.d_model, **asdict(config.ssm_cfg)))

        super().__init__(config, layers)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype = torch.float32, **fields: Any
    ) -> MambaLMHeadModel:
        return load_pretrained(folder, dtype=dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` in the layout of the released checkpoints."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(_to_released(self.config), indent=2) + "\n")
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        if self.config.tie_embeddings:
            del tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors")


def load_pretrained(path: str | Path, *, dtype: torch.dtype = torch.float32) -> MambaLMHeadModel:
    """Load a released checkpoint, or a `Mamba2ForCausalLM` of transformers: a folder with `config.json` and
    `model.safetensors` or `pytorch_model.bin`, whole or in parts with their index, or the weights file itself with
    `config.json` beside it.

    Args:
        dtype: of the parameters; the files hold float16 or float32.

    Raises:
        UserError: files missing or damaged, a model which is not Mamba-2, or tensors that do not fit, each listed.
    """
    return load_checkpoint(path, lambda config_file: MambaLMHeadModel(_from_released(config_file)), dtype)


def load_checkpoint(path: str | Path, build: Callable[[Path], Model], dtype: torch.dtype) -> Model:
    """As `load_pretrained`, for the model that `build` makes of the path of a `config.json`."""
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"No language model at {path}. Expected a folder with config.json and {WEIGHT_FILES[0]} or "
            f"{WEIGHT_FILES[2]}, as `hf download state-spaces/mamba2-130m --local-dir FOLDER` makes it."
        )
    folder = path if path.is_dir() else path.parent
    path = find_weights(path)
    with torch.device("meta"):  # no memory and no time for weights which are replaced at once
        model = build(folder / "config.json")
    tensors = {name: tensor.to(dtype) for name, tensor in released_tensors(read_tensors(path)).items()}
    if model.config.tie_embeddings and "backbone.embedding.weight" in tensors:
        tensors.setdefault("lm_head.weight", tensors["backbone.embedding.weight"])
    check_tensors(tensors, model.state_dict(), path)
    marks = {name: vars(parameter) for name, parameter in model.named_parameters()}
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        vars(parameter).update(marks[name])  # such as _no_weight_decay, which an assigned parameter lacks
    return model


def _from_released(path: Path) -> MambaConfig:
    sizes, ssm = read_released(path, "Mamba2", [known.name for known in fields(SSMConfig)])
    return MambaConfig(**sizes, ssm_cfg=SSMConfig(**ssm))


def read_released(path: Path, kind: str, names: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sizes and the fields of `ssm_cfg` in a released `config.json`.

    Args:
        kind: "Mamba1" or "Mamba2", what its layers have to be.
        names: the fields that such a layer has.

    Raises:
        UserError: no such file, a damaged one, or a model of another kind.
    """
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"No config.json next to the weights: expected {path}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        found = type_of(path)
        what = found.describe(path, "get the config.json of the model") if found else f"not valid JSON: {error}"
        raise UserError(f"{path} is {what}." if path.stat().st_size else f"{path} is empty: get it again.") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no mapping from names to values: expected a model's config.")
    if is_transformers(data):
        data = released_names(data, path, kind)
    for name in ("d_model", "n_layer", "vocab_size"):
        if not isinstance(data.get(name), int):
            raise UserError(f"{path} has no whole number {name!r}: expected the config.json of {_RELEASES[kind]}.")
    ssm = dict(data.get("ssm_cfg") or {})
    layer = ssm.pop("layer", "Mamba1")
    unsupported = {
        f'ssm_cfg.layer is "{layer}"': layer != kind,
        "attn_layer_idx is not empty": bool(data.get("attn_layer_idx")),
        "d_intermediate is not 0": bool(data.get("d_intermediate")),
        "rms_norm is false": not data.get("rms_norm", True),
    }
    if any(unsupported.values()):
        reasons = "; ".join(reason for reason, holds in unsupported.items() if holds)
        hint = (
            f"Use {_RELEASES[kind]}"
            if layer == kind or layer not in _RELEASES
            else f"Set language.name={layer.lower()}"
        )
        raise UserError(f"{path} describes another model than a plain {kind}: {reasons}. {hint}.")
    for name in ssm:
        if name not in names:
            raise unknown_name(f"field of ssm_cfg in {path}", name, names)
    sizes = {
        "d_model": data["d_model"],
        "n_layer": data["n_layer"],
        "vocab_size": data["vocab_size"],
        "residual_in_fp32": data.get("residual_in_fp32", True),
        "pad_vocab_size_multiple": data.get(
            "pad_vocab_size_multiple", 8
        ),  # mamba-ssm's default, where a file is silent
        "tie_embeddings": data.get("tie_embeddings", True),
    }
    return sizes, ssm


def _to_released(config: MambaConfig) -> dict[str, Any]:
    data = {known.name: getattr(config, known.name) for known in fields(MambaConfig)}
    ssm = asdict(config.ssm_cfg)
    for name in ("backend", "chunk_size"):  # of the machine, not of the model
        del ssm[name]
    return data | {"ssm_cfg": {"layer": "Mamba2", **ssm}, "rms_norm": True}
