"""The training of a VLM as a LightningModule: the step, its loss and its gradient."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from ablate.model.recipe import PARTS, Recipe, create
from ablate.model.vlm import VLM
from ablate.model.weights import kept_names
from ablate.runs.config import TrainConfig
from ablate.training.divergence import DivergenceMonitor, diverged
from ablate.training.optimization import learning_rate_factor, parameter_groups


class MicroBatch(NamedTuple):
    """What is remembered of a micro-batch until the optimizer steps. Tensors are scalars on the device."""

    loss_sum: Tensor
    answer_tokens: Tensor
    tokens: Tensor
    keys: list[str]
    parts: Mapping[str, Tensor]


class VLMModule(L.LightningModule):
    """Trains `vlm` for exactly `steps` optimizer steps.

    The gradient of a step is that of the mean loss over all answer tokens of the global batch: `training_step` returns
    the *sum* over tokens, and `configure_gradient_clipping`, which runs just before the optimizer, divides by the
    number of tokens that all micro-batches on all ranks had. So accumulation and the number of ranks change nothing.

    Args:
        vlm: the model.
        config: what to train and how.
        steps: optimizer steps of the whole run, the length of the schedule.
        seed: seeds the noise of the forward pass (drop path), see `on_train_batch_start`.
        recipe: prepared; by default the one that the config names, which is then prepared here.
    """

    def __init__(self, vlm: VLM, config: TrainConfig, *, steps: int, seed: int, recipe: Recipe | None = None) -> None:
        super().__init__()
        self.vlm = vlm
        self.config = config
        self.steps = steps
        self.seed = seed
        self.strict_loading = False  # checkpoints leave frozen parts out; on_load_checkpoint checks the rest
        if recipe is None:
            recipe = create(config.stage, **config.fields)
            recipe.prepare(vlm)
        self.recipe = recipe
        recipe.freeze(vlm)
        self.monitor = DivergenceMonitor(config.divergence_factor)
        self.stop_requested: Callable[[], bool] = lambda: False
        self.stop_agreed = False  # by all ranks
        self.checkpoint_step = 0
        self.last_step: dict[str, float] = {}
        self._micro_batches: list[MicroBatch] = []

    def train(self, mode: bool = True) -> VLMModule:
        """Frozen parts stay in evaluation mode: no drop path, batch norms keep their statistics."""
        super().train(mode)
        for name in PARTS:
            part = getattr(self.vlm, name)
            if part is not None and name not in self.recipe.trains:
                part.eval()
        return self

    def configure_optimizers(self) -> Any:
        config = self.config
        optimizer = torch.optim.AdamW(
            parameter_groups(self.vlm, config.weight_decay, config.learning_rate, self.recipe.rates),
            lr=config.learning_rate,
            betas=(config.betas[0], config.betas[1]),
            eps=config.epsilon,
            fused=True,
        )
        # `trainer.estimated_stepping_batches` would rebuild the dataloader and lose its restored position
        # (Lightning issue 20550), so the number of steps comes from the data plan.
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, self.steps, config.warmup_ratio, config.min_lr_ratio)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        for module in self.recipe.modules():
            module.to(self.device).requires_grad_(False).eval()

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        # The noise of a micro-batch depends on its position alone, so a resumed run draws what the first would have.
        torch.manual_seed(_noise_seed(self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss = self.recipe.loss(self.vlm, batch)
        keys = list(batch.get("keys", ()))
        self._micro_batches.append(MicroBatch(loss.total.detach(), loss.count, batch["mask"].sum(), keys, loss.parts))
        return loss.total

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Turn the summed gradient into that of the mean over tokens, judge it, and clip it."""
        # One exchange between ranks and one wait for the device in a step; float32 counts exactly up to 16 million.
        stop = torch.tensor(float(self.stop_requested()), device=self.device)
        names = list(self._micro_batches[0].parts)  # those of every micro-batch, on every rank
        mine = torch.stack(
            [
                torch.stack([m.loss_sum, m.answer_tokens, m.tokens, *(m.parts[name] for name in names)]).float()
                for m in self._micro_batches
            ]
        )
        totals = self.trainer.strategy.reduce(torch.cat([mine.sum(dim=0), stop[None]]), reduce_op="sum")
        loss_sum, answer_tokens, tokens, *parts, stops = totals.tolist()
        self.stop_agreed = stops > 0

        # Lightning has divided by the accumulation (the full one, even in a last, shorter group), DDP by the ranks.
        divided_by = self.trainer.accumulate_grad_batches * self.trainer.world_size
        scale = divided_by / max(answer_tokens, 1.0)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        grad_norm = scale * float(nn.utils.get_total_norm(gradients))
        loss = loss_sum / max(answer_tokens, 1.0)

        step = self.global_step + 1
        if reason := self.monitor.check(loss, grad_norm):
            rate = optimizer.param_groups[0]["lr"]
            raise diverged(step, reason, self._suspects(), rate, self.checkpoint_step)
        clip = self.config.clip_norm
        if clip > 0:
            scale *= min(1.0, clip / (grad_norm + 1e-6))
        torch._foreach_mul_(gradients, scale)

        self.last_step = {
            "step": step,
            "loss": loss,
            "lr": optimizer.param_groups[0]["lr"],
            "grad_norm": grad_norm,
            "tokens": int(tokens),
            "answer_tokens": int(answer_tokens),
        } | {f"loss/{name}": part / max(answer_tokens, 1.0) for name, part in zip(names, parts, strict=True)}
        self._micro_batches.clear()

    def _suspects(self) -> list[str]:
        """Keys of this step's samples on all ranks: of the micro-batches whose loss is not finite, if there are any."""
        bad = chain(*(m.keys for m in self._micro_batches if not math.isfinite(float(m.loss_sum))))
        mine = list(bad), list(chain(*(m.keys for m in self._micro_batches)))
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, mine)
        else:
            gathered = [mine]
        return list(chain(*(bad for bad, _ in gathered))) or list(chain(*(every for _, every in gathered)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Frozen parts are rebuilt from the config; the connector is always kept, and whole."""
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in self._checkpointed_names()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        differing = set(checkpoint["state_dict"]) ^ set(self._checkpointed_names())
        assert not differing, differing  # the run's digest covers all that decides the names
        self.checkpoint_step = checkpoint["global_step"]

    def _checkpointed_names(self) -> list[str]:
        return [f"vlm.{name}" for name in kept_names(self.vlm, self.recipe.kept_parts())]


def _noise_seed(*position: int) -> int:
    """63 bits that differ for every position."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, position)).encode()).digest()[:8], "big") >> 1
