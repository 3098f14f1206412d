"""The data module: what batches hold, who gets them, and that no place is ever lost."""

import json
import logging
import pickle
from collections.abc import Sequence

import lightning
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torchvision.transforms.functional import to_tensor

from ablate.core.errors import UserError
from datamodules import IGNORE_INDEX, IMAGE_TOKEN_ID
from datamodules.config import DataConfig
from datamodules.errors import BadSample, ShardError
from datamodules.images.feature_cache import FeatureCache
from datamodules.llava import LlavaDataModule
from datamodules.shards.reader import write_shards

VISUAL = 6


def to_8x8(image: Image.Image) -> torch.Tensor:
    return to_tensor(image.resize((8, 8)))


def to_4x4(image: Image.Image) -> torch.Tensor:
    return to_tensor(image.resize((4, 4)))


@pytest.fixture
def make_data(shard_folder, tokenizer):
    def make(*, seed=0, rank=None, world_size=None, features=None, transforms=(to_8x8, to_4x4), **settings):
        settings = {"shards": [str(shard_folder)], "batch_size": 8, "bucket_batches": 3} | settings
        data = LlavaDataModule(DataConfig(**settings), seed=seed, rank=rank, world_size=world_size)
        data.connect(tokenizer, transforms, VISUAL, features)
        return data

    return make


def keys(loader, epochs: Sequence[int] = (0,)) -> list[list[str]]:
    found = []
    for epoch in epochs:
        loader.set_epoch(epoch)
        found += [batch["keys"] for batch in loader]
    return found


def without_idle(batches: list[list[str]]) -> list[str]:
    return [key for batch in batches for key in batch if not key.endswith("(idle)")]


def assert_same(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value) if name != "keys" else None
    assert left["keys"] == right["keys"]


# What batches hold


def test_batches_keep_the_contract(make_data, samples, tokenizer):
    data = make_data()
    for batch in data.train_dataloader():
        assert {"input_ids", "labels", "mask", "keys"} <= batch.keys() <= {*batch, "images"}
        assert batch["input_ids"].shape == batch["labels"].shape == batch["mask"].shape
        with_image = 0
        for row, key in enumerate(batch["keys"]):
            record, image = samples[int(key.split(":")[1])]
            ids = batch["input_ids"][row][batch["mask"][row]]
            with_image += image is not None
            assert (ids == IMAGE_TOKEN_ID).sum() == (VISUAL if image else 0)
            learned = [i for i in batch["labels"][row].tolist() if i != IGNORE_INDEX]
            answers = [turn["value"] for turn in record["conversations"] if turn["from"] == "gpt"]
            assert tokenizer.decode(learned) == "".join(answer + "<|endoftext|>" for answer in answers)
        assert [len(images) for images in batch.get("images", [])] == ([with_image] * 2 if with_image else [])


def test_images_belong_to_their_rows(make_data):
    data = make_data()
    for batch in data.train_dataloader():
        rows = [data.dataset.row(int(key.split(":")[1])) for key in batch["keys"]]
        expected = [row.images for row in rows if row.images is not None]
        for encoder in range(2):
            torch.testing.assert_close(batch["images"][encoder], torch.stack([images[encoder] for images in expected]))


def test_workers_change_nothing(make_data):
    alone, helped = make_data().train_dataloader(), make_data(num_workers=2).train_dataloader()
    for _ in range(2):
        for left, right in zip(alone, helped, strict=True):
            assert_same(left, right)
    assert alone.epoch == helped.epoch == 1


def test_features_take_the_place_of_images(make_data, tmp_path):
    def encode(images):
        return torch.stack([to_4x4(image).permute(1, 2, 0) for image in images])

    cache = FeatureCache(tmp_path, {"encoder": "mean"}, torch.float32)
    with_images = make_data()
    report = cache.build(with_images.images(), encode)
    assert report.encoded == len(list(with_images.images())) == 16  # shared by 48 samples
    cached = make_data(features=cache, num_workers=1)
    for left, right in zip(with_images.train_dataloader(), cached.train_dataloader(), strict=True):
        assert "images" not in right
        torch.testing.assert_close(right["features"], left["images"][1].permute(0, 2, 3, 1))
        assert left["keys"] == right["keys"]


