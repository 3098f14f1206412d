"""Evaluate a trained run on benchmarks from Python."""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from ablate.api.answering import find_device
from ablate.core import config as config_io
from ablate.core.console import Reporter
from ablate.core.errors import UserError
from ablate.core.files import clear_leftovers
from ablate.core.interrupts import Interrupted, stop_requests
from ablate.core.locks import exclusive
from ablate.pipeline.evaluate import create_benchmarks, score_run
from ablate.pipeline.evaluation_files import write_evaluation
from ablate.runs.config import RunConfig
from ablate.runs.folder import RunFiles, find_trained
from ablate.runs.weights import load_run
from ablate.tables.failures import write_failures
from ablate.tables.frames import frame
from ablate.tables.html import section_html
from ablate.tables.text import Section, grid

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import RenderableType

# In an evaluation the data are the benchmarks'. What the model was trained on cannot be changed any more.
SYNONYMS = {"data.root": "evaluation.root"}
GROUPS = ("evaluation.", "features.")
SIZE = "connector.size"

PAGE_FILE = "failures.html"


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on benchmarks, printed and shown in notebooks as a table.

    Attributes:
        scores: benchmark -> what scores.json has of it: `score`, `low`, `high` (95% interval over images) and
            `baselines` in percent, `n` and `n_expected` questions, `partial`, `details`.
        files: the paths of `predictions`, `submissions`, `scores` and `failures`.
    """

    scores: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, Path]

    def to_frame(self) -> DataFrame:
        """As a pandas DataFrame with a row for each benchmark; scores, intervals and baselines in percent.

        Raises:
            UserError: pandas is not installed.
        """
        return frame([_line(name, score) for name, score in self.scores.items()])

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {score['score']:.2f}" for name, score in self.scores.items())
        return f"Evaluation({scores})"

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=120, force_jupyter=False)
        console.print(self)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def _repr_html_(self) -> str:
        return section_html(self._section())

    def __rich__(self) -> RenderableType:
        return grid(self._section(), title=True)

    def _section(self) -> Section:
        header = ("benchmark", "split", "mode", "score", "95% interval", "constant", "majority", "N")
        body: list[tuple[str, ...]] = []
        for name, score in self.scores.items():
            body.append(_texts(name, score))
            if (mean := score["details"]["figures"].get("mean")) is not None:  # POPE: papers report one or the other
                body.append(("└ mean F1", "", "", f"{mean['f1']:.2f}", "", "", "", ""))
        return Section("Scores (%)", header, tuple(body))


def evaluate(
    run: Path | str,
    benchmarks: Sequence[str] = (),
    *overrides: str,
    root: Path | str | None = None,
    out: Path | str | None = None,
    device: str = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    console: Console | None = None,
) -> Evaluation:
    """Evaluate a run's model, or any checkpoint of it. Questions that have been answered are not asked again.

    Args:
        run: a run's folder, or a weights file or checkpoint in it.
        benchmarks: names, such as ["pope"]; those of the run's config if empty.
        overrides: `evaluation.*` and `features.*` settings as `key=value`; and `connector.size`, for connectors that
            are trained for several.
        root: the folder with one folder for each benchmark, of its name, with the official files; that of the run's
            config if None.
        out: the folder for everything that comes out; RUN/eval if None, RUN/eval-size-N at another size than the run's.
        device: "auto" is a GPU if there is one.
        precision: bfloat16 is faster on a GPU; answers may then depend on the batch.
        console: where to report progress; standard error if None.

    Raises:
        Interrupted: Ctrl-C or SIGTERM. The same call continues, and gives the same files, byte for byte.
        UserError: no trained run there, no such benchmark, files that cannot be used, or a setting that an evaluation
            cannot change.
    """
    started = time.time()
    trained = find_trained(run)
    config = _config(trained.run.config, benchmarks, overrides, root)
    folder = trained.run.folder / _folder_name(trained.run.config, config) if out is None else Path(out)
    chosen = find_device(device)
    reporter = Reporter(None, console or Console(stderr=True))
    busy = f"Another process is evaluating into {folder}: wait for it, or choose another folder to write into."
    with stop_requests(reporter.say) as stop, exclusive(RunFiles(folder).lock, busy=busy):
        clear_leftovers(folder)
        try:
            made = create_benchmarks(config)
            _, vlm = load_run(run)
            scores = score_run(
                config,
                vlm.to(chosen),
                folder,
                reporter,
                benchmarks=made,
                weights=trained.weights,
                precision=precision,
            )
            files = write_evaluation(
                folder,
                config,
                trained,
                made,
                scores,
                device=chosen.type,
                precision=precision,
                visual_tokens=vlm.num_visual_tokens,
            )
            files["failures"] = folder / PAGE_FILE
            write_failures([folder], files["failures"])
        except KeyboardInterrupt:
            kept = f"Stopped. The answers so far are kept in {RunFiles(folder).predictions}; the same call continues."
            raise Interrupted(kept, stop.signum or signal.SIGINT) from None
        _log(folder, started, chosen.type, config.evaluation.devices)
    return Evaluation(scores, files)


def _config(path: Path, benchmarks: Sequence[str], overrides: Sequence[str], root: Path | str | None) -> RunConfig:
    """The run's config with what is evaluated, and how."""
    if isinstance(benchmarks, str):
        raise UserError(f'benchmarks is "{benchmarks}": expected a list of names, such as ["{benchmarks}"].')
    if repeated := sorted({name for name in benchmarks if list(benchmarks).count(name) > 1}):
        raise UserError(f"These benchmarks are named twice: {', '.join(repeated)}.")
    changed: dict[str, Any] = {}
    if benchmarks:
        changed["benchmarks"] = list(benchmarks)
    if root is not None:
        changed["root"] = str(root)
    config = config_io.load(RunConfig, [path, {"evaluation": changed}], list(map(_canonical, overrides)))
    if not config.evaluation.benchmarks:
        raise UserError("No benchmark to evaluate: name some.")
    return config


