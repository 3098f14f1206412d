import errno
import hashlib
import json
import platform
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ablate.core.config import load
from ablate.core.errors import UserError
from ablate.core.files import read_json, read_lines
from ablate.core.locks import exclusive
from ablate.core.sources import is_edited
from ablate.model import build_vlm
from ablate.pipeline.train import _deterministic, _scan_notice, train
from ablate.runs.config import RunConfig
from ablate.runs.folder import RunFiles, is_finished
from ablate.runs.identity import run_folder, run_id
from ablate.runs.provenance import provenance
from ablate.runs.weights import load_run
from ablate.training.callbacks import Recorder
from connectors import linear
from datamodules.shards.reader import write_shards

SCORE = {"score": 50.0, "metric": "accuracy", "n": 2, "n_expected": 2, "partial": False}


def evaluate(config, vlm, folder, reporter, ranks):
    assert not vlm.training
    (folder / "predictions").mkdir()
    return {"demo_vqa": SCORE}


@pytest.mark.parametrize(
    "wrong",
    [
        "language.pretrained=nowhere",
        "encoder.weights=[nowhere.safetensors]",
        "train.start_from=nowhere",
        "tokenizer=nowhere.json",
        "data.shards=[nowhere]",
    ],
)
def test_a_path_that_leads_nowhere_leaves_no_folder(configure, wrong):
    config = configure("group=g", wrong)
    with pytest.raises(UserError, match="nowhere"):
        train(config)
    assert not run_folder(config).parent.exists()


def test_a_run_that_cannot_go_on_keeps_its_folder(configure):
    config = configure("group=g", "data.shards=[nowhere]")
    folder = run_folder(config)
    folder.mkdir(parents=True)
    (folder / "notes.txt").touch()
    with pytest.raises(UserError, match="nowhere"):
        train(config)
    assert (folder / "notes.txt").exists()


def test_result_has_what_the_table_reads(configure):
    config = configure("group=g", "seed=3")
    folder = train(config, evaluate=evaluate)
    assert folder == run_folder(config)
    assert folder.parts[-2:] == ("g", run_id(config))
    assert is_finished(folder)
    result = read_json(RunFiles(folder).result)
    assert {result[key] for key in ("schema", "status", "run_id", "group")} == {1, "finished", run_id(config), "g"}
    assert (result["connector"], result["seed"], result["blind"]) == ("linear", 3, False)
    assert result["settings"]["train.learning_rate"] == 0.01
    assert result["scores"] == {"demo_vqa": SCORE}
    cost = result["cost"]
    assert cost["connector_parameters"] == sum(
        p.numel() for p in build_vlm(config.model, seed=3).connector.parameters()
    )
    assert cost["connector_parameters"] < cost["trainable_parameters"] < cost["total_parameters"]
    assert cost["visual_tokens"] == 4
    assert cost["peak_memory_bytes"] > 10_000_000
    lines = read_lines(RunFiles(folder).steps)
    assert cost["train_seconds"] == pytest.approx(sum(line["seconds"] for line in lines), abs=1e-3)
    assert min(line["seconds"] for line in lines) <= cost["step_seconds"] <= max(line["seconds"] for line in lines)
    assert result["train"]["steps"] == len(lines) == 6
    assert result["train"]["epochs"] == 1.0
    assert not RunFiles(folder).checkpoint.exists()


def test_a_finished_run_is_skipped(configure, monkeypatch, capsys):
    folder = train(configure())
    before = RunFiles(folder).result.read_bytes()
    monkeypatch.setattr("ablate.pipeline.train.build", None)
    assert train(configure()) == folder
    assert RunFiles(folder).result.read_bytes() == before
    assert "finished: skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("logger.project=x", True),
        ("train.checkpoint_every=7", True),
        ("evaluation.batch_size=1", True),
        ("data.num_workers=1", True),
        ("margin=3", True),
        ("seed=1", False),
        ("blind=true", False),
        ("train.learning_rate=2e-2", False),
        ("connector.name=mlp", False),
        ("evaluation.max_new_tokens=3", False),
    ],
)
def test_what_makes_another_run(configure, override, same):
    assert (run_id(configure(override)) == run_id(configure())) == same


def test_demo_settings_belong_to_the_run_but_not_its_threads(configure):
    plain = run_id(configure())
    assert run_id(configure("demo={}")) != plain
    assert run_id(configure("demo.num_workers=2")) == run_id(configure("demo={}"))


def test_names_for_people(configure):
    assert run_id(configure("blind=true", "seed=2")).startswith("linear-s2-blind-")
    assert run_id(configure("name=mine")).startswith("mine-")


@pytest.mark.parametrize("override", ["group=a/b", "group=..", "name=../x", "group=", "name=a b"])
def test_names_that_would_leave_the_folder(configure, override):
    with pytest.raises(UserError, match="names a folder"):
        configure(override)


