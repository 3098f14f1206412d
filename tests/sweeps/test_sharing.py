"""Blind runs that compute the same are run once; the table takes that one as the control of each connector."""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import connectors
from ablate.core import config as config_io
from ablate.core.files import read_json, read_lines, write_json
from ablate.model import VLM, LanguageConfig
from ablate.model.build import create_language
from ablate.model.languages.mamba2 import SSMConfig
from ablate.pipeline.train import train
from ablate.runs.config import RunConfig
from ablate.runs.folder import RunFiles
from ablate.runs.identity import blind_key
from ablate.sweeps.plan import PlannedRun
from ablate.sweeps.sharing import say_shared, share_runs
from datamodules import IGNORE_INDEX, IMAGE_TOKEN_ID


def planned(tmp_path, name, *, seed=0, blind=True, tokens=49, sizes="largest", **settings) -> PlannedRun:
    label = f"{name} seed={seed}{' blind' * blind}"
    folder = tmp_path / "group" / label.replace(" ", "-")
    flat = {"connector.name": name, "seed": seed, "blind": blind, "train.betas": (0.9, 0.98), **settings}
    return PlannedRun(label, {}, (), folder, flat, None, tokens, sizes)


def finish(run: PlannedRun) -> None:
    run.folder.mkdir(parents=True)
    settings = json.loads(json.dumps(dict(run.settings)))  # as they are read from a file
    result = {"schema": 1, "status": "finished", "blind": run.settings["blind"], "settings": settings}
    train = {"trained_sizes": run.trained_sizes}
    write_json(run.folder / "result.json", {**result, "cost": {"visual_tokens": run.visual_tokens}, "train": train})


def labels(runs) -> list[str]:
    return [run.label for run in runs]


def test_of_equal_blind_runs_the_first_stands_for_the_others(tmp_path):
    names = ("linear", "mlp", "msc_csm")
    runs = [
        planned(tmp_path, name, seed=seed, blind=blind) for name in names for blind in (False, True) for seed in (0, 1)
    ]
    shared = share_runs(runs)
    assert labels(shared.runs) == labels(run for run in runs if not run.settings["blind"] or "linear" in run.label)
    assert shared.stands_for == {
        f"{name} seed={seed} blind": f"linear seed={seed} blind" for name in names[1:] for seed in (0, 1)
    }


@pytest.mark.parametrize(
    "other",
    [
        {"tokens": 16},
        {"seed": 1},
        {"tokens": None},
        {"sizes": "sampled"},
        {"train.learning_rate": 1e-3},
        {"encoder.names": ["other"]},
        {"blind": False},
    ],
    ids=str,
)
def test_what_else_differs_makes_another_run(tmp_path, other):
    runs = [planned(tmp_path, "linear"), planned(tmp_path, "mlp", **other)]
    assert share_runs(runs).runs == tuple(runs)
    assert not share_runs(runs).stands_for


def test_a_finished_one_is_taken_first(tmp_path):
    runs = [planned(tmp_path, name) for name in ("linear", "mlp")]
    finish(runs[1])
    assert labels(share_runs(runs).runs) == ["mlp seed=0 blind"]


def test_an_earlier_sweeps_run_is_used(tmp_path):
    earlier, mine = planned(tmp_path, "linear"), planned(tmp_path, "mlp")
    finish(earlier)
    (earlier.folder.parent / "plan.json").write_text("{}")
    (run,) = share_runs([mine]).runs
    assert run.folder == earlier.folder
    assert share_runs([mine], earlier=False).runs == (mine,)
    elastic = planned(tmp_path / "other", "mqt", sizes="all")
    finish(elastic)
    assert share_runs([planned(tmp_path / "other", "mlp")]).runs[0].folder != elastic.folder


