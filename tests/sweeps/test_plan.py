from pathlib import Path

import pytest
import yaml

import connectors
from ablate.errors import UserError
from ablate.sweeps import load_sweep
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
    with pytest.raises(UserError, match=r'Unknown connector "mof_mlp". Did you mean mlp'):
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
