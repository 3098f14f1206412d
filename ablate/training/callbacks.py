"""What happens after every optimizer step: a line in the log, progress, W&B, a checkpoint now and then, stopping."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from ablate.core.console import Phase, Reporter
from ablate.core.files import JsonLines
from ablate.core.interrupts import StopRequest
from ablate.runs.config import TrainConfig
from ablate.runs.folder import RunFiles
from ablate.training.memory import reset_peak
from datamodules.batches.lightning_loop import recount_batches


class Recorder(L.Callback):
    """Keeps the run folder up to date while training.

    A line of train.jsonl has step, epoch (fractional), loss (mean over the step's answer tokens, nats), lr, grad_norm
    (before clipping), tokens (real ones, visual included), answer_tokens, loss/NAME for each part of the loss beside
    the cross entropy, and seconds (forward, backward, optimizer and waiting for data; not this callback).
    """

    def __init__(
        self,
        files: RunFiles,
        config: TrainConfig,
        *,
        steps: int,
        steps_per_epoch: int,
        reporter: Reporter,
        stop: StopRequest,
    ) -> None:
        self.files, self.config, self.steps, self.steps_per_epoch = files, config, steps, steps_per_epoch
        self.reporter, self.stop = reporter, stop
        self.validated_at = -1  # the step
        self._loggers: list[Logger] = []
        self._lines: JsonLines | None = None
        self._phase: Phase | None = None
        self._step = 0
        self._since = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        recount_batches(trainer)
        self._step, self._loggers = trainer.global_step, trainer.loggers
        pl_module.stop_requested = self.stop.requested
        if trainer.is_global_zero:
            self._lines = JsonLines(self.files.steps, after=self._step)
            self._phase = self.reporter.phase("train", self.steps, start=self._step)
        reset_peak(trainer.strategy.root_device)  # encoding images for the cache is not training
        self.stop.deferred = True
        self.stop.listen()  # Lightning has put a SIGTERM handler of its own, which raises before there is a checkpoint
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self._step:
            return  # gradients are still being accumulated
        self._step = trainer.global_step
        if trainer.is_global_zero:
            self._record(pl_module.last_step, time.perf_counter() - self._since)
        stopping = pl_module.stop_agreed and self._step < self.steps
        due = self.config.checkpoint_every and self._step % self.config.checkpoint_every == 0
        if stopping or (due and self._step < self.steps):
            trainer.save_checkpoint(self.files.checkpoint)
            pl_module.checkpoint_step = self._step
        if stopping:
            raise StopTraining
        self._since = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = float(trainer.callback_metrics["val/loss"])
        self.validated_at = trainer.global_step
        if trainer.is_global_zero:
            self.reporter.say(f"Validation loss after step {trainer.global_step}: {loss:.4f}")
        for logger in self._loggers:
            logger.log_metrics({"val/loss": loss}, step=trainer.global_step)
        self._since = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _record(self, values: dict[str, float], seconds: float) -> None:
        assert self._lines is not None
        assert self._phase is not None
        epoch = round(self._step / self.steps_per_epoch, 4)
        pace = values["tokens"] / seconds
        self._lines.append({"step": self._step, "epoch": epoch, **values, "seconds": round(seconds, 6)})
        self._phase.update(self._step, text=f"loss {values['loss']:.3f} · lr {values['lr']:.2e} · {pace:,.0f} tokens/s")
        known = ("loss", "lr", "grad_norm", "answer_tokens")
        shown = {f"train/{name}": values[name] for name in values if name in known or name.startswith("loss/")}
        for logger in self._loggers:  # in full precision, and under the step's own number
            logger.log_metrics({**shown, "train/tokens_per_second": pace, "epoch": epoch}, step=self._step)

    def _close(self) -> None:
        self.stop.deferred = False
        if self._lines is not None:
            self._lines.close()
        if self._phase is not None:
            self._phase.close()


class StopTraining(Exception):
    """The checkpoint is written; leave the loop."""
