"""The Mamba-2 language model (Dao & Gu 2024, arXiv 2405.21060).

Names, layout and initialisation are those of mamba-ssm's `MambaLMHeadModel`, so the released `state-spaces/mamba2-*`
checkpoints load tensor for tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ablate.core.fields import INT64, Count, Positive, Range
from ablate.errors import UserError, unknown_name
from ablate.model.checkpoints import WEIGHT_FILES, check_tensors, find_weights, read_tensors
from ablate.model.transformers_config import is_transformers, released_names, released_tensors
from ablate.ssm import Mamba2Mixer, MixerState, RMSNorm

# One entry per layer; its size does not depend on the number of tokens.
LanguageState = tuple[MixerState, ...]


@dataclass
class SSMConfig:
    """Fields of every layer's mixer; see `ablate.ssm.Mamba2Mixer`."""

    d_state: Count = 128
    d_conv: Annotated[int, Range(2, INT64)] = 4
    expand: Count = 2
    headdim: Count = 64
    ngroups: Count = 1
    chunk_size: Count | None = None
    bias: bool = False
    conv_bias: bool = True
    D_has_hdim: bool = False
    rmsnorm: bool = True
    norm_before_gate: bool = False
    dt_min: Positive = 1e-3
    dt_max: Positive = 0.1
    dt_init_floor: Positive = 1e-4
    A_init_range: tuple[Positive, Positive] = (1.0, 16.0)
    backend: str = "auto"

    def __post_init__(self) -> None:
        self.A_init_range = tuple(self.A_init_range)  # files have lists


@dataclass
class MambaConfig:
    """Sizes of a language model, by the names of the released `config.json`. The defaults are those of mamba2-130m.

    vocab_size: the tokenizer's; the embedding is padded to a multiple of `pad_vocab_size_multiple` rows.
    residual_in_fp32: the residual stream stays float32 when the weights are not.
    tie_embeddings: the head shares the embedding's weights.
    """

    d_model: Count = 768
    n_layer: Count = 24
    vocab_size: Count = 50277
    ssm_cfg: SSMConfig = field(default_factory=SSMConfig)
    residual_in_fp32: bool = True
    pad_vocab_size_multiple: Count = 16
    tie_embeddings: bool = True

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple


class Block(nn.Module):
    """Pre-norm residual block around one mixer."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model)
        self.mixer = Mamba2Mixer(config.d_model, **asdict(config.ssm_cfg))

    def normed(self, residual: Tensor) -> Tensor:
        """The mixer's input: the norm reads the residual in its own precision, the result is in the weights' dtype."""
        return self.norm(residual).to(self.norm.weight.dtype)


class Backbone(nn.Module):
    """All but the head: embeddings (b, l, d_model) -> hidden states behind the last norm (b, l, d_model).

    gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model)
        self.residual_in_fp32 = config.residual_in_fp32
        self.gradient_checkpointing = False

    def forward(
        self,
        inputs_embeds: Tensor,
        *,
        mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        state: LanguageState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, LanguageState]:
        """All tokens at once.

        Args:
            inputs_embeds: (b, l, d_model).
            mask: (b, l) bool, True at real tokens; padding changes nothing for them.
            seq_idx: (b, l) integers; documents packed in one row do not see each other.
            state: what an earlier call returned, to go on from there.
            return_state: also return the state after each row's last real token.
        """
        residual = self._residual(inputs_embeds)
        states = []
        for layer, before in zip(self.layers, state or [None] * len(self.layers), strict=True):
            kwargs = {"mask": mask, "seq_idx": seq_idx, "state": before}
            if return_state:
                out, after = layer.mixer(layer.normed(residual), return_state=True, **kwargs)
                states.append(after)
            elif self.gradient_checkpointing and torch.is_grad_enabled():
                out = checkpoint(_mix, layer, residual, kwargs, use_reentrant=False)
            else:
                out = _mix(layer, residual, kwargs)
            residual = residual + out
        hidden = self.norm_f(residual).to(self.norm_f.weight.dtype)
        return (hidden, tuple(states)) if return_state else hidden

    def step(self, embedding: Tensor, state: LanguageState, *, inplace: bool = False) -> tuple[Tensor, LanguageState]:
        """One token: (b, d_model) and the state before it -> hidden (b, d_model) and the state after it.

        inplace: the old state may be overwritten, which makes a step in a batch twice as fast. Not under autograd.
        """
        residual = self._residual(embedding)
        states = []
        for layer, before in zip(self.layers, state, strict=True):
            out, after = layer.mixer.step(layer.normed(residual), before, inplace=inplace)
            residual = residual + out
            states.append(after)
        return self.norm_f(residual).to(self.norm_f.weight.dtype), tuple(states)

    def init_state(self, batch: int) -> LanguageState:
        """The state before any token."""
        return tuple(layer.mixer.init_state(batch) for layer in self.layers)

    def _residual(self, embeddings: Tensor) -> Tensor:
        half = embeddings.dtype in (torch.float16, torch.bfloat16)
        return embeddings.float() if self.residual_in_fp32 and half else embeddings


