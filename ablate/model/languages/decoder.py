"""A decoder whose layers mix their tokens by attention, Mamba-2, Mamba-1 or mmMamba's Mamba-2, in any order.

With attention and MLPs alone it is a Llama (Touvron et al. 2023, arXiv 2302.13971), with Mamba-2 alone the member
`mamba2`, and in between a hybrid such as Jamba (arXiv 2403.19887) or mmMamba (arXiv 2502.13145).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import cycle, islice
from typing import Any, Literal

from torch import nn

from ablate.core.errors import UserError, unknown_name
from ablate.core.fields import Positive32, Size
from ablate.model.languages.attention import Attention, SwiGLU
from ablate.model.languages.base import LanguageModel, register
from ablate.model.languages.mamba2 import MambaConfig
from ablate.model.languages.stack import Block, StackedLanguageModel
from ablate.ssm import Mamba1Mixer, Mamba2Mixer, MMMambaMixer


@register("decoder")
class Decoder(StackedLanguageModel):
    """A decoder of attention, Mamba-2 and Mamba-1 layers. Mamba-2 layers are as `language.ssm_cfg` says.

    Args:
        layers: what mixes the tokens of each layer: attention, mamba1, mamba2 or mmmamba (a Mamba-2 mixer with the
            heads of the attention), as a list or as a pattern such as `3*mamba2+attention`; repeated until there are
            `language.n_layer` layers.
        mlp: whether a SwiGLU MLP follows each layer; a list says it for each entry of `layers`.
        heads: query heads; null for d_model / 64.
        kv_heads: heads of keys and values, a divisor of `heads`; null: equal to `heads`.
        head_dim: channels per head; null for d_model / heads.
        rope_theta: base of the wavelengths of the rotary positions.
        attention_bias: whether the projections of queries, keys and values have biases.
        d_intermediate: width of the MLPs; null for 8/3 d_model, rounded up to a multiple of 64.
        norm_eps: added to the mean squares of the norms.
        mmmamba: "released" or "paper", see `ablate.ssm.MMMambaMixer`.

    Raises:
        UserError: an unknown mixer, more layers than `language.n_layer`, or sizes which do not fit together.
    """

    config: MambaConfig
    sizes = (*LanguageModel.sizes, "residual_in_fp32", "ssm_cfg")

    def __init__(
        self,
        config: MambaConfig,
        *,
        layers: str | Sequence[str] = "attention",
        mlp: bool | Sequence[bool] = True,
        heads: Size | None = None,
        kv_heads: Size | None = None,
        head_dim: Size | None = None,
        rope_theta: Positive32 = 10000.0,
        attention_bias: bool = False,
        d_intermediate: Size | None = None,
        norm_eps: Positive32 = 1e-5,
        mmmamba: Literal["released", "paper"] = "released",
    ) -> None:
        heads = max(1, config.d_model // 64) if heads is None else heads
        shared: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "bias": attention_bias}
        mixers: dict[str, Callable[[], nn.Module]] = {
            "attention": lambda: Attention(config.d_model, rope_theta=rope_theta, **shared),
            "mmmamba": lambda: MMMambaMixer(
                config.d_model, variant=mmmamba, chunk_size=ssm.chunk_size, backend=ssm.backend, **shared
            ),
            "mamba1": lambda: Mamba1Mixer(config.d_model),
            "mamba2": lambda: Mamba2Mixer(config.d_model, **asdict(config.ssm_cfg)),
        }
        ssm = config.ssm_cfg
        names, has_mlp = expand_layers(layers, mlp, config.n_layer)
        for name in names:
            if name not in mixers:
                raise unknown_name("mixer in language.fields.layers", name, mixers)
        width = -(-(config.d_model * 8 // 3) // 64) * 64 if d_intermediate is None else d_intermediate

        def make() -> Iterator[Block]:
            for name, with_mlp in zip(names, has_mlp, strict=True):
                block_mlp = SwiGLU(config.d_model, width) if with_mlp else None
                yield Block(config.d_model, mixers[name](), block_mlp, norm_eps)

        super().__init__(config, make, norm_eps)


def expand_layers(
    layers: str | Sequence[str], mlp: bool | Sequence[bool], n_layer: int
) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """The mixer of each layer, and whether an MLP follows it.

    Raises:
        UserError: a malformed pattern, no layers, more than `n_layer`, or a list of MLPs of another length.
    """
    names = _pattern(layers) if isinstance(layers, str) else tuple(layers)
    if not 1 <= len(names) <= n_layer:
        raise UserError(f"language.fields.layers has {len(names)} layers: expected 1 to language.n_layer={n_layer}.")
    has_mlp = (mlp,) * len(names) if isinstance(mlp, bool) else tuple(mlp)
    if len(has_mlp) != len(names):
        raise UserError(
            f"language.fields.mlp has {len(has_mlp)} entries, language.fields.layers {len(names)}: expected as many, "
            "or true or false for all."
        )
    return tuple(islice(cycle(names), n_layer)), tuple(islice(cycle(has_mlp), n_layer))


def _pattern(text: str) -> tuple[str, ...]:
    """`3*mamba2+attention` -> mamba2, mamba2, mamba2, attention."""
    names: list[str] = []
    for term in text.split("+"):
        match = re.fullmatch(r"\s*(?:(\d{1,5})\s*\*)?\s*([A-Za-z]\w*)\s*", term)
        if match is None:
            raise UserError(
                f'language.fields.layers is "{text}", in which "{term.strip()}" has no meaning: expected names of '
                "mixers with counts, such as 3*mamba2+attention, or a list of them."
            )
        names += [match[2]] * int(match[1] or 1)
    return tuple(names)
