"""One run from config to result: features, training, evaluation, each of which can be stopped and continued."""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from ablate.core import config as config_io
from ablate.core.console import Reporter
from ablate.core.errors import UserError
from ablate.core.files import explain_full_disk, read_json, read_lines, write_json, write_text
from ablate.core.interrupts import Interrupted, StopRequest, stop_requests
from ablate.core.launchers import launched
from ablate.core.locks import exclusive
from ablate.core.ranks import ALONE, Ranks
from ablate.core.sources import set_aside
from ablate.features.filling import CachedFeatures
from ablate.model import VLM, count_parameters
from ablate.model.recipe import Recipe
from ablate.pipeline.checkpoints import adopt_checkpoint
from ablate.runs.config import RunConfig, TrainConfig
from ablate.runs.folder import RunFiles, is_finished, write_result
from ablate.runs.identity import run_folder, run_id
from ablate.runs.provenance import out_of_date, provenance
from ablate.runs.weights import load_weights, save_weights
from ablate.ssm import why_no_kernels
from ablate.training.callbacks import Recorder, StopTraining
from ablate.training.learning_table import learning_table
from ablate.training.lightning_state import SafeCheckpointIO
from ablate.training.loggers import RunLogger, tracking
from ablate.training.memory import peak_bytes
from ablate.training.module import VLMModule, build
from datamodules.errors import BadSample
from datamodules.llava import LlavaDataModule
from datamodules.order.plan import steps_per_batch
from datamodules.text.tokenizer import Tokenizer

_PRECISION: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed"}


class Evaluate(Protocol):
    """Scores a trained model. The command line passes one in: training knows no benchmark."""

    def __call__(
        self, config: RunConfig, vlm: VLM, folder: Path, reporter: Reporter, ranks: Ranks
    ) -> Mapping[str, dict[str, Any]]:
        """`vlm` is in evaluation mode on the run's device; predictions go to `folder/predictions`.

        Called on every rank that trained, on each with the same weights.

        Returns, for each benchmark, what result.json has under `scores`; on the first rank.
        """
        ...


def train(
    config: RunConfig,
    *,
    evaluate: Evaluate | None = None,
    console: Console | None = None,
    rerun: bool = False,
    checkpoint: Path | None = None,
) -> Path:
    """Train and evaluate the run that `config` describes; continue it if it was begun, skip it if it is finished.

    Args:
        evaluate: scores the trained model; None: no scores.
        console: where to report; standard error if None.
        rerun: train a finished run again if the source that it was made of has changed since; the old folder stays
            under another name.
        checkpoint: begin with this one, written by the user's own Trainer, see `adopt_checkpoint`.

    Returns:
        the run's folder.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the same call continues the run, with the same weights in the end, to the bit.
        Diverged: the loss is not finite or stays far too high.
        UserError: anything else that the user can correct.
    """
    config.require_data()
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # set by Lightning
    files = RunFiles(run_folder(config))
    console = console or Console(stderr=True)
    reporter = Reporter(files.folder if first else None, console if first else None)
    if is_finished(files.folder):
        changed = out_of_date(config)
        if not (rerun and changed):
            reporter.say(f"{files.folder} is finished: skipped{_what_to_do(changed)}")
            if first and os.environ.get("WANDB_SWEEP_ID"):
                # The sweep's controller waits for its metric from the run that it has handed out.
                with _tracking(config, reporter) as logger:
                    _log_result(read_json(files.result), logger)
            return files.folder
        if first:
            reporter.say(f"The source of {', '.join(changed)} has changed: the old run is {set_aside(files.folder)}")
    try:
        with explain_full_disk(files.folder), _explain_stop(files, reporter) as stop, ExitStack() as stack:
            if first:
                busy = f"{files.folder} is being trained by another process: wait for it, or stop it."
                stack.enter_context(exclusive(files.lock, busy=busy))
                stack.enter_context(_no_empty_folder(files.folder))
            adopted = adopt_checkpoint(checkpoint, config, files) if first and checkpoint else None
            _Run(config, files, reporter, stop, adopted).execute(evaluate)
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The GPU's memory is full ({reason}). A lower data.micro_batch leaves the result as it is."
        ) from error
    except UserError as error:
        if not first:
            raise SystemExit(error.exit_code) from None  # the first rank has said it
        raise
    return files.folder


