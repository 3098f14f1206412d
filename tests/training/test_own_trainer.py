"""`VLMModule` and `LlavaDataModule` in a Trainer of the user's own."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from ablate.core.errors import UserError
from ablate.core.files import read_json, read_lines
from ablate.pipeline.train import train
from ablate.runs.folder import RunFiles
from ablate.training.compatibility import check_trainer
from ablate.training.lightning_state import SafeCheckpointIO
from ablate.training.module import VLMModule
from datamodules.batches.lightning_loop import batches_begun, batches_processed
from datamodules.llava import LlavaDataModule

UNCACHED = "features.cache=false"  # cached features are rounded to float16


def fit(config, folder: Path, ckpt_path=None, **options):
    """The ten-line script."""
    module, data = VLMModule(config), LlavaDataModule(config.data, seed=config.seed)
    checkpoints = ModelCheckpoint(folder / "checkpoints", monitor="val/loss", save_last=True)
    callbacks = [checkpoints, LearningRateMonitor(), EarlyStopping("val/loss", patience=100)]
    trainer = L.Trainer(
        logger=CSVLogger(folder, name="log", version=""),
        callbacks=callbacks,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"max_epochs": 3, "log_every_n_steps": 1} | options),
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, data, trainer


def quiet(config, **options) -> tuple[VLMModule, LlavaDataModule, L.Trainer]:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, **options
    )
    return VLMModule(config), LlavaDataModule(config.data, seed=config.seed), trainer


def test_the_script_of_the_docs(configure, tmp_path, monkeypatch):
    """As it stands, but with the tests' model and data for the demo's."""
    source = (Path(__file__).parents[1] / "fixtures" / "own_trainer.py").read_text()
    demo = 'run_config("demo", ["data.validation=0.05", "connector.name=mlp"])'
    assert demo in source
    monkeypatch.chdir(tmp_path)
    names = {"small": configure("data.validation=0.3", "connector.name=mlp")}
    exec(source.replace(demo, "small"), names)
    assert math.isfinite(names["trainer"].callback_metrics["val/loss"])
    assert list(tmp_path.rglob("*.ckpt"))


@pytest.fixture
def held(configure):
    return configure("data.validation=0.3", UNCACHED)


def test_losses_are_logged_and_monitored(held, tmp_path):
    _, data, trainer = fit(held, tmp_path)
    rows = list(csv.DictReader((tmp_path / "log" / "metrics.csv").open()))
    steps_per_epoch = data.batches_per_epoch()
    assert len([row for row in rows if row["train/loss"]]) == 3 * steps_per_epoch == trainer.global_step
    assert len([row for row in rows if row["val/loss"]]) == 3
    assert any(row["lr-AdamW/pg1"] for row in rows)
    assert all(math.isfinite(float(row["train/grad_norm"])) for row in rows if row["train/loss"])
    best = min(float(row["val/loss"]) for row in rows if row["val/loss"])
    monitored = next(each for each in trainer.callbacks if isinstance(each, ModelCheckpoint))
    assert float(monitored.best_model_score) == pytest.approx(best)


def test_the_same_steps_as_our_own_run(configure, tmp_path):
    config = configure(UNCACHED, "train.epochs=2")
    ours = [line["loss"] for line in read_lines(RunFiles(train(config)).steps)]
    fit_here = quiet(config, max_epochs=2)
    losses = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            losses.append(module.last_step["loss"])

    module, data, trainer = fit_here
    trainer.callbacks.append(Watch())
    trainer.fit(module, datamodule=data)
    assert losses == pytest.approx(ours, rel=1e-5)


def test_the_validation_loss_is_the_mean_over_answer_tokens(held, tmp_path):
    module, data, trainer = fit(held, tmp_path)
    rows = [data.dataset.row(index) for index in data.validation_samples.tolist()]
    assert rows
    total = tokens = 0.0
    module.eval()
    with torch.inference_mode():
        for batch in data.val_dataloader():
            loss_sum, count, _ = module.vlm.loss(batch)
            total, tokens = total + float(loss_sum), tokens + int(count)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("packing", [0, 128])
def test_no_image_for_validation_is_trained_on(configure, packing):
    config = configure("data.validation=0.4", f"data.packing={packing}", "data.max_length=100", "data.batch_size=2")
    module, data = VLMModule(config), LlavaDataModule(config.data, seed=3)
    module.connect(data)
    shards = data.shards

    def keys(loader):
        return [key for batch in loader for key in batch["keys"]]

    numbers = {shards.key(index): index for index in range(len(shards))}
    trained, validated = (
        [numbers[key] for key in keys(part)] for part in (data.train_dataloader(), data.val_dataloader())
    )
    assert sorted(trained + validated) == list(range(len(shards)))
    assert sorted(validated) == data.validation_samples.tolist()
    images = [{shards.image_sha256(index) for index in part} - {""} for part in (trained, validated)]
    assert images[0]
    assert images[1]
    assert not images[0] & images[1]
    assert keys(data.val_dataloader()) == keys(data.val_dataloader())  # every time from its start
    other = LlavaDataModule(config.data, seed=4)
    assert other.validation_samples.tolist() == data.validation_samples.tolist()


def test_a_share_that_holds_out_nothing_is_refused(configure):
    data = LlavaDataModule(configure("data.validation=1e-9").data)
    with pytest.raises(UserError, match=r"data\.validation=1e-09 of .* keeps none of them"):
        _ = data.shards


def test_a_checkpoint_has_all_that_makes_the_module(held, tmp_path):
    module, _, _ = fit(held, tmp_path, max_epochs=1)
    loaded = VLMModule.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert loaded.config == module.config
    for name, tensor in module.vlm.state_dict().items():
        assert torch.equal(loaded.vlm.state_dict()[name], tensor), name


def test_a_checkpoint_of_ones_own_trainer_goes_on_in_ours(configure, tmp_path):
    config = configure(UNCACHED, "train.max_steps=8")
    whole = [line["loss"] for line in read_lines(RunFiles(train(config)).steps)]
    begun = configure(UNCACHED, "train.max_steps=8", f"root={tmp_path / 'other'}")

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "mine.ckpt")

    module, data, trainer = quiet(begun, max_steps=8)
    trainer.callbacks.append(Stop())
    trainer.fit(module, datamodule=data)
    files = RunFiles(train(begun, checkpoint=tmp_path / "mine.ckpt"))
    assert [line["loss"] for line in read_lines(files.steps)] == pytest.approx(whole[4:], rel=1e-5)
    assert read_json(files.training)["train"]["steps"] == 8
    assert read_json(files.provenance)["adopted"]["step"] == 4
    files.result.unlink()
    with pytest.raises(UserError, match="already exists: leave --checkpoint out"):
        train(begun, checkpoint=tmp_path / "mine.ckpt")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [(["seed=1"], "seed: 0 there, 1 here"), (["train.max_steps=3", UNCACHED], "train.max_steps: 8 there, 3 here")],
)
def test_a_checkpoint_of_other_settings_is_refused(configure, tmp_path, overrides, said):
    config = configure(UNCACHED, "train.max_steps=8")
    module, data, trainer = quiet(config, max_steps=2)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    with pytest.raises(UserError, match=said):
        train(configure(UNCACHED, "train.max_steps=8", *overrides), checkpoint=tmp_path / "mine.ckpt")


def test_our_checkpoint_goes_on_in_ones_own_trainer(configure, tmp_path):
    kept = configure(UNCACHED, "train.max_steps=6", "train.checkpoint_every=4", "train.keep_checkpoint=true")
    files = RunFiles(train(kept))
    assert SafeCheckpointIO().load_checkpoint(files.checkpoint)["global_step"] == 4
    module, data, trainer = quiet(kept, max_steps=6)
    trainer.fit(module, datamodule=data, ckpt_path=files.checkpoint)
    assert trainer.global_step == 6
    assert module.last_step["loss"] == pytest.approx(read_lines(files.steps)[-1]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "options", "said"),
    [
        ([], {"gradient_clip_val": 0.5}, r"gradient_clip_val=0\.5\), but train\.clip_norm is 1"),
        ([], {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, "by value"),
        (["data.micro_batch=1"], {}, r"data\.micro_batch=1 makes 4 batches .*accumulate_grad_batches=1"),
        ([], {"precision": "64-true"}, r'precision="64-true"\) has not been tested: use 32-true'),
        ([], {"max_epochs": -1}, "has no end: give the Trainer max_steps or max_epochs"),
    ],
)
def test_what_would_train_otherwise_is_refused_by_name(configure, overrides, options, said):
    module, data, trainer = quiet(configure(*overrides), **({"max_epochs": 1} | options))
    with pytest.raises(UserError, match=said):
        trainer.fit(module, datamodule=data)


@pytest.mark.parametrize("kind", [DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy])
def test_other_strategies_are_refused_by_name(kind):
    trainer = SimpleNamespace(strategy=object.__new__(kind))
    with pytest.raises(UserError, match=f"{kind.__name__}, which has not been tested: use auto or ddp"):
        check_trainer(trainer, None, 1.0)


def test_clipping_that_agrees_and_accumulation_of_whole_batches_are_honoured(configure):
    config = configure(UNCACHED)
    module, data, trainer = quiet(config, max_epochs=1, gradient_clip_val=1.0, accumulate_grad_batches=3)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == math.ceil(data.batches_per_epoch() / 3)
    last = module.trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0]
    assert last == pytest.approx(0.0, abs=1e-9)  # the schedule ends with the training


def test_the_loop_is_read_right(configure):
    seen = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            seen.append((batches_begun(trainer), batches_processed(trainer)))

    module, data, trainer = quiet(configure("train.epochs=2"), max_epochs=2)
    trainer.callbacks.append(Watch())
    trainer.fit(module, datamodule=data)
    each = data.batches_per_epoch()
    assert seen == [(number, number % each) for number in range(2 * each)]


def test_our_own_run_validates(held):
    files = RunFiles(train(held))
    summary = read_json(files.training)["train"]
    assert 0 < summary["validation_loss"] < 20
    assert read_json(files.provenance)["data"]["validation_samples"] > 0


def test_a_validation_loss_that_is_not_finite_is_seen(held, monkeypatch):
    spoilt = iter([1.0, math.nan] * 9)
    loss = VLMModule.validation_step

    def step(module, batch, number):
        factor = next(spoilt)
        inner = module.recipe.loss
        module.recipe.loss = lambda vlm, rows: inner(vlm, rows)._replace(total=inner(vlm, rows).total * factor)
        loss(module, batch, number)
        del module.recipe.loss

    monkeypatch.setattr(VLMModule, "validation_step", step)
    module, data, trainer = quiet(held, max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(module, datamodule=data)
    assert math.isnan(trainer.callback_metrics["val/loss"])
