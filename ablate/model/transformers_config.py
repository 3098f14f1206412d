"""A transformers folder's `config.json`, said in the words of state-spaces' own.

A `Mamba2ForCausalLM` folder holds the tensors of state-spaces' release but for one name; its `config.json` has other
names for the same sizes. Folders of other models are named for what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ablate.core.errors import UserError

# Ours: theirs, and what holds where their file is silent (transformers.Mamba2Config).
_SIZES = {"d_model": ("hidden_size", 4096), "n_layer": ("num_hidden_layers", 64), "vocab_size": ("vocab_size", 32768)}
_MIXER = {
    "d_state": ("state_size", 128),
    "d_conv": ("conv_kernel", 4),
    "expand": ("expand", 2),
    "headdim": ("head_dim", 64),
    "ngroups": ("n_groups", 8),
    "bias": ("use_bias", False),
    "conv_bias": ("use_conv_bias", True),
    "dt_min": ("time_step_min", 1e-3),
    "dt_max": ("time_step_max", 0.1),
    "dt_init_floor": ("time_step_floor", 1e-4),
}
_UNLIMITED: tuple[Any, ...] = (None, [], [0.0, float("inf")], [0.0, {"__float__": "Infinity"}])

_WANTED = {
    "Mamba1": "a Mamba-1 language model. Give a folder of state-spaces/mamba-*",
    "Mamba2": "a Mamba-2 language model. Give a folder of state-spaces/mamba2-* or of a Mamba2ForCausalLM",
}


def is_transformers(data: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of transformers."""
    return "model_type" in data or "architectures" in data


def released_names(data: Mapping[str, Any], path: Path, wanted: str = "Mamba2") -> dict[str, Any]:
    """The config of a `Mamba2ForCausalLM` by the names of state-spaces' `config.json`.

    Args:
        wanted: "Mamba1" or "Mamba2", whose folder was asked for.

    Raises:
        UserError: another model, by its name; or a Mamba-2 with something that ours has not.
    """
    kind = str(data.get("model_type") or "")
    architectures = ", ".join(map(str, data.get("architectures") or []))
    if kind != "mamba2" or (architectures and "Mamba2ForCausalLM" not in architectures):
        what = " ".join(filter(None, [architectures, f'(model_type "{kind}")' if kind else ""]))
        raise UserError(
            f"{path} is transformers' {what}, not {_WANTED[wanted]}; language.name=transformers takes causal models "
            "of transformers."
        )
    heads, inner = _read(data, ("num_heads", 128)), _read(data, _SIZES["d_model"]) * _read(data, _MIXER["expand"])
    unsupported = {
        f'hidden_act is "{data.get("hidden_act")}"': data.get("hidden_act", "silu") not in ("silu", "swish"),
        f"layer_norm_epsilon is {data.get('layer_norm_epsilon')}": data.get("layer_norm_epsilon", 1e-5) != 1e-5,
        f"time_step_limit is {data.get('time_step_limit')}": data.get("time_step_limit") not in _UNLIMITED,
        "rms_norm is false": not data.get("rms_norm", True),
        "its weights are quantised": bool(data.get("quantization_config")),
        f"num_heads * head_dim is not expand * hidden_size = {inner}": heads * _read(data, _MIXER["headdim"]) != inner,
    }
    if any(unsupported.values()):
        reasons = "; ".join(reason for reason, holds in unsupported.items() if holds)
        raise UserError(f"{path} is a Mamba2ForCausalLM that cannot be taken: {reasons}. Use state-spaces/mamba2-*.")
    return {
        **{ours: _read(data, theirs) for ours, theirs in _SIZES.items()},
        "ssm_cfg": {"layer": "Mamba2", **{ours: _read(data, theirs) for ours, theirs in _MIXER.items()}},
        "residual_in_fp32": data.get("residual_in_fp32", True),
        "pad_vocab_size_multiple": 1,  # vocab_size counts the padding already
        "tie_embeddings": data.get("tie_word_embeddings", False),
    }


def released_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of state-spaces' release; those that have them already stay."""
    return {name.replace("backbone.embeddings.", "backbone.embedding.", 1): t for name, t in tensors.items()}


def _read(data: Mapping[str, Any], theirs: tuple[str, Any]) -> Any:
    value = data.get(theirs[0])
    return theirs[1] if value is None else value
