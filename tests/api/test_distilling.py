"""The three stages of mmMamba: what learns, what stays the teacher's, and how they continue."""

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import ablate
from ablate.core.errors import UserError
from ablate.core.files import file_sha256, read_lines
from ablate.model import build_vlm
from ablate.runs.folder import RunFiles
from ablate.runs.weights import load_run
from ablate.ssm.mmmamba import NEW, TAKEN
from ablate.training.recipes.mmmamba import Logits, check_teacher, seed


def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture
def teacher(configure):
    settings = "language.name=decoder", "language.n_layer=3", "language.fields={heads: 2, kv_heads: 1}"
    return ablate.train(configure("train.max_steps=3", *settings), console=quiet())


def weights(folder):
    return load_file(RunFiles(folder).weights)


def changed(before, after):
    """The tensors that differ, without the number of their layer."""
    names = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    return {name.split(".mixer.")[-1].partition(".")[0] for name in names}


def stages_of(folder):
    """Stage -> its run."""
    return {int(run.name.split("-stage")[1][0]): run for run in folder.parent.iterdir() if "-stage" in run.name}


def test_each_stage_trains_what_it_should_and_the_rest_stays_the_teachers(teacher):
    before = file_sha256(RunFiles(teacher).weights)
    last = ablate.distill(teacher, "mmmamba", "train.max_steps=3", console=quiet())
    assert file_sha256(RunFiles(teacher).weights) == before
    stages = stages_of(last)
    assert last == stages[3]
    one, two, three = (weights(stages[number]) for number in (1, 2, 3))
    original = weights(teacher)
    assert changed(original, one) == set()
    assert changed(one, two) == {*NEW, *TAKEN}
    assert changed(two, three) == {*NEW, *TAKEN}
    assert changed(original, three) == set(TAKEN)
    assert {name.split(".mixer.")[-1].partition(".")[0] for name in three.keys() - original.keys()} == set(NEW)
    assert ablate.load(last).config.language.fields["layers"] == "mmmamba"


def test_a_second_call_does_nothing_and_a_stopped_one_continues(teacher):
    first = ablate.distill(teacher, "mmmamba", "train.max_steps=2", console=quiet())
    times = {run: RunFiles(run).weights.stat().st_mtime_ns for run in stages_of(first).values()}
    assert len(times) == 3
    RunFiles(first).result.unlink()
    assert ablate.distill(teacher, "mmmamba", "train.max_steps=2", console=quiet()) == first
    assert {run: RunFiles(run).weights.stat().st_mtime_ns for run in times} == times


def test_hybrids_share_the_first_stages(teacher):
    linear = ablate.distill(teacher, "mmmamba", "train.max_steps=2", console=quiet())
    hybrid = ablate.distill(teacher, "attention+2*mmmamba", "train.max_steps=2", console=quiet())
    runs = [run.name for run in linear.parent.iterdir() if "-stage" in run.name]
    assert sorted(name.split("-stage")[1][0] for name in runs) == ["1", "2", "3", "3"]
    kept = {name for name in weights(hybrid) if ".layers.0." in name}
    assert kept == {name for name in weights(teacher) if ".layers.0." in name}
    assert all(torch.equal(weights(hybrid)[name], weights(teacher)[name]) for name in kept)


def test_a_stage_has_settings_of_its_own(teacher):
    last = ablate.distill(teacher, "mmmamba", "train.max_steps=2", "stage2.train.max_steps=4", console=quiet())
    steps = {stage: len(read_lines(RunFiles(run).steps)) for stage, run in stages_of(last).items()}
    assert steps == {1: 2, 2: 4, 3: 2}


def test_the_layerwise_error_falls_from_stage_to_stage(teacher):
    last = ablate.distill(
        teacher, "mmmamba", "train.max_steps=40", "train.learning_rate=3e-3", stages=[1, 2], console=quiet()
    )
    losses = [line["loss/layers"] for stage in (1, 2) for line in read_lines(RunFiles(stages_of(last)[stage]).steps)]
    first, between, end = losses[0], sum(losses[37:43]) / 6, sum(losses[-3:]) / 3
    assert first > between > end


@pytest.mark.parametrize("how", ["mimic", "inherit", "scratch"])
def test_seeding_copies_and_shares_nothing(teacher, how):
    config, original = load_run(teacher)
    config.language.fields["layers"] = "mmmamba+attention"
    student = build_vlm(config.model, seed=5)
    random = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    check_teacher(student, original)
    seed(student, original, how)
    theirs, ours = original.state_dict(), student.state_dict()
    pointers = {tensor.data_ptr() for tensor in theirs.values()}
    assert not any(tensor.data_ptr() in pointers for tensor in ours.values())
    for name in ours:
        part = name.split(".mixer.")[-1].partition(".")[0]
        converted = ".layers.0.mixer." in name or ".layers.2.mixer." in name
        if converted and part in NEW:
            assert name not in theirs
        elif converted and part in TAKEN and how == "scratch":
            assert torch.equal(ours[name], random[name])
        else:
            assert torch.equal(ours[name], theirs[name]), name


def test_the_divergence_of_the_teacher_from_itself_is_zero(teacher, configure):
    """With every layer kept, the student is the teacher to the bit."""
    config, original = load_run(teacher)
    student = build_vlm(config.model, seed=9)
    student.load_state_dict(original.state_dict())
    recipe = Logits(teacher=str(teacher))
    recipe.teacher = original
    ids = torch.randint(1, 10, (2, 7))
    batch = {"input_ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool), "labels": ids}
    student.requires_grad_(True)
    assert float(recipe.loss(student.eval(), batch).total.detach()) == 0.0


def test_what_cannot_be_converted_is_named(configure, teacher):
    plain = ablate.train(configure("train.max_steps=2", "group=plain"), console=quiet())
    with pytest.raises(UserError, match="is mamba2: expected decoder"):
        ablate.distill(plain, console=quiet())
    with pytest.raises(UserError, match="stages are"):
        ablate.distill(teacher, stages=[4], console=quiet())
    with pytest.raises(UserError, match=r"stage7\.seed=1: there are stages 1, 2, 3"):
        ablate.distill(teacher, "mmmamba", "stage7.seed=1", console=quiet())
    with pytest.raises(UserError, match="No layer is converted"):
        ablate.distill(teacher, "attention", "train.max_steps=2", stages=[3], console=quiet())
    with pytest.raises(UserError, match=r"The student has 2 layers, the teacher 3"):
        ablate.distill(teacher, "mmmamba", "language.n_layer=2", "train.max_steps=2", console=quiet())


def test_the_command_is_the_function(teacher, capsys):
    from ablate import cli

    settings = "train.max_steps=2", "stage1.seed=4"
    assert cli.main(["distill", "--run", str(teacher), "--layers", "attention+mmmamba", *settings]) == 0
    printed = capsys.readouterr().out.strip().splitlines()[-1]
    assert printed == str(ablate.distill(teacher, "attention+mmmamba", *settings, console=quiet()))
