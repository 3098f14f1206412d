from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import connectors
from ablate.core import config as config_io
from ablate.core.errors import UserError
from ablate.model.encoders import create_encoder
from ablate.runs.config import RunConfig
from ablate.sweeps import load_sweep, models
from ablate.sweeps.plan import ResolvedRun, plan


@pytest.fixture
def make(folder, resolve, monkeypatch):
    """Plans the small sweep after changes to its file."""
    monkeypatch.chdir(folder.path)

    def _make(changes=None, **arguments):
        content = yaml.safe_load(folder.file.read_text()) | (changes or {})
        folder.file.write_text(yaml.safe_dump(content))
        return plan(load_sweep(folder.file), resolve=resolve, **arguments)

    return _make


def test_every_run_has_its_arguments_folder_and_label(make):
    runs = make(overrides=["train.epochs=2"], root="here")
    assert [run.label for run in runs] == ["linear seed=0", "linear seed=1", "mlp seed=0", "mlp seed=1"]
    assert runs[3].arguments == (
        *("train", "--config", "base.yaml", "group=small", "connector.name=mlp", "seed=1"),
        *("train.epochs=2", "root=here"),
    )
    assert str(runs[3].folder) == "here/small/mlp-s1"
    assert runs[3].kind == "mlp"


def test_only_some_connectors(make):
    assert {run.kind for run in make(only=["mlp"])} == {"mlp"}
    with pytest.raises(UserError, match=r'Unknown connector "mof_mlp". Did you mean'):
        make(only=["mof_mlp"])


def test_a_registered_connector_need_not_be_in_the_file(make, monkeypatch):
    monkeypatch.setattr(connectors, "names", lambda: ("linear", "mine", "mlp"))
    assert {run.kind for run in make(only=["mine"])} == {"mine"}
    assert {run.kind for run in make(only=["all"])} == {"linear", "mine", "mlp"}


def test_no_connector_to_choose_from(make):
    with pytest.raises(UserError, match=r"does not sweep over connector.name \(but seed\)"):
        make({"parameters": {"seed": {"values": [0, 1]}}}, only=["mlp"])


def test_an_override_of_a_swept_parameter_replaces_its_values(make):
    assert [run.label for run in make(overrides=["seed=7", "connector.name=[mlp, linear]"])] == ["mlp", "linear"]
    assert [run.values["seed"] for run in make(overrides=["seed=[3, 4]"], only=["mlp"])] == [3, 4]
    with pytest.raises(UserError, match=r'Override "seed": expected key=value'):
        make(overrides=["seed"])


def test_two_runs_that_are_one_are_refused(make):
    with pytest.raises(UserError, match=r"mlp workers=1 and mlp workers=2 are the same run"):
        make({"parameters": {"connector.name": {"value": "mlp"}, "seed": {"value": 0}, "workers": {"values": [1, 2]}}})


def test_another_program_is_for_wandbs_agents(make):
    with pytest.raises(UserError, match=r"`ablate sweep` runs `ablate train`, got `python train.py"):
        make({"command": ["python", "train.py", "${args_no_hyphens}"]})
    for start in (
        ["/usr/bin/env", "ablate"],
        ["${env}", "python", "-m", "ablate.cli"],
        ["${interpreter}", "-m", "ablate"],
    ):
        assert make({"command": [*start, "train", "--config=base.yaml", "group=g", "${args_no_hyphens}"]})


@pytest.mark.parametrize("key", ["early_terminate", "scheduler"])
def test_what_only_wandb_does_is_said_and_not_left_out(make, key):
    with pytest.raises(UserError, match=rf"{key}: only W&B's agents do this"):
        make({key: {"type": "hyperband", "min_iter": 3}})


def test_configs_are_found_from_another_folder(make, folder, tmp_path_factory, monkeypatch):
    make()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert make()[0].arguments[2] == str(folder.path / "base.yaml")