def test_image_that_the_cache_lacks_is_an_error(make_data, tmp_path):
    data = make_data(features=FeatureCache(tmp_path, {"encoder": "none"}), on_bad_sample="skip")
    with pytest.raises(UserError, match="feature cache"):
        list(data.train_dataloader())


def test_padding_is_small_although_lengths_are_estimated(make_data, padding_fraction):
    data = make_data(bucket_batches=0)
    lengths = torch.tensor([len(data.dataset.row(i).input_ids) for i in range(len(data.shards))]).numpy()
    batches = [list(step.samples) for step in data.train_dataloader().steps]
    unsorted = [list(step.samples) for step in make_data(bucket_batches=1).train_dataloader().steps]
    assert padding_fraction(batches[:-1], lengths) < 0.1 < padding_fraction(unsorted[:-1], lengths)


def test_max_length_is_counted(make_data, caplog):
    data = make_data(max_length=60)
    with caplog.at_level(logging.WARNING):
        batches = list(data.train_dataloader())
    assert max(batch["input_ids"].shape[1] for batch in batches) == 60
    assert len(data.report.cut) > 3
    assert caplog.text.count("cut to max_length") == 1
    assert "0 samples skipped" in str(data.report)


def test_prompts_use_the_training_template(make_data):
    data = make_data(template="llava_v1")
    assert data.encoder.prompt_ids("What?", has_image=True).count(IMAGE_TOKEN_ID) == VISUAL
    assert data.encoder.template.user_prefix == "USER: "


def test_mistakes_are_told_at_once(make_data, tmp_path, shard_folder):
    with pytest.raises(UserError, match="prompt template"):
        make_data(template="lava")
    with pytest.raises(ShardError, match="No shards at"):
        make_data(shards=[str(tmp_path / "none")])
    with pytest.raises(RuntimeError, match="connect"):
        LlavaDataModule(DataConfig(shards=[str(shard_folder)])).train_dataloader()
    with pytest.raises(UserError, match="No batch: 61 samples"):
        make_data(batch_size=64, drop_last=True).train_dataloader()
    with pytest.raises(UserError, match="batch_size is 2, but there are 3 ranks"):
        make_data(batch_size=2, rank=0, world_size=3).train_dataloader()
    with pytest.raises(UserError, match="rank is 2"):
        make_data(rank=2, world_size=2).train_dataloader()