def _mix(layer: Block, residual: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    return layer.mixer(layer.normed(residual), **kwargs)


class MambaLMHeadModel(nn.Module):
    """Mamba-2 with a language model head.

    Raises:
        UserError: sizes which do not fit together.
    """

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        for name in ("d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple"):
            if getattr(config, name) < 1:
                raise UserError(f"language.{name} is {getattr(config, name)}: expected at least 1.")
        self.config = config
        try:
            self.backbone = Backbone(config)
        except ValueError as error:
            raise UserError(f"language: {error}.") from error
        self.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
        self._initialise()
        self.tie_weights()

    def tie_weights(self) -> None:
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def forward(self, input_ids: Tensor, *, mask: Tensor | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """input_ids (b, l) -> logits (b, l, padded vocabulary) at every position."""
        return self.lm_head(self.backbone(self.backbone.embedding(input_ids), mask=mask, seq_idx=seq_idx))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` in the layout of the released checkpoints."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(_to_released(self.config), indent=2) + "\n")
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        if self.config.tie_embeddings:
            del tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors")

    def _initialise(self) -> None:
        """As mamba-ssm's `_init_weights`; what is not named here keeps the initialisation of its own module."""
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        for layer in self.backbone.layers:
            for linear in (layer.mixer.in_proj, layer.mixer.out_proj):
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
            # GPT-2: the residual stream is a sum over layers, so that its variance must not grow with their number.
            nn.init.kaiming_uniform_(layer.mixer.out_proj.weight, a=math.sqrt(5))
            with torch.no_grad():
                layer.mixer.out_proj.weight /= math.sqrt(len(self.backbone.layers))


def load_pretrained(path: str | Path, *, dtype: torch.dtype = torch.float32) -> MambaLMHeadModel:
    """Load a released checkpoint, or a `Mamba2ForCausalLM` of transformers: a folder with `config.json` and
    `model.safetensors` or `pytorch_model.bin`, whole or in parts with their index, or the weights file itself with
    `config.json` beside it.

    Args:
        dtype: of the parameters; the files hold float16 or float32.

    Raises:
        UserError: files missing or damaged, a model which is not Mamba-2, or tensors that do not fit, each listed.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"No language model at {path}. Expected a folder with config.json and {WEIGHT_FILES[0]} or "
            f"{WEIGHT_FILES[2]}, as `hf download state-spaces/mamba2-130m --local-dir FOLDER` makes it."
        )
    folder = path if path.is_dir() else path.parent
    path = find_weights(path)
    config = _from_released(folder / "config.json")
    with torch.device("meta"):  # no memory and no time for weights which are replaced at once
        model = MambaLMHeadModel(config)
    tensors = {name: tensor.to(dtype) for name, tensor in released_tensors(read_tensors(path)).items()}
    if config.tie_embeddings and "backbone.embedding.weight" in tensors:
        tensors.setdefault("lm_head.weight", tensors["backbone.embedding.weight"])
    check_tensors(tensors, model.state_dict(), path)
    marks = {name: vars(parameter) for name, parameter in model.named_parameters()}
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        vars(parameter).update(marks[name])  # such as _no_weight_decay, which an assigned parameter lacks
    return model


def _from_released(path: Path) -> MambaConfig:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"No config.json beside the weights: expected {path}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no mapping from names to values: expected a model's config.")
    if is_transformers(data):
        data = released_names(data, path)
    ssm = dict(data.get("ssm_cfg") or {})
    layer = ssm.pop("layer", "Mamba1")
    unsupported = {
        f'ssm_cfg.layer is "{layer}"': layer != "Mamba2",
        "attn_layer_idx is not empty": bool(data.get("attn_layer_idx")),
        "d_intermediate is not 0": bool(data.get("d_intermediate")),
        "rms_norm is false": not data.get("rms_norm", True),
    }
    if any(unsupported.values()):
        reasons = "; ".join(reason for reason, holds in unsupported.items() if holds)
        raise UserError(f"{path} describes another model than a plain Mamba-2: {reasons}. Use state-spaces/mamba2-*.")
    names = {known.name for known in fields(SSMConfig)}
    for name in ssm:
        if name not in names:
            raise unknown_name(f"field of ssm_cfg in {path}", name, names)
    for name in ("d_model", "n_layer", "vocab_size"):
        if not isinstance(data.get(name), int):
            raise UserError(f"{path} has no whole number {name!r}.")
    return MambaConfig(
        d_model=data["d_model"],
        n_layer=data["n_layer"],
        vocab_size=data["vocab_size"],
        ssm_cfg=SSMConfig(**ssm),
        residual_in_fp32=data.get("residual_in_fp32", True),
        pad_vocab_size_multiple=data.get("pad_vocab_size_multiple", 8),  # mamba-ssm's default, where a file is silent
        tie_embeddings=data.get("tie_embeddings", True),
    )


def _to_released(config: MambaConfig) -> dict[str, Any]:
    data = {known.name: getattr(config, known.name) for known in fields(MambaConfig)}
    ssm = asdict(config.ssm_cfg)
    for name in ("backend", "chunk_size"):  # of the machine, not of the model
        del ssm[name]
    return data | {"ssm_cfg": {"layer": "Mamba2", **ssm}, "rms_norm": True}
