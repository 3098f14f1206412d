import dataclasses
import hashlib

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import connectors
from ablate.core.errors import UserError
from ablate.core.files import read_json, read_lines
from ablate.model import VLM, build_vlm
from ablate.model.recipe import create as create_recipe
from ablate.model.weights import kept_names
from ablate.pipeline.train import train
from ablate.runs.folder import RunFiles
from ablate.ssm import Mamba2Mixer
from ablate.training.divergence import Diverged
from ablate.training.learning_table import learning_table
from ablate.training.module import VLMModule
from ablate.training.optimization import learning_rate_factor, parameter_groups
from datamodules.llava import LlavaDataModule
from datamodules.text.tokenizer import Tokenizer


def losses(folder):
    return [line["loss"] for line in read_lines(RunFiles(folder).steps)]


def weights(folder):
    return load_file(RunFiles(folder).weights)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_accumulation_changes_nothing(configure, micro_batch):
    """The mean is over all answer tokens of the batch, not a mean of the micro-batches' means."""
    whole = train(configure("train.epochs=2"))
    parts = train(configure("train.epochs=2", f"data.micro_batch={micro_batch}", "group=parts"))
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_step_is_that_of_the_mean_over_answer_tokens(configure):
    """One step, by hand: gradient of sum / tokens over the whole batch, clipped, then AdamW."""
    config = configure("train.max_steps=1", "train.warmup_ratio=0", "data.batch_size=22", "data.micro_batch=5")
    folder = train(config)

    vlm = build_vlm(config.model, seed=config.seed)
    create_recipe("finetune").freeze(vlm)
    data = LlavaDataModule(dataclasses.replace(config.data, micro_batch=0), seed=config.seed)
    data.connect(Tokenizer.from_file(config.tokenizer), vlm.encoder.transforms, vlm.num_visual_tokens)
    loss_sum, tokens, _ = vlm.loss(next(iter(data.train_dataloader())))
    mean = loss_sum / tokens
    mean.backward()
    norm = nn.utils.clip_grad_norm_(vlm.parameters(), config.train.clip_norm)
    torch.optim.AdamW(parameter_groups(vlm, config.train.weight_decay, config.train.learning_rate)).step()

    line = read_lines(RunFiles(folder).steps)[0]
    assert line["loss"] == pytest.approx(mean.item(), rel=1e-3)  # the cached features are float16
    assert line["grad_norm"] == pytest.approx(float(norm), rel=1e-2)
    assert line["answer_tokens"] == int(tokens)
    assert line["lr"] == config.train.learning_rate
    trained = weights(folder)
    for name, tensor in vlm.state_dict().items():
        if name in trained:
            torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=2e-3)


def test_learning_happens_without_cached_features_too(configure):
    cached, fresh = train(configure("train.epochs=4")), train(configure("train.epochs=4", "features.cache=false"))
    assert losses(fresh) == pytest.approx(losses(cached), rel=1e-2)
    assert losses(fresh)[-1] < 0.8 * losses(fresh)[0]


def test_same_seed_same_bytes_other_seed_other_order_and_initial_weights(configure, tmp_path):
    first = train(configure())
    again = train(configure(f"root={tmp_path}/again"))
    other = train(configure("seed=1"))
    assert RunFiles(first).weights.read_bytes() == RunFiles(again).weights.read_bytes()
    assert losses(first) == losses(again)
    tokens = [[line["tokens"] for line in read_lines(RunFiles(folder).steps)] for folder in (first, other)]
    assert tokens[0] != tokens[1]
    one, two = (build_vlm(configure().model, seed=seed).connector.state_dict() for seed in (0, 1))
    assert not torch.equal(one["projection.weight"], two["projection.weight"])