def _folder_name(run: Path, config: RunConfig) -> str:
    own = config_io.load(RunConfig, [run]).connector.size
    return "eval" if config.connector.size == own else f"eval-size-{config.connector.size}"


def _canonical(override: str) -> str:
    key, equals, value = override.removeprefix("--").partition("=")
    key = SYNONYMS.get(key, key)
    if not key.startswith(GROUPS) and key != SIZE:
        raise UserError(
            f"{override}: an evaluation cannot change what the run was trained with. It takes data.root (the folder "
            f"with the benchmarks), {', '.join(f'{group}*' for group in GROUPS)} and {SIZE}; `ablate train "
            "--print-config` shows the keys."
        )
    return f"{key}{equals}{value}"


def _log(folder: Path, started: float, device: str, devices: int) -> None:
    """One line an attempt that came to its end. Nothing else that is written says when or how long."""
    line = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 3),
        "device": device,
        "devices": devices,
    }
    with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _mode(score: Mapping[str, Any]) -> str:
    details = score["details"]
    return "likelihood" if details["answering"] == "likelihood" else details["mode"]


def _texts(name: str, score: Mapping[str, Any]) -> tuple[str, ...]:
    count = f"{score['n']:,} of {score['n_expected']:,} (partial)" if score["partial"] else f"{score['n']:,}"
    interval = f"{score['low']:.1f} to {score['high']:.1f}"
    baselines = [f"{score['baselines'][kind]:.1f}" for kind in ("constant", "majority")]
    return name, score["details"]["split"], _mode(score), f"{score['score']:.2f}", interval, *baselines, count


def _line(name: str, score: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: score[key] for key in ("score", "low", "high", "metric", "n", "n_expected", "partial")}
    return {"benchmark": name, "split": score["details"]["split"], "mode": _mode(score), **plain, **score["baselines"]}