def test_checksums_are_verified_where_asked(make_data, shard_folder, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in shard_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / "train-00003.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    make_data(shards=[str(folder)])
    with pytest.raises(ShardError, match=r"train-00003\.tar is corrupt"):
        make_data(shards=[str(folder)], verify_checksums=True)


# Samples that cannot be used


@pytest.fixture
def bad_folder(tmp_path, samples, make_image):
    """61 samples, of which 3 ends without an answer and the image of 7 is cut in half."""
    changed = list(samples)
    record, image = samples[3]
    changed[3] = (record | {"conversations": record["conversations"][:1]}, image)
    changed[7] = (samples[7][0], make_image(99, "png")[:300])
    write_shards(changed, tmp_path / "bad", samples_per_shard=20)
    return tmp_path / "bad"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_sample_stops_with_its_name(make_data, bad_folder, num_workers):
    data = make_data(shards=[str(bad_folder)], num_workers=num_workers)
    with pytest.raises(BadSample) as error:
        list(data.train_dataloader())
    assert error.value.key in ("train-00000.tar:000000003", "train-00000.tar:000000007")
    assert "Traceback" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_skipped_and_counted_once(make_data, bad_folder, caplog, num_workers):
    data = make_data(shards=[str(bad_folder)], on_bad_sample="skip", max_bad_share=0.1, num_workers=num_workers)
    loader = data.train_dataloader()
    with caplog.at_level(logging.WARNING):
        for epoch in range(2):
            found = [key for batch in keys(loader, [epoch]) for key in batch]
            assert len(found) == 59
    assert data.report.skipped.keys() == {"train-00000.tar:000000003", "train-00000.tar:000000007"}
    assert "without an answer" in data.report.skipped["train-00000.tar:000000003"]
    assert caplog.text.count("Skipped train-00000.tar:000000007: its image cannot be decoded") == 1
    assert "2 samples skipped" in str(data.report)


def test_batch_whose_samples_are_all_skipped_teaches_nothing(make_data, bad_folder):
    data = make_data(shards=[str(bad_folder)], on_bad_sample="skip", max_bad_share=0.1, batch_size=1)
    empty = [batch for batch in data.train_dataloader() if batch["keys"] == ["(all skipped)"]]
    assert len(empty) == 2
    assert all((batch["labels"] == IGNORE_INDEX).all() for batch in empty)
    assert all(batch["mask"].any() for batch in empty)


# Ranks


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=15
)
@given(
    world_size=st.integers(2, 5), batch_size=st.integers(5, 20), micro_batch=st.integers(0, 3), seed=st.integers(0, 9)
)
def test_ranks_together_see_what_one_process_sees(make_data, world_size, batch_size, micro_batch, seed):
    order = {"batch_size": batch_size, "seed": seed, "transforms": ()}
    one = keys(make_data(**order).train_dataloader())
    datas = [
        make_data(**order, micro_batch=micro_batch, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    ranks = [keys(data.train_dataloader()) for data in datas]
    assert len({len(batches) for batches in ranks}) == 1
    per_batch = datas[0].accumulate_grad_batches
    for number, batch in enumerate(one):
        together = [key for rank in ranks for key in without_idle(rank[number * per_batch : (number + 1) * per_batch])]
        assert sorted(together) == sorted(batch)


def test_idle_rank_gets_a_row_that_teaches_nothing(make_data):
    last = [list(make_data(batch_size=59, rank=rank, world_size=3).train_dataloader())[-1] for rank in range(3)]
    assert [len(without_idle([batch["keys"]])) for batch in last] == [1, 1, 0]
    assert last[2]["keys"][0].endswith("(idle)")
    assert (last[2]["labels"] == IGNORE_INDEX).all()
    assert last[2]["input_ids"].tolist() == last[0]["input_ids"].tolist()


def test_accumulation(make_data):
    assert make_data(batch_size=8).accumulate_grad_batches == 1
    assert make_data(batch_size=8, micro_batch=3).accumulate_grad_batches == 3
    assert make_data(batch_size=8, micro_batch=3, rank=0, world_size=2).accumulate_grad_batches == 2


# The place


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=20
)
@given(stop=st.integers(0, 15), seed=st.integers(0, 5), micro_batch=st.sampled_from([0, 3]))
def test_a_restored_loader_continues_at_the_next_batch(make_data, stop, seed, micro_batch):
    settings = {"seed": seed, "micro_batch": micro_batch, "transforms": ()}
    straight = keys(make_data(**settings).train_dataloader(), [0, 1])
    first = make_data(**settings)
    loader = first.train_dataloader()
    iterator = iter(loader)
    seen = [next(iterator)["keys"] for _ in range(min(stop, len(loader)))]
    state = json.loads(json.dumps(first.state_dict()))  # plain values

    second = make_data(**settings)
    second.load_state_dict(state)
    loader = second.train_dataloader()
    if stop < len(loader):
        seen += keys(loader, [0])
    seen += keys(loader, [1])
    assert seen == straight
    assert len(loader) * 2 == len(straight)


def test_what_workers_prepared_ahead_is_not_counted(make_data):
    data = make_data(num_workers=2)
    iterator = iter(data.train_dataloader())
    seen = [next(iterator)["keys"] for _ in range(2)]
    assert data.state_dict()["step"] == 2
    other = make_data(num_workers=2)
    other.load_state_dict(data.state_dict())
    assert seen + keys(other.train_dataloader()) == keys(make_data().train_dataloader())


def test_epochs_follow_each_other_without_set_epoch(make_data):
    loader = make_data().train_dataloader()
    plain = [[batch["keys"] for batch in loader] for _ in range(2)]
    assert plain[0] + plain[1] == keys(make_data().train_dataloader(), [0, 1])
    assert plain[0] != plain[1]


def test_resuming_on_more_ranks_gives_the_rest_exactly_once(make_data):
    first = make_data(transforms=())
    iterator = iter(first.train_dataloader())
    seen = [key for _ in range(3) for key in next(iterator)["keys"]]
    rest = []
    for rank in range(2):
        data = make_data(transforms=(), rank=rank, world_size=2, micro_batch=2)
        data.load_state_dict(first.state_dict())
        rest += without_idle(keys(data.train_dataloader()))
    assert sorted(seen + rest) == sorted(first.shards.key(i) for i in range(61))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"batch_size": 9}, "batch_size: 8 then, 9 now"), ({"seed": 1}, "seed: 0 then"), ({"shuffle": False}, "shuffle")],
)
def test_a_place_in_another_order_is_refused(make_data, change, named):
    state = make_data().train_dataloader().state_dict()
    other = make_data(**change)
    other.load_state_dict(state)
    with pytest.raises(UserError, match=named):
        other.train_dataloader()