@pytest.mark.parametrize("stage", ["align", "finetune", "full"])
def test_only_the_parts_of_the_stage_learn(configure, stage):
    config = configure(f"train.stage={stage}", f"encoder.frozen={str(stage != 'full').lower()}")
    folder = train(config)
    before = build_vlm(config.model, seed=config.seed).state_dict()
    after = weights(folder)
    parts = {name.partition(".")[0] for name in after}
    expected = {"align": {"connector"}, "finetune": {"connector", "language"}}
    assert parts == expected.get(stage, {"encoder", "connector", "language"})
    for part in parts:
        assert any(not torch.equal(after[name], before[name]) for name in after if name.startswith(part))
    cost = read_json(RunFiles(folder).result)["cost"]
    assert cost["trainable_parameters"] < cost["total_parameters"] or stage == "full"


def test_frozen_parts_stay_in_evaluation_mode(configure):
    config = configure("train.stage=align")
    module = VLMModule(config).train()
    assert module.vlm.connector.training
    assert not any(part.training for part in module.vlm.language.modules())
    assert not any(part.training for part in module.vlm.encoder.modules())


def test_a_connector_that_no_gradient_reaches_is_named(configure, monkeypatch):
    forward = type(build_vlm(configure().model, seed=0).connector).forward
    monkeypatch.setattr(connectors.linear.Linear, "forward", lambda self, features: forward(self, features).detach())
    with pytest.raises(UserError, match="no gradient arrives at any of its parameters"):
        train(configure())


def test_stage_and_frozen_encoder_must_agree(configure):
    with pytest.raises(UserError, match=r"set encoder\.frozen=false"):
        configure("train.stage=full")
    with pytest.raises(UserError, match=r"set encoder\.frozen=true"):
        configure("encoder.frozen=false")


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_blind_run_trains_and_its_connector_is_saved(configure, stage):
    """Blind and align is what a sweep over both stages asks for: the connector has gradients, all of them zero."""
    folder = train(configure("blind=true", f"train.stage={stage}"))
    assert any(name.startswith("connector.") for name in weights(folder))
    assert "-blind-" in folder.name


def test_weights_of_another_run_are_where_a_run_starts(configure):
    align = train(configure("train.stage=align"))
    finetune = train(configure(f"train.start_from={align}", "train.learning_rate=0"))
    before, after = weights(align), weights(finetune)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(name.startswith("language.") for name in after)
    start = read_json(RunFiles(finetune).provenance)["start_from"]
    assert start["run"] == align.name
    assert start["sha256"] == hashlib.sha256(RunFiles(align).weights.read_bytes()).hexdigest()


def test_stages_after_another_keep_what_was_learned_before(configure):
    """Align from a finetuned run: the language model does not learn, yet is not the config's own, so it is saved."""
    finetune = train(configure())
    align = train(configure("train.stage=align", f"train.start_from={finetune}"))
    language = [name for name in weights(align) if name.startswith("language.")]
    assert language
    assert all(torch.equal(weights(align)[name], weights(finetune)[name]) for name in language)


def test_bfloat16_keeps_float32_weights(configure):
    folder = train(configure("train.precision=bfloat16"))
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}
    assert losses(folder) == pytest.approx(losses(train(configure())), rel=0.05)


# ---- divergence ------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_with_the_batch_and_advice(configure, monkeypatch):
    loss = VLM.loss

    def poisoned(self, batch):
        found = loss(self, batch)
        return found._replace(total=found.total * float("nan")) if "000000007" in str(batch["keys"]) else found

    monkeypatch.setattr(VLM, "loss", poisoned)
    config = configure("data.micro_batch=1", "train.checkpoint_every=1")
    with pytest.raises(Diverged) as error:
        train(config)
    message = str(error.value)
    assert error.value.exit_code == 3
    assert "the loss is nan" in message
    assert "  batch: train-00000.tar:000000007\n" in message  # that micro-batch's sample alone
    assert "lower train.learning_rate (it was 0.0" in message


