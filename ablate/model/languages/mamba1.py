"""The Mamba-1 language model (Gu & Dao 2023, arXiv 2312.00752).

Names, layout and initialisation are those of mamba-ssm's `MambaLMHeadModel`, so the released `state-spaces/mamba-*`
checkpoints load tensor for tensor.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from ablate.core.fields import LARGEST_SIZE, Count, Positive32, Range, Size
from ablate.model.languages.base import LanguageModel, LanguageSizes, register
from ablate.model.languages.mamba2 import load_checkpoint, read_released
from ablate.model.languages.stack import Block, StackedLanguageModel
from ablate.ssm import Mamba1Mixer


@register("mamba1")
class Mamba1LanguageModel(StackedLanguageModel):
    """Mamba-1 with a language model head. The fields mean what they mean in mamba-ssm's `Mamba`.

    Args:
        d_state: width of the scan's state.
        d_conv: width of the causal convolution, at least 2.
        expand: the inner width is expand * d_model.
        dt_rank: rank of the projection to the step sizes; null for d_model / 16, rounded up.
        bias: whether the projections have biases.
        conv_bias: whether the convolution has a bias.
        dt_min: smallest step size at initialisation.
        dt_max: largest step size at initialisation.
        dt_init_floor: step sizes at initialisation are at least this.
        chunk_size: longest chunk of the scan in PyTorch; null for what is fast on the device.
        backend: of the scan; auto takes mamba-ssm's kernel on CUDA, where it is installed and can be used.

    Raises:
        UserError: sizes which do not fit together.
    """

    sizes = (*LanguageModel.sizes, "residual_in_fp32")

    def __init__(
        self,
        config: LanguageSizes,
        *,
        d_state: Size = 16,
        d_conv: Annotated[int, Range(2, LARGEST_SIZE)] = 4,
        expand: Size = 2,
        dt_rank: Size | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        dt_min: Positive32 = 1e-3,
        dt_max: Positive32 = 0.1,
        dt_init_floor: Positive32 = 1e-4,
        chunk_size: Count | None = None,
        backend: Literal["auto", "mamba_ssm", "recurrent", "torch"] = "auto",
    ) -> None:
        fields = {name: value for name, value in locals().items() if name not in ("self", "config", "__class__")}

        def layers() -> Iterator[Block]:
            for _ in range(config.n_layer):
                yield Block(config.d_model, Mamba1Mixer(config.d_model, **fields))

        super().__init__(config, layers)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype = torch.float32, **fields: Any
    ) -> Mamba1LanguageModel:
        def build(config_file: Path) -> Mamba1LanguageModel:
            sizes, own = read_released(config_file, "Mamba1", list(inspect.signature(Mamba1Mixer).parameters)[1:])
            if own.get("dt_rank") == "auto":
                del own["dt_rank"]
            return cls(LanguageSizes(**sizes), **own | fields)

        return load_checkpoint(folder, build, dtype)