@pytest.mark.parametrize(
    "override", ["train.epochs=0", "train.max_steps=0", "train.learning_rate=-1", "train.warmup_ratio=2", "seed=-1"]
)
def test_impossible_settings(configure, override):
    with pytest.raises(UserError, match=override.partition("=")[0]):
        configure(override)


@pytest.mark.parametrize("connector", ["linear", "mlp", "msc_bsm", "msc_csm"])
def test_a_loaded_run_is_the_trained_model(configure, connector):
    """Checkpoints of the peers left parts of some connectors out."""
    small = ["connector.fields={depth: 1, d_state: 4, headdim: 16}"] if connector.startswith("msc") else []
    trained = {}

    def keep(config, vlm, folder, reporter, ranks):
        trained.update({name: tensor.clone() for name, tensor in vlm.state_dict().items()})
        return {}

    config = configure(f"connector.name={connector}", "train.max_steps=2", *small)
    folder = train(config, evaluate=keep)
    loaded_config, vlm = load_run(folder)
    assert loaded_config == config
    assert not vlm.training
    for name, tensor in vlm.state_dict().items():
        assert torch.equal(tensor, trained[name]), name
    fresh = build_vlm(config.model, seed=config.seed).state_dict()
    assert any(not torch.equal(trained[name], fresh[name]) for name in fresh if name.startswith("connector."))


def test_load_run_of_something_else(configure, tmp_path):
    with pytest.raises(UserError, match="not a run's folder"):
        load_run(tmp_path)
    folder = train(configure("train.max_steps=1"))
    files = RunFiles(folder)
    whole = files.weights.read_bytes()
    files.weights.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="is damaged"):
        load_run(folder)
    files.weights.unlink()
    with pytest.raises(UserError, match="has not been trained to its end"):
        load_run(folder)
    files.weights.write_bytes(whole)
    files.config.write_text(files.config.read_text().replace("d_model: 16", "d_model: 32"))
    with pytest.raises(UserError, match="of another model than the config describes: it has another shape"):
        load_run(folder)


def test_provenance(configure, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    folder = train(configure())
    text = RunFiles(folder).provenance.read_text() + RunFiles(folder).config.read_text()
    found = json.loads(RunFiles(folder).provenance.read_text())
    assert len(found["data"]["sha256"]) == len(found["config_sha256"]) == 64
    assert found["data"]["samples"] == 22
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert set(found["code"]) == {"version", "commit", "dirty"}
    assert "x" * 40 not in text
    assert platform.node() not in text.replace(str(folder), "") or platform.node() in ("", "localhost")


def test_provenance_has_the_weights_and_the_source(configure, tmp_path, world):
    language = tmp_path / "language"
    vlm = build_vlm(configure().model, seed=0)
    vlm.language.save_pretrained(language)
    encoder = tmp_path / "encoder.safetensors"
    tensors = vlm.encoder.towers[0].model.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, encoder)
    first = train(configure("seed=1"))
    weights = f"encoder.weights=[{encoder}]", f"language.pretrained={language}"
    found = json.loads(RunFiles(first).provenance.read_text())
    assert found["weights"] == {"encoder": [{"encoder": "test_resnet", "random": True}], "language": []}
    assert found["start_from"] is None
    assert found["sources"] == {"connectors.linear": hashlib.sha256(Path(linear.__file__).read_bytes()).hexdigest()}
    assert found["precision"] == {"train": "float32", "encoder": "float32", "device": "cpu"}
    made = provenance(configure(*weights, f"train.start_from={first}"), {})
    (entry,) = made["weights"]["encoder"]
    assert entry == {
        "encoder": "test_resnet",
        "name": "encoder.safetensors",
        "size": encoder.stat().st_size,
        "sha256": hashlib.sha256(encoder.read_bytes()).hexdigest(),
    }
    assert {entry["name"] for entry in made["weights"]["language"]} == {"config.json", "model.safetensors"}
    assert made["start_from"]["sha256"] == hashlib.sha256(RunFiles(first).weights.read_bytes()).hexdigest()


def test_starts_that_differ_in_the_seed_alone_share_a_recipe(configure):
    starts = [train(configure(*settings)) for settings in (["seed=1"], ["seed=2"], ["train.learning_rate=2e-2"])]
    recipes = [provenance(configure(f"train.start_from={start}"), {})["start_from"]["recipe"] for start in starts]
    assert recipes[0] == recipes[1] != recipes[2]


def test_the_result_has_the_digests_of_the_runs_files(configure):
    folder = train(configure(), evaluate=evaluate)
    result = read_json(RunFiles(folder).result)
    assert not is_edited(result)
    files = {"config.yaml", "provenance.json", "training.json", "model.safetensors"}
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files} == {
        name: digest for name, digest in result["digests"].items() if name != "self"
    }


