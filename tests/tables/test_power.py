import io

import pytest
from rich.console import Console

from ablate.cli import main
from ablate.core.errors import UserError
from ablate.evaluation.statistics.power import Components, cheapest, plans, power
from ablate.tables.power import power_report, print_report

PILOT = Components(images=4e-4, both=3e-4, seeds=2e-4, n_questions=300, n_images=100, df=12)
SECONDS = {"train": 100.0, "eval": 10.0}


def test_power_grows_with_the_difference_the_seeds_and_the_questions():
    def of(difference=0.05, seeds=4, share=1.0, comparisons=35):
        return power(PILOT, difference, seeds, share, 6, comparisons)

    assert of(seeds=1) == 0
    assert of() < of(difference=0.06) < of(difference=0.2)
    assert of(difference=0.2) > 0.99
    assert of() < of(seeds=8)
    assert of() < of(share=2.0)
    assert of() < of(comparisons=1)
    assert of(difference=1e-9, comparisons=1) == pytest.approx(0.025, abs=1e-3)


def test_more_questions_do_not_replace_seeds():
    wild = Components(images=1e-5, both=1e-5, seeds=4e-3, n_questions=300, n_images=100, df=12)
    assert power(wild, 0.05, 3, 1000.0, 6, 35) < 0.5
    assert cheapest(plans(wild, 0.02, 6, 35, SECONDS, seeds=(2, 3))) is None


def test_the_cheapest_plan_reaches_the_power_and_no_cheaper_one_does():
    options = plans(PILOT, 0.06, 6, 35, SECONDS)
    best = cheapest(options)
    assert best.power >= 0.8
    assert all(plan.power < 0.8 for plan in options if plan.cost < best.cost)
    assert best.cost == 6 * best.seeds * (100 + 10 * best.share)


def test_the_report_of_run_folders(full, tmp_path):
    report = power_report([full.group], 20.0)
    assert (report.rows, report.comparisons, report.column) == (3, 8, "mean")
    console = Console(width=100, file=io.StringIO())
    print_report(report, tmp_path / "plan", console)
    text = console.file.getvalue()
    assert "Cheapest with 80%" in text
    assert "6 degrees of freedom" in " ".join(text.split())
    assert (tmp_path / "plan" / "power.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_planned_is_refused(full, runs, tmp_path):
    for difference in (0.0, -1.0, 100.0, float("nan")):
        with pytest.raises(UserError, match="--difference is"):
            power_report([full.group], difference)
    with pytest.raises(UserError, match='Unknown task "demo_vqb"'):
        power_report([full.group], 1.0, "demo_vqb")
    with pytest.raises(UserError, match="--rows 2 or more"):
        power_report([full.group], 1.0, rows=1)


def test_one_seed_is_no_pilot(runs):
    runs.add("mlp", 0)
    runs.add("linear", 0)
    with pytest.raises(UserError, match="at least two seeds"):
        power_report([runs.group], 1.0)


def test_the_command(full, capsys):
    assert main(["power", str(full.group), "--difference", "20"]) == 0
    assert "Cheapest with 80%" in capsys.readouterr().out
    assert (full.group / "power.png").exists()
