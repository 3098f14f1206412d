"""Benchmarks from another package: four choices for each question, and a metric of all answers together."""

from ablate.core.files import read_json, read_lines


def evaluated(package, name, class_name):
    """A run that was scored on the small demo and on the benchmark's own example, and the table of it."""
    package.run(
        "-c",
        f"import pathlib, shutil, {name}\n"
        f"folder = pathlib.Path('eval/{name}'); folder.mkdir(parents=True); {name}.{class_name}.example(folder)\n"
        f"shutil.copytree(r'{package.demo.eval / 'demo_vqa'}', 'eval/demo_vqa')",
    )
    run = package.check_and_train(f"evaluation.benchmarks=[demo_vqa,{name}]", "evaluation.root=eval")
    return run, package.run("-m", "ablate.cli", "table", "runs/default")


def test_four_choices(walk):
    run, table = evaluated(walk("colour_quiz"), "colour_quiz", "ColourQuiz")
    for line in read_lines(run.folder / "predictions" / "colour_quiz.jsonl"):
        assert abs(sum(line["probabilities"]) - 1) < 1e-6
        assert line["prediction"] == line["choices"][line["probabilities"].index(max(line["probabilities"]))]
    score = read_json(run.result)["scores"]["colour_quiz"]
    assert score["baselines"]["constant"] == 100  # the first choice is always right here
    assert score["baselines"]["chance"] == 25
    assert "colour_" in table


def test_a_metric_of_the_whole_corpus(walk):
    run, table = evaluated(walk("presence_f1"), "presence_f1", "PresenceF1")
    score = read_json(run.result)["scores"]["presence_f1"]
    assert score["corpus"]
    assert score["metric"] == "F1"
    assert 0 <= score["low"] <= score["score"] <= score["high"] <= 100
    assert "presence_f1: scored over all answers together" in " ".join(table.split())
    assert "f1◊" in table