def changed(folder):
    """As if the connector's source had been another when the run was made."""
    found = read_json(RunFiles(folder).provenance)
    found["sources"]["connectors.linear"] = "0" * 64
    RunFiles(folder).provenance.write_text(json.dumps(found))


def test_a_finished_run_of_changed_source_is_named_and_run_again_on_request(configure, capsys):
    folder = train(configure())
    changed(folder)
    train(configure())
    said = capsys.readouterr().err
    assert "finished: skipped. The source of connectors.linear has changed since: --rerun" in said
    before = RunFiles(folder).result.stat().st_mtime_ns
    assert train(configure(), rerun=True) == folder
    assert RunFiles(folder).result.stat().st_mtime_ns > before
    assert is_finished(folder.with_name(f"{folder.name}.replaced-1"))
    capsys.readouterr()
    train(configure(), rerun=True)  # of the source as it is
    assert capsys.readouterr().err.strip().endswith("is finished: skipped")
    assert not folder.with_name(f"{folder.name}.replaced-2").exists()


def test_a_run_that_goes_on_with_other_source_keeps_both(configure):
    config = configure()
    folder = train(config)
    earlier = read_json(RunFiles(folder).provenance)
    again = provenance(config, earlier["data"], earlier["precision"], earlier)
    assert again["continues"] == []
    changed(folder)
    earlier = read_json(RunFiles(folder).provenance)
    again = provenance(config, earlier["data"], earlier["precision"], earlier)
    assert again["continues"] == [{"sources": {"connectors.linear": "0" * 64}}]
    assert provenance(config, earlier["data"], earlier["precision"], again)["continues"] == again["continues"]


def test_the_resolved_config_is_enough(configure, tmp_path):
    folder = train(configure("seed=4"))
    again = load(RunConfig, [RunFiles(folder).config], [f"root={tmp_path / 'again'}"])
    assert RunFiles(train(again)).weights.read_bytes() == RunFiles(folder).weights.read_bytes()


def test_two_processes_cannot_train_the_same_run(configure):
    folder = run_folder(configure())
    with exclusive(folder / ".lock"), pytest.raises(UserError, match="trained by another process"):
        train(configure())


def test_a_full_disk_while_training(configure, monkeypatch):
    """The last checkpoint stays, and the run goes on once there is space."""
    save = torch.save

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def save_once(*arguments):
        monkeypatch.setattr("ablate.training.lightning_state.torch.save", full)
        save(*arguments)

    monkeypatch.setattr("ablate.training.lightning_state.torch.save", save_once)
    config = configure("train.checkpoint_every=2")
    with pytest.raises(UserError, match="No space left"):
        train(config)
    assert torch.load(RunFiles(run_folder(config)).checkpoint, weights_only=True)["global_step"] == 2
    assert not list(RunFiles(run_folder(config)).checkpoint.parent.glob("*tmp*"))
    monkeypatch.undo()
    assert is_finished(train(config))


def test_a_model_smaller_than_the_tokenizer(configure):
    with pytest.raises(UserError, match=r"tokenizer .* has 16 tokens, the language model 8"):
        train(configure("language.vocab_size=8", "language.pad_vocab_size_multiple=8"))


def test_the_gpu_is_asked_for_where_there_is_none(configure):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="no CUDA device"):
        train(configure("train.accelerator=gpu"))


def test_a_gpu_without_kernels_is_told_what_it_could_have(monkeypatch):
    monkeypatch.setattr("ablate.pipeline.train.why_no_kernels", lambda: "Install it: pip install mamba-ssm")
    assert "pip install mamba-ssm" in _scan_notice(torch.device("cuda"))
    assert not _scan_notice(torch.device("cpu"))
    monkeypatch.setattr("ablate.pipeline.train.why_no_kernels", lambda: "")
    assert not _scan_notice(torch.device("cuda"))


def test_a_bad_sample_is_named_with_what_can_be_done_about_it(configure, tmp_path):
    conversation = [{"from": "human", "value": "what is one"}, {"from": "gpt", "value": "one"}]
    records = [{"id": str(number), "conversations": conversation} for number in range(4)]
    records.append({"id": "unanswered", "conversations": conversation[:1]})
    write_shards(((record, None) for record in records), tmp_path / "shards")
    config = configure(f"data.shards=[{tmp_path / 'shards'}]")
    with pytest.raises(UserError, match=r"without an answer\. Fix it, or .*data\.on_bad_sample=skip"):
        train(config)
    assert is_finished(
        train(configure(f"data.shards=[{tmp_path / 'shards'}]", "data.on_bad_sample=skip", "data.max_bad_share=0.5"))
    )


def test_a_full_gpu(configure, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(Recorder, "on_train_start", full)
    with pytest.raises(UserError, match=r"data\.micro_batch"):
        train(configure())


def test_global_settings_are_put_back(configure):
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with _deterministic():
        assert torch.are_deterministic_algorithms_enabled()
    after = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    assert before == after