def test_labels_of_long_values_and_of_flags(folder):
    parameters = {
        "connector.name": {"value": "mlp"},
        "blind": {"values": [False, True]},
        "encoder": {"values": [{"names": ["a"]}, {"names": ["b"]}]},
        "train.learning_rate": {"values": [1e-3, 3e-4]},
    }
    folder.file.write_text(yaml.safe_dump(yaml.safe_load(folder.file.read_text()) | {"parameters": parameters}))
    runs = plan(load_sweep(folder.file), resolve=lambda files, overrides: ResolvedRun(Path("/".join(overrides)), {}))
    assert runs[0].label == "mlp encoder#1 learning_rate=0.001"
    assert runs[-1].label == "mlp blind encoder#2 learning_rate=0.0003"


SWEEPS = sorted((Path(__file__).parents[2] / "experiments" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_our_sweeps_plan_completely(file, monkeypatch):
    """With their models built, without weights, data or a network."""
    monkeypatch.chdir(file.parents[2])
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("planning asked the network"))
    runs = plan(load_sweep(file))
    assert len({run.folder for run in runs}) == len(runs) > 1


def test_the_papers_two_encoders_are_those_of_its_other_tables():
    """[DINOv2 ; SigLIP] at 384 pixels, the whole picture: 729 tokens of 2176 channels."""
    folder = SWEEPS[0].parents[1]
    encoders = yaml.safe_load((folder / "sweeps" / "paper_table5.yaml").read_text())["parameters"]["encoder"]["values"]
    whole = config_io.load(RunConfig, [folder / "ml_mamba.yaml"]).encoder
    *single, fused = [config_io.load(RunConfig, [{"encoder": each}]).encoder for each in encoders]
    assert fused == whole
    for place, one in enumerate(single):
        assert (one.names, one.image_size, one.preprocessing) == (
            [whole.names[place]],
            [whole.image_size[place]],
            [whole.preprocessing[place]],
        )
    with torch.device("meta"):
        encoder = create_encoder(replace(whole, weights=["random", "random"]))
    assert (encoder.grid, encoder.dims) == ((27, 27), (1024, 1152))
    assert all("squash" in str(tower.transform.settings) for tower in encoder.towers)


@pytest.fixture
def real(tmp_path, monkeypatch):
    """Plans a grid of real, tiny runs; says how often a model was built."""
    built = []
    build = models.build_vlm
    monkeypatch.setattr(models, "build_vlm", lambda *args, **kwargs: built.append(args) or build(*args, **kwargs))

    def _plan(*overrides, **parameters):
        settings = ["encoder.names=[test_resnet]", "encoder.image_size=[32]", "language={d_model: 16, n_layer: 1}"]
        settings += ["data.shards=[x]", "tokenizer=x.json"]
        settings += ["language.ssm_cfg={d_state: 8, headdim: 8}", f"root={tmp_path}"]
        content = {"method": "grid", "command": ["ablate", "train", *settings, "${args_no_hyphens}"]}
        content["parameters"] = {name: {"values": values} for name, values in parameters.items()}
        (tmp_path / "real.yaml").write_text(yaml.safe_dump(content))
        return plan(load_sweep(tmp_path / "real.yaml"), overrides=overrides)

    return SimpleNamespace(plan=_plan, built=built)


def test_each_distinct_model_is_built_once(real):
    runs = real.plan(**{"seed": [0, 1, 2], "blind": [False, True], "connector.name": ["linear", "mlp"]})
    assert len(runs) == 12
    assert len(real.built) == 1  # and the other connector beside the same encoder and language model


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"encoder.weights": [["random"], ["random", "random"]]}, r"weights#2: encoder\.weights has 2 entries for 1"),
        ({"encoder.names": [["test_resnet"], ["test_resnets"]]}, r"names#2: Unknown encoder"),
        ({"encoder.layer": [["final"], ["finale"]]}, r"layer#2: Unknown layer"),
        ({"language.ssm_cfg.headdim": [8, 7]}, r"headdim=7: language: .*not a multiple of headdim 7"),
        ({"connector.name": ["linear", "msc_csm"], "connector.shared.headdim": [64, 63]}, r"msc_csm.*headdim=63: "),
    ],
)
def test_what_would_fail_when_a_run_builds_its_model_fails_the_plan(real, parameters, message):
    with pytest.raises(UserError, match=message):
        real.plan("connector.shared.d_state=8", **parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"seed": [0, -1]}, "seed is -1: expected 0 or more"),
        ({"group": [None]}, "parameters.group: got null, expected a text: write it in quotes"),
        ({"group": [True]}, "parameters.group: got true, expected a text: write it in quotes"),
        ({"connector.name": ["msc_csm"], "connector.fields.drop_path": ["inf"]}, "a finite number"),
    ],
)
def test_wrong_values_fail_the_plan(real, parameters, message):
    with pytest.raises(UserError, match=message):
        real.plan(**parameters)


