"""Evaluate a run's model, or any checkpoint of it, on benchmarks. Answers that are there already are not asked again.

  ablate eval --run runs/demo/msc_csm-s0-1f2e3d4c
  ablate eval --run RUN/checkpoints/last.ckpt --benchmarks vqav2,gqa data.root=/data/benchmarks --out results/
  ablate eval --run RUN --benchmarks gqa data.root=/data/benchmarks evaluation.devices=4 evaluation.batch_size=128

data.root has one folder for each benchmark, of its name, with the official files. Stopped at any moment, the same
command goes on. In the output folder:
  predictions/    one line a question
  submissions/    what the official servers and `ablate score` take
  scores.json     how the answers came about (provenance), and every figure
  failures.html   the wrong answers with their images, to open in a browser
  log.jsonl       when, how long and on what: all that may differ between two evaluations of one model
"""

import argparse
import json
import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.cli.configs import add_overrides
from ablate.core.errors import UserError

if TYPE_CHECKING:
    from ablate.runs.config import RunConfig

HELP = "evaluate a run on benchmarks"

# In this command the data are the benchmarks'. What the model was trained on cannot be changed any more.
SYNONYMS = {"data.root": "evaluation.root"}
GROUPS = ("evaluation.", "features.")

PAGE_FILE = "failures.html"


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

    from ablate.core.console import Reporter
    from ablate.core.files import clear_leftovers
    from ablate.core.interrupts import Interrupted, stop_requests
    from ablate.core.locks import exclusive
    from ablate.pipeline.evaluate import create_benchmarks, score_run
    from ablate.pipeline.evaluation_files import write_evaluation
    from ablate.runs.folder import RunFiles, find_trained
    from ablate.runs.weights import load_run
    from ablate.tables.failures import write_failures

    started = time.time()
    trained = find_trained(arguments.run_folder)
    config = _config(trained.run.config, arguments)
    out = arguments.out or trained.run.folder / "eval"
    device, precision = _device(arguments.device), arguments.precision
    reporter = Reporter(None, Console(stderr=True))
    with (
        stop_requests(reporter.say) as stop,
        exclusive(
            RunFiles(out).lock, busy=f"Another process is evaluating into {out}: wait for it, or use another --out."
        ),
    ):
        clear_leftovers(out)
        try:
            benchmarks = create_benchmarks(config)
            _, vlm = load_run(arguments.run_folder)
            scores = score_run(
                config,
                vlm.to(device),
                out,
                reporter,
                benchmarks=benchmarks,
                weights=trained.weights,
                precision=precision,
            )
            written = write_evaluation(out, config, trained, benchmarks, scores, device=device, precision=precision)
            written["failures"] = out / PAGE_FILE
            write_failures([out], written["failures"])
        except KeyboardInterrupt:
            raise Interrupted(_how_to_continue(arguments, out), stop.signum or signal.SIGINT) from None
        _log(out, started, device, config.evaluation.devices)
    _print(scores)
    print(json.dumps({name: str(path) for name, path in written.items()}))
    return 0


def _config(path: Path, arguments: argparse.Namespace) -> "RunConfig":
    """The run's config with what is evaluated, and how, as the command line says."""
    from ablate.core import config as config_io
    from ablate.runs.config import RunConfig

    overrides = [_canonical(override) for override in arguments.overrides]
    if arguments.benchmarks:
        overrides.append(f"evaluation.benchmarks=[{arguments.benchmarks}]")
    config = config_io.load(RunConfig, [path], overrides)
    if not config.evaluation.benchmarks:
        raise UserError("No benchmark to evaluate: name some with --benchmarks A,B.")
    if len(set(config.evaluation.benchmarks)) < len(config.evaluation.benchmarks):
        raise UserError(f"--benchmarks names one twice: {', '.join(config.evaluation.benchmarks)}.")
    return config


def _canonical(override: str) -> str:
    key, equals, value = override.removeprefix("--").partition("=")
    key = SYNONYMS.get(key, key)
    if not key.startswith(GROUPS):
        raise UserError(
            f"{override}: an evaluation cannot change what the run was trained with. It takes data.root (the folder "
            f"with the benchmarks), {', '.join(f'{group}*' for group in GROUPS)}; `ablate train --print-config` shows "
            "the keys."
        )
    return f"{key}{equals}{value}"


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but PyTorch finds no CUDA device: use cpu or auto.")
    return name


def _how_to_continue(arguments: argparse.Namespace, out: Path) -> str:
    options = ["--benchmarks", arguments.benchmarks] * bool(arguments.benchmarks)
    options += ["--out", str(arguments.out)] * (arguments.out is not None)
    options += ["--device", arguments.device] * (arguments.device != "auto")
    options += ["--precision", arguments.precision] * (arguments.precision != "float32")
    command = ["ablate", "eval", "--run", str(arguments.run_folder), *options, *arguments.overrides]
    return f"Stopped. The answers so far are kept in {out / 'predictions'}. To go on: {shlex.join(command)}"


def _log(out: Path, started: float, device: str, devices: int) -> None:
    """One line an attempt that came to its end. Nothing else that is written says when or how long."""
    line = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 3),
        "device": device,
        "devices": devices,
    }
    with open(out / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _print(scores: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    table = Table(title="Scores (%)", title_justify="left")
    for column in ("benchmark", "split", "mode", "score", "95% interval", "constant", "majority", "N"):
        is_text = column in ("benchmark", "split", "mode")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=column != "split")
    for name, score in scores.items():
        count = f"{score['n']:,} of {score['n_expected']:,} (partial)" if score["partial"] else f"{score['n']:,}"
        low, high = f"{score['low']:.1f}", f"{score['high']:.1f}"
        floors = [f"{score['baselines'][kind]:.1f}" for kind in ("constant", "majority")]
        details = score["details"]
        mode = "likelihood" if details["answering"] == "likelihood" else details["mode"]
        figures = f"{score['score']:.2f}", f"{low} to {high}", *floors
        table.add_row(name, details["split"], mode, *figures, count)
        if (mean := details["figures"].get("mean")) is not None:  # POPE: papers report one or the other
            table.add_row("└ mean F1", "", "", f"{mean['f1']:.2f}")
    console.print(table)