def _what_to_do(changed: list[str]) -> str:
    if not changed:
        return ""
    return f". The source of {', '.join(changed)} has changed since: --rerun trains it again and keeps the old folder."


class _Run:
    """One attempt at a run, on one rank."""

    def __init__(
        self,
        config: RunConfig,
        files: RunFiles,
        reporter: Reporter,
        stop: StopRequest,
        adopted: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.files, self.reporter, self.stop = config, files, reporter, stop
        self.adopted = adopted  # the checkpoint of another Trainer with which the run begins
        self.first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # set by Lightning

    def execute(self, evaluate: Evaluate | None) -> None:
        config, files = self.config, self.files
        with _deterministic(), ExitStack() as stack:
            vlm, recipe, saved_parts = build(config)
            logger = stack.enter_context(_tracking(config, self.reporter, enabled=self.first))
            ranks = ALONE
            if read_json(files.training) is None:
                recipe.prepare(vlm)
                self._train(vlm, recipe, saved_parts, logger)
                ranks = Ranks.that_trained()
                ranks.wait()  # for the weights
            elif not self.first:
                return
            load_weights(vlm, files.weights)  # also after training: what is scored is what was saved
            self._evaluate(vlm, evaluate, logger, ranks)

    def _train(self, vlm: VLM, recipe: Recipe, saved_parts: set[str], logger: RunLogger) -> None:
        config, files = self.config, self.files
        device = torch.device("cuda" if _accelerator(config.train) == "gpu" else "cpu")
        module = VLMModule(config, vlm=vlm, recipe=recipe)
        data = LlavaDataModule(config.data, seed=config.seed, rejects=files.rejects)
        features = None
        if config.may_cache_features:
            features = CachedFeatures(config, vlm.encoder, device=device, reporter=self.reporter)
        tokenizer = module.connect(data, features)
        steps_per_epoch = data.batches_per_epoch()
        steps = config.train.max_steps or config.train.epochs * steps_per_epoch
        recorder = Recorder(
            files, config.train, steps=steps, steps_per_epoch=steps_per_epoch, reporter=self.reporter, stop=self.stop
        )
        resumed = str(files.checkpoint) if files.checkpoint.exists() else None
        with _quiet_lightning():
            trainer = _trainer(config, files.folder, steps, recorder, logger)
            _check_world(trainer, config.train)
            if self.first:
                self._describe(vlm, data, tokenizer, device)
            with _end_other_ranks(trainer), _skipping_offered(config):
                trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
                if len(data.validation_samples) and recorder.validated_at != steps:
                    trainer.validate(module, datamodule=data, verbose=False)
        if self.first:
            save_weights(vlm, files.weights, saved_parts)
            summary = self._summary(vlm, data, steps_per_epoch, peak_bytes(device))
            if len(data.validation_samples):
                summary["train"]["validation_loss"] = float(trainer.callback_metrics["val/loss"])
            write_json(files.training, summary)
            if not config.train.keep_checkpoint:
                files.checkpoint.unlink(missing_ok=True)

    def _describe(self, vlm: VLM, data: LlavaDataModule, tokenizer: Tokenizer, device: torch.device) -> None:
        """Write the run's config and provenance, and report what the user should know before the first step."""
        config, files = self.config, self.files
        write_text(files.config, config_io.to_yaml(config))
        source: dict[str, Any] = {"sha256": data.shards.digest, "samples": len(data.shards)}
        source["tokenizer"] = tokenizer.digest
        if config.data.sources:
            source["sources"] = data.describe_sources()
            self._tell_mixture(source["sources"])
        if kept := len(data.validation_samples):
            source["validation_samples"] = kept
            self.reporter.say(f"{kept:,} of {len(data.shards):,} samples are kept out of training, for validation.")
        earlier = read_json(files.provenance) if files.checkpoint.exists() else None
        if earlier and (changed := out_of_date(config)):
            self.reporter.say(
                f"The source of {', '.join(changed)} has changed since this run began: it continues with the "
                f"weights that the old source made. To start over, delete {files.folder}."
            )
        encoder = str(next(vlm.encoder.parameters()).dtype).removeprefix("torch.")
        precision = {"train": config.train.precision, "encoder": encoder, "device": device.type}
        found = provenance(config, source, precision, earlier)
        if adopted := self.adopted or (earlier or {}).get("adopted"):
            found["adopted"] = adopted
        write_json(files.provenance, found)
        if self.reporter.console is not None:
            self.reporter.console.print(learning_table(vlm, config.train.stage))
        for notice in (_scan_notice(device), data.packing_summary()):
            if notice:
                self.reporter.say(notice)

    def _evaluate(self, vlm: VLM, evaluate: Evaluate | None, logger: RunLogger, ranks: Ranks) -> None:
        start = time.perf_counter()
        scores: Mapping[str, dict[str, Any]] = {}
        if evaluate is not None:
            vlm.to(_accelerator(self.config.train).replace("gpu", "cuda")).eval()
            scores = evaluate(self.config, vlm, self.files.folder, self.reporter, ranks)
        if not self.first:
            return
        write_result(self.files, self.config, scores, time.perf_counter() - start)
        _log_result(read_json(self.files.result), logger)

    def _summary(self, vlm: VLM, data: LlavaDataModule, steps_per_epoch: int, peak: int) -> dict[str, Any]:
        lines = read_lines(self.files.steps)
        seconds = [line["seconds"] for line in lines]
        parameters = count_parameters(vlm)
        return {
            "train": {
                "steps": lines[-1]["step"],
                "epochs": round(lines[-1]["step"] / steps_per_epoch, 4),
                "final_loss": fmean(line["loss"] for line in lines[-20:]),
                "skipped_samples": len(data.report.skipped),
                "cut_samples": len(data.report.cut),
                "trained_sizes": vlm.trained_sizes,
            },
            "cost": {
                "connector_parameters": parameters.connector,
                "trainable_parameters": parameters.trainable,
                "total_parameters": parameters.total,
                "visual_tokens": vlm.num_visual_tokens,
                # The first steps allocate memory and compile kernels.
                "step_seconds": median(seconds[min(5, len(seconds) // 2) :]),
                "peak_memory_bytes": peak,
                "train_seconds": round(sum(seconds), 3),
            },
        }

    def _tell_mixture(self, sources: list[dict[str, Any]]) -> None:
        total = sum(source["samples_per_epoch"] for source in sources)
        self.reporter.say(f"An epoch takes {total:,} samples:")
        for source in sources:
            self.reporter.say(
                f"  {source['share']:6.1%}  {source['samples_per_epoch']:,} of {source['samples']:,} "
                f"(weight {source['weight']:g})  {', '.join(source['shards'])}"
            )


def _tracking(config: RunConfig, reporter: Reporter, *, enabled: bool = True) -> Any:
    tags = [config.connector.name, config.train.stage, *(["blind"] if config.blind else []), *config.logger.tags]
    return tracking(
        config.logger,
        run_id=run_id(config),
        group=config.group,
        settings=config_io.flatten(config),
        folder=Path(config.root),
        tags=tags,
        enabled=enabled,
        job_type=config.train.stage,
        say=reporter.say,
    )


def _log_result(result: Mapping[str, Any], logger: RunLogger) -> None:
    """What result.json has, once it is written: W&B must not cost a result."""
    if result["scores"]:
        logger.log_scores(result["scores"], step=result["train"]["steps"])
    logger.summarize({f"cost/{name}": value for name, value in result["cost"].items()})


def _trainer(config: RunConfig, folder: Path, steps: int, recorder: Recorder, logger: RunLogger) -> L.Trainer:
    train = config.train
    return L.Trainer(
        default_root_dir=folder,
        accelerator=_accelerator(train),
        devices=train.devices,
        num_nodes=train.num_nodes,
        strategy=train.strategy,
        precision=_PRECISION[train.precision],
        max_epochs=-1,
        max_steps=steps,
        accumulate_grad_batches=steps_per_batch(
            config.data.batch_size, world_size=train.devices * train.num_nodes, micro_batch=config.data.micro_batch
        ),
        use_distributed_sampler=False,  # the data module distributes the samples, without repeats
        callbacks=[recorder],
        plugins=[SafeCheckpointIO()],
        logger=logger,
        log_every_n_steps=0,  # the recorder does
        # Progress, checkpoints and table of parts are ours.
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _check_world(trainer: L.Trainer, train: TrainConfig) -> None:
    """The launcher has the last word on how many processes there are; a share of each batch would go missing.

    Raises:
        UserError: others than the config asks for.
    """
    asked, started = train.devices * train.num_nodes, trainer.world_size
    launcher = type(getattr(trainer.strategy, "cluster_environment", None)).__name__.removesuffix("Environment")
    if started == asked and (found := launched()) is not None:
        launcher, started = found
    if started == asked:
        return
    raise UserError(
        f"train.devices={train.devices} and train.num_nodes={train.num_nodes} ask for {asked} "
        f"process{'es' if asked > 1 else ''}, but {launcher} started {started}. Start {asked} (under SLURM: `srun "
        f"--nodes={train.num_nodes} --ntasks-per-node={train.devices} ablate train ...`), or set train.devices and "
        "train.num_nodes to what was started."
    )


@contextmanager
def _end_other_ranks(trainer: L.Trainer) -> Iterator[None]:
    """Where this process started the other ranks, an error here ends them: they would wait for it."""
    try:
        yield
    except BaseException:
        for process in getattr(trainer.strategy.launcher, "procs", ()):
            process.kill()
        raise


def _scan_notice(device: torch.device) -> str:
    """A notice for users with a GPU but without the Triton kernels; otherwise empty."""
    reason = why_no_kernels() if device.type == "cuda" else ""
    return f"The scan runs in PyTorch, not in mamba-ssm's Triton kernels. {reason}" if reason else ""


def _accelerator(config: TrainConfig) -> str:
    """Lightning's `auto` would take Apple's GPU, which lacks kernels that the scan needs."""
    if config.accelerator == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("train.accelerator=gpu, but PyTorch finds no CUDA device: use train.accelerator=cpu or auto.")
    return config.accelerator


@contextmanager
def _skipping_offered(config: RunConfig) -> Iterator[None]:
    """Tell the user how to skip a sample that cannot be used."""
    try:
        yield
    except BadSample as bad:
        if config.data.on_bad_sample == "skip":
            raise
        raise UserError(
            f"{bad}. Fix it, or leave such samples out with data.on_bad_sample=skip: they are named in the run's "
            f"rejects.jsonl, and more than data.max_bad_share={config.data.max_bad_share:g} of them still stop the run."
        ) from bad


@contextmanager
def _explain_stop(files: RunFiles, reporter: Reporter) -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into `Interrupted`, at any point."""
    with stop_requests(reporter.say) as stop:
        try:
            yield stop
        except (KeyboardInterrupt, StopTraining, SystemExit) as error:
            # Lightning makes a SystemExit of a KeyboardInterrupt.
            if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
                raise
            raise Interrupted(_how_to_continue(files), stop.signum or signal.SIGINT) from None


@contextmanager
def _no_empty_folder(folder: Path) -> Iterator[None]:
    """Remove a run's folder, and that of its group, if an error comes before anything but the lock is in it."""
    try:
        yield
    except BaseException:
        lock = RunFiles(folder).lock
        if list(folder.iterdir()) == [lock]:
            with suppress(OSError):  # the group has other runs
                lock.unlink()
                folder.rmdir()
                folder.parent.rmdir()
        raise


def _how_to_continue(files: RunFiles) -> str:
    if read_json(files.training) is not None:
        kept = "Training is complete and kept, and so are the answers so far; the evaluation resumes where it stopped."
    elif files.checkpoint.exists():
        kept = "The last checkpoint is kept."
    else:
        kept = "There was no checkpoint yet."
    return f"Stopped. {kept} To continue, run the same command again, or: ablate train --config {files.config}"


@contextmanager
def _deterministic() -> Iterator[None]:
    """Kernels that give the same bits every time, where there are such; the earlier choice is put back."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    fill = deterministic.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # a debugging aid that costs a pass over each tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        deterministic.fill_uninitialized_memory = fill


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's notes on its own set-up."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