def test_no_optimizer_step_is_taken_on_an_infinite_gradient(configure, monkeypatch):
    loss = VLM.loss

    def steep(self, batch):
        found = loss(self, batch)
        weight = self.connector.projection.bias  # the root of zero: no slope there is finite
        return found._replace(total=found.total + (weight - weight.detach()).sqrt().sum())

    monkeypatch.setattr(VLM, "loss", steep)
    with pytest.raises(Diverged, match="gradient's norm is inf"):
        train(configure())


# ---- parameter groups and schedule -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", connectors.names())
def test_no_weight_decay_where_it_hurts(name):
    small = {"d_state": 8, "headdim": 16} if name.startswith("msc") else {}
    connector = connectors.create(name, 32, 32, **small)
    mixer = Mamba2Mixer(32, d_state=8, headdim=16)
    for module in (connector, mixer, nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))):
        groups = parameter_groups(module, 0.1, 1e-3)
        of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert len(of) == len(list(module.parameters()))
        for key, parameter in module.named_parameters():
            last = key.rpartition(".")[2]
            free = last.endswith("bias") or last in ("A_log", "D", "dt_bias") or "norm" in key
            assert of[id(parameter)] == (0.0 if free or parameter.ndim < 2 else 0.1), key


def test_tied_weights_are_in_one_group_once_and_saved_once(configure):
    vlm = build_vlm(configure().model, seed=0)
    create_recipe("finetune").freeze(vlm)
    groups = parameter_groups(vlm, 0.1, 1e-3)
    parameters = [id(p) for group in groups for p in group["params"]]
    assert len(parameters) == len(set(parameters))
    tied = [
        name
        for name in kept_names(vlm, create_recipe("finetune").kept_parts())
        if "embedding" in name or "lm_head" in name
    ]
    assert tied == ["language.backbone.embedding.weight"]


def test_parts_have_learning_rates_of_their_own(configure):
    config = configure("train.fields.rates={language: 0.25}")
    module = VLMModule(config)
    module.trainer = L.Trainer(max_steps=1, logger=False)
    optimizer = module.configure_optimizers()["optimizer"]
    rates = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in module.vlm.connector.parameters()} == {config.train.learning_rate}
    assert {rates[id(p)] for p in module.vlm.language.parameters()} == {0.25 * config.train.learning_rate}
    assert not any(p.requires_grad for p in module.vlm.encoder.parameters())
    with pytest.raises(UserError, match="rates has encoder, but what trains is connector, language"):
        configure("train.fields.rates={encoder: 0.1}")


def test_frozen_parameters_are_in_no_group():
    module = nn.Linear(3, 3).requires_grad_(False)
    assert parameter_groups(module, 0.1, 1e-3) == []


@pytest.mark.parametrize(("steps", "ratio"), [(100, 0.03), (100, 0.0), (7, 0.5), (1, 0.03), (1, 0.0)])
def test_schedule(steps, ratio):
    factors = [learning_rate_factor(step, steps, ratio, 0.1) for step in range(steps)]
    assert all(0.1 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    if steps > 1:
        assert learning_rate_factor(steps, steps, ratio, 0.1) == pytest.approx(0.1)


def test_the_cosine_ends_at_the_last_step_that_is_really_run(configure):
    for length in ("train.epochs=3", "train.max_steps=4", "train.max_steps=9"):
        config = configure(length, "train.warmup_ratio=0")
        lines = read_lines(RunFiles(train(config)).steps)
        steps = len(lines)
        assert steps == (config.train.max_steps or 3 * 6)
        expected = [config.train.learning_rate * learning_rate_factor(step, steps, 0.0) for step in range(steps)]
        assert [line["lr"] for line in lines] == pytest.approx(expected)


def test_table_of_what_trains(configure):
    vlm = build_vlm(configure().model, seed=0)
    create_recipe("align").freeze(vlm)
    table = learning_table(vlm, "align")
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["encoder", "connector", "language", "all"]
    assert cells[2][:3] == ["no", "yes", "no"]
    assert cells[1][1] == f"{sum(p.numel() for p in vlm.connector.parameters()):,}"
