"""Evaluate a run's model, or any checkpoint of it, on benchmarks. Answers that are there already are not asked again.

  ablate eval --run runs/demo/msc_csm-s0-1f2e3d4c
  ablate eval --run RUN/checkpoints/last.ckpt --benchmarks vqav2,gqa data.root=/data/benchmarks --out results/
  ablate eval --run RUN --benchmarks gqa data.root=/data/benchmarks evaluation.devices=4 evaluation.batch_size=128

data.root has one folder for each benchmark, of its name, with the official files. If it is interrupted, the same
command continues. In the output folder:
  predictions/    one line a question
  submissions/    what the official servers and `ablate score` take
  scores.json     provenance and every figure
  failures.html   the wrong answers with their images, to open in a browser
  log.jsonl       time, duration and device: all that may differ between two evaluations of one model
"""

import argparse
import json
import shlex
from pathlib import Path

from ablate.cli.configs import add_overrides

HELP = "evaluate a run on benchmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run",
        type=Path,
        required=True,
        dest="run_folder",
        metavar="RUN",
        help="a run's folder, or a weights file or checkpoint in it",
    )
    parser.add_argument("--benchmarks", default="", metavar="A,B", help="default: those of the run's config")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for everything that comes out (default: RUN/eval)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 is faster on a GPU; answers may then depend on the batch",
    )
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from ablate.api.evaluation import evaluate
    from ablate.core.interrupts import Interrupted

    try:
        found = evaluate(
            arguments.run_folder,
            [name.strip() for name in arguments.benchmarks.split(",") if name.strip()],
            *arguments.overrides,
            out=arguments.out,
            device=arguments.device,
            precision=arguments.precision,
        )
    except Interrupted as stopped:
        raise Interrupted(f"{stopped} To continue: {_command(arguments)}", stopped.signum) from None
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(found)
    print(json.dumps({name: str(path) for name, path in found.files.items()}))
    return 0


def _command(arguments: argparse.Namespace) -> str:
    options = ["--benchmarks", arguments.benchmarks] * bool(arguments.benchmarks)
    options += ["--out", str(arguments.out)] * (arguments.out is not None)
    options += ["--device", arguments.device] * (arguments.device != "auto")
    options += ["--precision", arguments.precision] * (arguments.precision != "float32")
    return shlex.join(["ablate", "eval", "--run", str(arguments.run_folder), *options, *arguments.overrides])
