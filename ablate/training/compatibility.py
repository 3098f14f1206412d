"""What a `lightning.Trainer` may be set to, for `VLMModule` to train as it says."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from ablate.core.errors import UserError
from datamodules.llava import LlavaDataModule

STRATEGIES = (SingleDeviceStrategy, DDPStrategy)  # exactly: others derive from them
PRECISIONS = ("32-true", "bf16-mixed")


def check_trainer(trainer: L.Trainer, data: Any, clip_norm: float) -> None:
    """Raise UserError for the first of the trainer's settings that has not been tested, or that contradicts the config.

    Args:
        data: the trainer's data module.
        clip_norm: `train.clip_norm`.
    """
    if type(trainer.strategy) not in STRATEGIES:
        raise UserError(
            f"Trainer(strategy=...) is {type(trainer.strategy).__name__}, which has not been tested: use auto or ddp."
        )
    if trainer.precision not in PRECISIONS:
        raise UserError(f'Trainer(precision="{trainer.precision}") has not been tested: use {" or ".join(PRECISIONS)}.')
    clip = trainer.gradient_clip_val
    if clip is not None and (float(clip) != clip_norm or trainer.gradient_clip_algorithm == "value"):
        by = ", by value" if trainer.gradient_clip_algorithm == "value" else ""
        raise UserError(
            f"Trainer(gradient_clip_val={clip:g}{by}), but train.clip_norm is {clip_norm:g}, and gradients are clipped "
            "by their norm alone: leave it out of the Trainer, and set train.clip_norm."
        )
    if isinstance(data, LlavaDataModule):
        needed, given = data.accumulate_grad_batches, trainer.accumulate_grad_batches
        if needed != 1 and given != needed:
            raise UserError(
                f"data.micro_batch={data.config.micro_batch} makes {needed} batches of each optimizer step, but "
                f"Trainer(accumulate_grad_batches={given}): give it data.accumulate_grad_batches, or set "
                "data.micro_batch=0."
            )
