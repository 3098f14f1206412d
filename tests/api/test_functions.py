"""`import ablate`: what it offers, what it costs, and a run from settings to table."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

import ablate
from ablate import cli
from ablate.api.settings import run_config
from ablate.core import config as config_io
from ablate.core.errors import UserError
from ablate.runs.folder import read_result


def test_it_offers_its_functions_and_nothing_else():
    assert set(ablate.__all__) <= set(dir(ablate))
    for name in ablate.__all__:
        assert getattr(ablate, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ablate.nothing


def test_import_ablate_imports_no_heavy_package():
    code = "import ablate, sys; print({'torch', 'lightning', 'timm', 'rich', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# -- Settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_names_files_mappings_or_configs(tmp_path):
    whole = run_config("demo", ["seed=3"])
    file = tmp_path / "own.yaml"
    file.write_text("seed: 3\n")
    assert run_config(["demo", file]) == whole
    assert run_config(["demo", {"seed": 3}]) == whole
    assert run_config(whole) == whole
    assert run_config([whole, {"seed": 4}], ["seed=3"]) == whole
    assert run_config([], ["seed=3"]).seed == 3
    with pytest.raises(UserError, match="of type int: expected an experiment's name"):
        run_config(["demo", 3])
    with pytest.raises(UserError, match="Unknown config"):
        run_config("dmo")
    with pytest.raises(UserError, match="sed"):
        run_config({"sed": 3})


# -- A run ------------------------------------------------------------------------------------------------------------


def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture
def finished(configure, benchmark_root) -> Path:
    """Runs of two connectors and two seeds; the last one."""
    config = configure("train.max_steps=2", "group=api", f"evaluation.root={benchmark_root}")
    asked = {"evaluation": {"benchmarks": ["gqa", "pope"], "answering": "generate", "max_new_tokens": 3}}
    for seed in (0, 1):
        for connector in ("linear", "mlp"):
            settings = f"seed={seed}", f"connector.name={connector}"
            folder = ablate.train([config, asked], *settings, console=quiet())
    return folder


def test_a_run_is_trained_evaluated_loaded_and_shown(finished, benchmark_root):
    assert set(read_result(finished)["scores"]) == {"gqa", "pope"}
    answers = ablate.load(finished).answer(None, ["what colour", "is it red"], max_new_tokens=2)
    assert len(answers) == 2

    found = ablate.evaluate(finished, ["pope"], "evaluation.max_new_tokens=3", console=quiet())
    assert found.scores["pope"]["score"] == read_result(finished)["scores"]["pope"]["score"]
    frame = found.to_frame()
    assert list(frame["benchmark"]) == ["pope"]
    assert frame["score"][0] == found.scores["pope"]["score"]
    assert f"{found.scores['pope']['score']:.2f}" in found._repr_html_()
    assert "95% interval" in str(found)
    assert all(path.exists() for path in found.files.values())

    table = ablate.table(finished.parent, "mlp")
    assert table.tasks == ("gqa", "pope")
    long, wide = table.to_frame(), table.to_frame(wide=True)
    assert set(wide["row"]) == {"mlp", "linear"}
    means = long[long["task"] == "mean"].set_index("row")["score"]
    for row in table.rows:
        assert means[row.name] == pytest.approx(100 * row.cells["mean"].mean)
    html = table._repr_html_()
    assert "<h4>Scores (%) · 4 of 4 runs finished</h4>" in html
    assert "Difference from mlp" in html


def test_the_command_line_gives_what_python_gives(finished, tmp_path, capsys):
    mine = ablate.evaluate(finished, ["gqa"], out=tmp_path / "python", console=quiet())
    assert cli.main(["eval", "--run", str(finished), "--benchmarks", "gqa", "--out", str(tmp_path / "cli")]) == 0
    for name in ("scores.json", "predictions/gqa.jsonl"):
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "cli" / name).read_bytes()
    assert f"{mine.scores['gqa']['score']:.2f}" in capsys.readouterr().out
    image = tmp_path / "red.png"
    Image.new("RGB", (40, 30), (220, 30, 30)).save(image)
    assert cli.main(["generate", "--run", str(finished), "--image", str(image), "--prompt", "what colour"]) == 0
    assert capsys.readouterr().out == ablate.load(finished).answer(image, "what colour") + "\n"


def test_a_run_of_several_sizes_is_evaluated_at_each(configure, benchmark_root):
    config = configure("train.max_steps=2", "group=sizes", f"evaluation.root={benchmark_root}")
    asked = {"evaluation": {"benchmarks": ["gqa"], "answering": "generate", "max_new_tokens": 3}}
    elastic = "connector.name=m3", "connector.fields={sides: [1, 2]}"
    run = ablate.train([config, asked], *elastic, console=quiet())
    whole = ablate.evaluate(run, console=quiet())
    small = ablate.evaluate(run, [], "connector.size=1", console=quiet())
    assert small.files["scores"].parent == run / "eval-size-1"
    assert whole.files["scores"].parent == run / "eval"
    assert [row.name for row in ablate.table(run).rows] == ["m3", "m3 read at 1"]
    assert ablate.table(run).row("m3 read at 1").cost("visual_tokens") == 1
    with pytest.raises(UserError, match="answers that were asked for in another way"):
        ablate.evaluate(run, [], "connector.size=1", out=run / "eval", console=quiet())
    with pytest.raises(UserError, match="no size 3: it offers 1, 4"):
        ablate.evaluate(run, [], "connector.size=3", console=quiet())


def test_a_finished_run_is_skipped(configure, capsys):
    config = configure("train.max_steps=2")
    console = Console(record=True, width=200)
    first = ablate.train(config, console=console)
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert ablate.train(dataclasses.replace(config), console=console) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    assert "is finished: skipped" in console.export_text()
    assert config_io.load(type(config), [first / "config.yaml"]).seed == config.seed


@pytest.mark.parametrize(
    ("benchmarks", "overrides", "said"),
    [
        ("pope", [], r'benchmarks is "pope": expected a list'),
        (["gqa", "gqa"], [], "named twice: gqa"),
        (["gqa"], ["seed=3"], "cannot change what the run was trained with"),
        (["gqq"], [], "gqa"),
    ],
)
def test_what_cannot_be_evaluated_is_said(make_run, benchmarks, overrides, said):
    with pytest.raises(UserError, match=said):
        ablate.evaluate(make_run(), benchmarks, *overrides, console=quiet())