def test_a_margin_in_the_sweep_file_is_kept_by_every_run_and_makes_no_other_run(real):
    without = real.plan(seed=[0, 1])
    with_margin = real.plan(seed=[0, 1], margin=[3])  # a parameter like any other, so W&B takes the file as it is
    assert [run.settings["margin"] for run in with_margin] == [3.0, 3.0]
    assert [run.folder for run in with_margin] == [run.folder for run in without]
    with pytest.raises(UserError, match="margin is 0: expected above 0 and below 100"):
        real.plan(margin=[0])


def test_swept_texts_stay_texts(real):
    texts = ["12e4567", "34e5678", "007", "1.10", "on"]
    assert [run.settings["group"] for run in real.plan(group=texts)] == texts
    assert [run.settings["group"] for run in real.plan("group=[12e4567, 007, on]", group=texts)] == [
        "12e4567",
        "007",
        "on",
    ]


@pytest.mark.parametrize("override", ["seed=[1,2", "seed={a: ", "seed", "=1", "train..epochs=1", "seed=[1, *a]"])
def test_a_malformed_override_is_one_sentence(real, override):
    with pytest.raises(UserError, match="Override"):
        real.plan(override, seed=[0])


@pytest.mark.parametrize(
    "macro", ["args", "args_no_equals", "args_no_boolean_flags", "args_json", "args_override_hydra"]
)
def test_however_an_agent_writes_parameters_the_local_runner_writes_key_value(make, macro):
    command = ["${program}", "train", "--config", "base.yaml", "--group=small", f"${{{macro}}}"]
    assert make({"command": command})[0].arguments[-2:] == ("connector.name=linear", "seed=0")


def test_wandbs_default_command(folder, monkeypatch):
    monkeypatch.chdir(folder.path)
    content = yaml.safe_load(folder.file.read_text())
    del content["command"]
    folder.file.write_text(yaml.safe_dump(content))
    seen = []
    plan(load_sweep(folder.file), resolve=lambda *given: seen.append(given) or ResolvedRun(Path(str(len(seen))), {}))
    assert seen[0] == ([], ["connector.name=linear", "seed=0"])


def test_a_method_of_the_server_needs_the_engine_of_wandb(tmp_path, monkeypatch):
    from ablate.sweeps.engines import wandb
    from ablate.sweeps.operations import run_sweep

    content = {"program": "ablate", "method": "bayes", "metric": {"name": "mean/score", "goal": "maximize"}}
    content["parameters"] = {"train.learning_rate": {"min": 1e-4, "max": 1e-2}, "seed": {"values": [0, 1]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    created = []
    monkeypatch.setattr(wandb, "_create", lambda content, options: created.append(content) or "e/p/s")
    assert run_sweep(tmp_path / "sweep.yaml", overrides=["seed=2"], engine="wandb") == 4
    assert created[0]["parameters"] == content["parameters"] | {"seed": {"values": [2]}}
    with pytest.raises(UserError, match="needs a W&B server"):
        run_sweep(tmp_path / "sweep.yaml", engine="local")
