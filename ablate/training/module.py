"""The training of a VLM as a LightningModule: the step, its loss and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from ablate.core import config as config_io
from ablate.core.errors import UserError
from ablate.core.seeds import bits64
from ablate.model import VLM, build_vlm
from ablate.model.recipe import PARTS, Recipe, create
from ablate.model.weights import kept_names
from ablate.runs.config import RunConfig
from ablate.runs.folder import RunFiles
from ablate.runs.weights import load_weights
from ablate.training.compatibility import check_trainer
from ablate.training.divergence import DivergenceMonitor, diverged
from ablate.training.optimization import learning_rate_factor, parameter_groups, total_norm
from connectors.contract import title
from datamodules.batches.lightning_loop import batches_begun
from datamodules.images.feature_cache import FeatureStore
from datamodules.llava import FeatureSource, LlavaDataModule
from datamodules.text.tokenizer import Tokenizer


class MicroBatch(NamedTuple):
    """What is remembered of a micro-batch until the optimizer steps. Tensors are scalars on the device."""

    loss_sum: Tensor
    answer_tokens: Tensor
    tokens: Tensor
    keys: list[str]
    parts: Mapping[str, Tensor]


def build(config: RunConfig) -> tuple[VLM, Recipe, set[str]]:
    """A model as its training begins.

    Returns:
        the model, without what its recipe adds (`Recipe.prepare`); the recipe; and the parts that its weights will
        have to be saved of: those that learn, and those that another run has trained.

    Raises:
        UserError: weights that are missing or of another model.
    """
    vlm = build_vlm(config.model, seed=config.seed)
    recipe = create(config.train.stage, **config.train.fields)
    recipe.freeze(vlm)
    parts = set(recipe.trains)
    if config.train.start_from:
        parts |= load_weights(vlm, RunFiles(Path(config.train.start_from)).weights)
    return vlm, recipe, parts


class VLMModule(L.LightningModule):
    """Trains a vision-language model: of `config`, its parts, `train` and `seed`.

        trainer = L.Trainer(max_epochs=1, callbacks=[ModelCheckpoint(monitor="val/loss")])
        trainer.fit(VLMModule(config), datamodule=LlavaDataModule(config.data, seed=config.seed))

    The gradient of a step is that of the mean loss over all answer tokens of the global batch: `training_step` returns
    the *sum* over tokens, and `configure_gradient_clipping`, which runs just before the optimizer, divides by the
    number of tokens that all micro-batches on all ranks had. So accumulation and the number of ranks change nothing.

    Logged, in nats per answer token: `train/loss` and `train/loss/NAME` of the recipe's parts, of every optimizer step;
    `val/loss`, where there are validation batches. Also `train/grad_norm`, before clipping.

    The trainer says how long to train, and with that the length of the schedule; its `gradient_clip_val` has to be left
    out or equal `train.clip_norm`. `check_trainer` refuses what has not been tested. Checkpoints hold what trains and
    the config, of which `load_from_checkpoint` makes the rest.

    Args:
        config: all settings, or the mapping that `hparams["config"]` is.
        vlm: the model, if it has been built.
        recipe: prepared for `vlm`; by default the one that the config names, which is then prepared here.

    Raises:
        UserError: settings, weights or a trainer that do not fit.
    """

    def __init__(
        self, config: RunConfig | Mapping[str, Any], *, vlm: VLM | None = None, recipe: Recipe | None = None
    ) -> None:
        super().__init__()
        self.config = config if isinstance(config, RunConfig) else config_io.load(RunConfig, [config])
        self.save_hyperparameters({"config": config_io.to_data(self.config)})
        self.strict_loading = False  # checkpoints leave frozen parts out; on_load_checkpoint checks the rest
        if vlm is None:
            vlm, recipe, _ = build(self.config)
            recipe.prepare(vlm)
        elif recipe is None:
            recipe = create(self.config.train.stage, **self.config.train.fields)
            recipe.prepare(vlm)
        recipe.freeze(vlm)
        self.vlm, self.recipe = vlm, recipe
        self.monitor = DivergenceMonitor(self.config.train.divergence_factor)
        self.stop_requested: Callable[[], bool] = lambda: False
        self.stop_agreed = False  # by all ranks
        self.checkpoint_step = 0
        self.last_step: dict[str, float] = {}
        # NaN stays NaN: other strategies leave it out of the mean, and "disable" leaves out the weights.
        self.validation_loss = MeanMetric(nan_strategy=math.nan)
        self._micro_batches: list[MicroBatch] = []

    def connect(self, data: LlavaDataModule, features: FeatureStore | FeatureSource | None = None) -> Tokenizer:
        """Have `data` make batches for this model; `features` as `LlavaDataModule.connect`.

        Raises:
            UserError: the tokenizer has more tokens than the language model, or the model cannot be packed.
        """
        tokenizer, rows = Tokenizer.from_file(self.config.tokenizer), self.vlm.language.padded_vocab_size
        if tokenizer.vocab_size > rows:
            raise UserError(
                f"The tokenizer {self.config.tokenizer} has {tokenizer.vocab_size} tokens, the language model {rows}: "
                "set language.vocab_size, or use the tokenizer that the model was trained with."
            )
        if data.config.packing:
            self.vlm.language.require_packing()
        data.connect(tokenizer, self.vlm.encoder.transforms, self.vlm.num_visual_tokens, features)
        return tokenizer

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit":
            check_trainer(self.trainer, data, self.config.train.clip_norm)
        if isinstance(data, LlavaDataModule) and not data.connected:
            self.connect(data)

    def train(self, mode: bool = True) -> VLMModule:
        """Frozen parts stay in evaluation mode: no drop path, batch norms keep their statistics."""
        super().train(mode)
        for name in PARTS:
            part = getattr(self.vlm, name)
            if part is not None and name not in self.recipe.trains:
                part.eval()
        return self

    def configure_optimizers(self) -> Any:
        config = self.config.train
        steps = self._steps()
        optimizer = torch.optim.AdamW(
            parameter_groups(self.vlm, config.weight_decay, config.learning_rate, self.recipe.rates),
            lr=config.learning_rate,
            betas=(config.betas[0], config.betas[1]),
            eps=config.epsilon,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, steps, config.warmup_ratio, config.min_lr_ratio)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _steps(self) -> int:
        """Optimizer steps of the whole training, the length of the schedule."""
        trainer = self.trainer
        if trainer.max_steps >= 0:
            return trainer.max_steps
        if trainer.max_epochs is None or trainer.max_epochs < 0:
            raise UserError("The training has no end: give the Trainer max_steps or max_epochs.")
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, LlavaDataModule):
            return int(trainer.estimated_stepping_batches)
        # Not so for ours: it would make a new loader, and lose the restored position (Lightning issue 20550).
        return trainer.max_epochs * math.ceil(len(data.train_dataloader()) / trainer.accumulate_grad_batches)

    def on_fit_start(self) -> None:
        for module in self.recipe.modules():
            module.to(self.device).requires_grad_(False).eval()

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        # The noise of a micro-batch depends on its position alone, so a resumed run draws what the first would have.
        torch.manual_seed(bits64(self.config.seed, batches_begun(self.trainer), self.global_rank) >> 1)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss = self.recipe.loss(self.vlm, batch)
        keys = list(batch.get("keys", ()))
        self._micro_batches.append(MicroBatch(loss.total.detach(), loss.count, batch["mask"].sum(), keys, loss.parts))
        return loss.total

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        loss = self.recipe.loss(self.vlm, batch)
        self.validation_loss.update(loss.total / loss.count.clamp(min=1), loss.count)
        # A trainer that is to log no step by itself leaves it to a callback.
        logged = self.trainer.log_every_n_steps > 0  # type: ignore[attr-defined]  # set by its logger connector
        self.log("val/loss", self.validation_loss, on_epoch=True, prog_bar=True, logger=logged, batch_size=1)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Turn the summed gradient into that of the mean over tokens, judge it, and clip it."""
        self._check_gradients()
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
        grad_norm = scale * total_norm(gradients)
        loss = loss_sum / max(answer_tokens, 1.0)

        step = self.global_step + 1
        if reason := self.monitor.check(loss, grad_norm):
            rate = optimizer.param_groups[0]["lr"]
            raise diverged(step, reason, self._suspects(), rate, self.checkpoint_step)
        clip = self.config.train.clip_norm
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
        shown = ("loss", "grad_norm", *(f"loss/{name}" for name in names))
        self.log_dict({f"train/{name}": self.last_step[name] for name in shown}, prog_bar=True)
        self._micro_batches.clear()

    def _check_gradients(self) -> None:
        """A connector that detaches what it returns would train to the end and learn nothing."""
        learning = [each for each in self.vlm.connector.parameters() if each.requires_grad]
        if learning and all(each.grad is None for each in learning):
            raise UserError(
                f"{title(self.vlm.connector)}: no gradient arrives at any of its parameters, so it learns nothing. Its "
                "forward detaches its tokens, or makes them under torch.no_grad()."
            )

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
