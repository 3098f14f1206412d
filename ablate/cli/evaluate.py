"""Evaluate a run's model on benchmarks, its own or others. Answers that are there already are not asked again.

ablate eval --run runs/demo/msc_csm-s0-1f2e3d4c
ablate eval --run RUN --benchmarks gqa,pope evaluation.root=/data/benchmarks --out results/
"""

import argparse
import dataclasses
import json
from pathlib import Path

from ablate.cli.configs import add_overrides
from ablate.errors import UserError

HELP = "evaluate a run on benchmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, dest="run_folder", metavar="RUN", help="a run's folder")
    parser.add_argument("--benchmarks", default="", metavar="A,B", help="default: those of the run's config")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for predictions and scores (default: RUN/eval)")
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from ablate import config as config_io
    from ablate.cli.scoring import score_run
    from ablate.training import Reporter, RunConfig, RunFiles, load_run
    from ablate.training.files import write_json

    config, vlm = load_run(arguments.run_folder)
    overrides = list(arguments.overrides)
    if stray := [each for each in overrides if not each.lstrip("-").startswith(("evaluation.", "features."))]:
        raise UserError(f"{', '.join(stray)}: only evaluation.* and features.* can differ from the trained run's.")
    if arguments.benchmarks:
        overrides.append(f"evaluation.benchmarks=[{arguments.benchmarks}]")
    config = config_io.load(RunConfig, [RunFiles(arguments.run_folder).config], overrides)
    if not config.evaluation.benchmarks:
        raise UserError("No benchmark to evaluate: name some with --benchmarks A,B.")

    out = arguments.out or arguments.run_folder / "eval"
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    scores = score_run(config, vlm, out, Reporter(None, console), weights=RunFiles(arguments.run_folder).weights)
    settings = dataclasses.asdict(config.evaluation)
    write_json(out / "scores.json", {"run": str(arguments.run_folder), "evaluation": settings, "scores": scores})
    _print(scores)
    print(json.dumps({"scores": str(out / "scores.json"), "predictions": str(out / "predictions")}))
    return 0


def _print(scores) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Scores", title_justify="left")
    for column in ("benchmark", "score", "95% interval", "constant", "majority", "N"):
        table.add_column(column, justify="left" if column == "benchmark" else "right")
    for name, score in scores.items():
        count = f"{score['n']:,} of {score['n_expected']:,} (partial)" if score["partial"] else f"{score['n']:,}"
        low, high = f"{score['low']:.1f}", f"{score['high']:.1f}"
        floors = [f"{score['baselines'][kind]:.1f}" for kind in ("constant", "majority")]
        table.add_row(name, f"{score['score']:.2f}", f"{low} to {high}", *floors, count)
    Console().print(table)