def test_a_field_that_the_connector_does_not_have_makes_no_other_run(tmp_path):
    def with_depth(name, depth):
        settings = ["encoder.names=[x]", f"connector.name={name}", f"connector.shared.depth={depth}", "tokenizer=t"]
        config = config_io.load(RunConfig, overrides=settings)
        run = planned(tmp_path, name, blind=False, depth=depth)
        flat = {"connector.name": name, "connector.shared": {"depth": depth}, "seed": 0}
        return replace(run, label=f"{name} depth={depth}", settings=flat, config=config)

    runs = [with_depth(name, depth) for name in ("mlp", "msc_csm") for depth in (1, 2)]
    shared = share_runs(runs)
    assert labels(shared.runs) == ["mlp depth=1", "msc_csm depth=1", "msc_csm depth=2"]
    assert shared.stands_for == {"mlp depth=2": "mlp depth=1"}


def test_settings_without_effect_do_not_count(tmp_path):
    first, second = (
        planned(tmp_path, "linear", root=root, margin=margin).settings for root, margin in (("a", 1), ("b", 3))
    )
    assert blind_key(first, 49) == blind_key(second, 49)


def test_equal_blind_runs_are_equal_to_the_bit(configure, tmp_path):
    """The whole run: each step's loss, and the language model's weights."""
    folders = [
        train(configure("blind=true", f"connector={connector}", f"root={tmp_path}/{place}", "train.max_steps=4"))
        for place, connector in enumerate(
            ("{name: linear}", "{name: mlp}", "{name: uniform_tokens, fields: {tokens: 1}}")
        )
    ]
    results = [read_json(RunFiles(folder).result) for folder in folders]
    assert len({result["cost"]["visual_tokens"] for result in results}) > 1  # the last one has others
    same, also, other = ([step["loss"] for step in read_lines(RunFiles(folder).steps)] for folder in folders)
    assert same == also != other
    one, two, _ = (load_file(RunFiles(folder).weights) for folder in folders)
    language = [name for name in one if name.startswith("language.")]
    assert language
    assert all(torch.equal(one[name], two[name]) for name in language)
    keys = [blind_key(result["settings"], result["cost"]["visual_tokens"]) for result in results]
    assert keys[0] == keys[1] != keys[2]


ONE_SIZE = [name for name in connectors.names() if connectors.contract.registry.get(name).trained_sizes == "largest"]


@pytest.mark.parametrize("name", ONE_SIZE)
def test_a_connector_leaves_no_trace_in_a_blind_step(name):
    """Loss and gradients of the language model are those of `linear` with as many tokens, for every connector."""
    shared = {"drop_path": 0.0, "headdim": 8, "d_state": 8, "heads": 4, "head_dim": 8, "width": 32}
    known = {field.name for field in connectors.describe(name).fields}
    connector = connectors.create(name, (16,), 32, **{key: shared[key] for key in shared if key in known})
    tokens = connectors.tokens_per_image(connector, 12, 12)
    steps = []
    for each, grid in ((connector, (12, 12)), (connectors.create("linear", (16,), 32), (1, tokens))):
        torch.manual_seed(0)
        config = LanguageConfig(d_model=32, n_layer=1, vocab_size=64, ssm_cfg=SSMConfig(d_state=8, headdim=8))
        vlm = VLM(None, each, create_language(config), blind=True)
        ids = torch.tensor([[*[IMAGE_TOKEN_ID] * tokens, 5, 6, 7]])
        batch = {
            "input_ids": ids,
            "mask": torch.ones_like(ids, dtype=torch.bool),
            "features": torch.randn(1, *grid, 16),
        }
        loss = vlm.loss({**batch, "labels": ids.where(ids > 5, IGNORE_INDEX)}).total
        loss.backward()
        assert all(not parameter.grad.any() for parameter in each.parameters())
        steps.append([loss, *(parameter.grad for parameter in vlm.language.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*steps, strict=True))


def test_what_is_left_out_is_said(tmp_path):
    runs = [planned(tmp_path, name, seed=seed) for name in ("linear", "mlp", "msc_csm") for seed in (0, 1)]
    console = Console(file=io.StringIO(), width=200)
    say_shared(share_runs(runs), console)
    assert "4 runs are left out" in (text := console.file.getvalue())
    assert "linear seed=0 blind stands for mlp seed=0 blind, msc_csm seed=0 blind" in text
    say_shared(share_runs(runs[:1]), quiet := Console(file=io.StringIO()))
    assert not quiet.file.getvalue()