def test_a_place_in_other_data_is_refused(make_data, bad_folder):
    state = make_data().train_dataloader().state_dict()
    loader = make_data(shards=[str(bad_folder)]).train_dataloader()
    with pytest.raises(UserError, match="data: "):
        loader.load_state_dict(state)


def test_dataset_can_go_to_a_spawned_worker(make_data):
    data = make_data()
    again = pickle.loads(pickle.dumps(data.dataset))
    assert again.row(1).input_ids == data.dataset.row(1).input_ids


# Under Lightning's trainer


class Model(lightning.LightningModule):
    """A mean of token embeddings: enough for its weights to depend on every batch and their order."""

    def __init__(self, fail_at: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(512, 1)
        self.seen: list[list[str]] = []
        self.fail_at = fail_at

    def training_step(self, batch, _):
        if len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append(batch["keys"])
        return self.embedding(batch["input_ids"].clamp(min=0)).mean() ** 2

    def configure_optimizers(self):
        # Lightning makes the loader here, before it restores the loader's saved place (#20550).
        steps = self.trainer.estimated_stepping_batches
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.1, int(steps)),
                "interval": "step",
            },
        }


def make_trainer(folder, *callbacks, max_epochs=3, **options) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        **options,
    )


@pytest.fixture
def straight(make_data, tmp_path):
    """Three epochs without a stop, with a checkpoint after every step and every epoch."""
    every_step = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    every_epoch = ModelCheckpoint(tmp_path, save_on_train_epoch_end=True, save_top_k=-1, filename="{epoch}")
    model = Model()
    make_trainer(tmp_path, every_step, every_epoch).fit(model, datamodule=make_data(transforms=()))
    assert len(model.seen) == 24  # 61 samples by 8 are 8 batches
    assert len({key for batch in model.seen[:8] for key in batch}) == 61
    return model


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("checkpoint", "done"),
    [("step=3", 3), ("step=8", 8), ("step=11", 11), ("step=16", 16), ("epoch=0", 8), ("epoch=1", 16)],
)
def test_trainer_resumes_to_the_bit(make_data, straight, tmp_path, checkpoint, done, num_workers):
    resumed = Model()
    data = make_data(transforms=(), num_workers=num_workers)
    make_trainer(tmp_path).fit(resumed, datamodule=data, ckpt_path=tmp_path / f"{checkpoint}.ckpt")
    assert resumed.seen == straight.seen[done:]
    assert torch.equal(resumed.embedding.weight, straight.embedding.weight)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_extending_a_run_that_max_steps_ended_loses_nothing(make_data, straight, tmp_path):
    first, trainer = Model(), make_trainer(tmp_path, max_epochs=-1, max_steps=11)
    trainer.fit(first, datamodule=make_data(transforms=()))
    trainer.save_checkpoint(tmp_path / "short.ckpt")
    more = Model()
    longer = make_trainer(tmp_path, max_epochs=-1, max_steps=24)
    longer.fit(more, datamodule=make_data(transforms=()), ckpt_path=tmp_path / "short.ckpt")
    assert first.seen + more.seen == straight.seen


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_step_that_was_interrupted_comes_again(make_data, straight, tmp_path):
    """The batch was handed out, but no weight has learned from it when the checkpoint is written."""
    model, trainer = Model(fail_at=10), make_trainer(tmp_path)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(model, datamodule=make_data(transforms=()))
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    resumed = Model()
    make_trainer(tmp_path).fit(resumed, datamodule=make_data(transforms=()), ckpt_path=tmp_path / "stopped.ckpt")
    assert model.seen + resumed.seen == straight.seen
    assert torch.equal(resumed.embedding.weight, straight.embedding.weight)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_new_fit_starts_at_the_beginning(make_data, straight, tmp_path):
    data, first, second = make_data(transforms=()), Model(), Model()
    make_trainer(tmp_path, max_steps=5).fit(first, datamodule=data)
    make_trainer(tmp_path).fit(second, datamodule=data)
    assert second.seen == straight.seen
