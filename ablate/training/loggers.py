"""Weights & Biases, without ever making a run wait for it or fail because of it.

What W&B gets is what the run folder has: it is a view, never the place where results live.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch.loggers import Logger

from ablate.core.errors import UserError
from ablate.runs.config import LoggerConfig

PROBE_SECONDS = 12.0


class RunLogger(Logger):
    """A Lightning logger that takes a run's scores too. This one keeps nothing: without W&B, and on other ranks."""

    @property
    def name(self) -> str | None:
        return None

    @property
    def version(self) -> str | None:
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """W&B has the settings from its start."""

    def log_scores(self, scores: Mapping[str, Mapping[str, Any]], step: int) -> None:
        """`scores`: as in result.json."""


class WandbLogger(RunLogger):
    """One W&B run: one attempt at an Ablate run. Lightning's own logger leaves WANDB_MODE set after an offline run."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self._run = run

    @property
    def name(self) -> str | None:
        return self._run.project

    @property
    def version(self) -> str | None:
        return self._run.id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._run.log(dict(metrics), step=step)

    def log_scores(self, scores: Mapping[str, Mapping[str, Any]], step: int) -> None:
        """`<task>/score` for every task, `mean/score`, which sweeps compare, and a table of them all."""
        import wandb

        columns = ["task", "metric", "score", "low", "high", "n"]
        rows = [[task, *(score.get(column) for column in columns[1:])] for task, score in scores.items()]
        values = {f"{task}/score": score["score"] for task, score in scores.items()}
        if scores:
            values["mean/score"] = fmean(score["score"] for score in scores.values())
        self._run.log({**values, "scores": wandb.Table(columns=list(columns), data=rows)}, step=step)


@contextmanager
def tracking(
    config: LoggerConfig,
    *,
    run_id: str,
    group: str,
    settings: Mapping[str, Any],
    folder: Path,
    tags: list[str],
    enabled: bool = True,
) -> Iterator[RunLogger]:
    """Track one attempt at run `run_id`.

    Args:
        config: mode, project, entity.
        run_id: goes to the config key `ablate_run`. W&B cannot resume offline, so every attempt is a W&B run of its
            own; this key and the group link them.
        group: the W&B group.
        settings: the flat config.
        folder: all that W&B writes goes to `folder/wandb`, `folder/.wandb-data` and `folder/.wandb-cache`, except
            where WANDB_DIR, WANDB_DATA_DIR and WANDB_CACHE_DIR say otherwise.
        tags: shown in W&B's list of runs.
        enabled: False on ranks other than the first.
    """
    if not enabled:
        yield RunLogger()
        return
    with wandb_environment(folder, group), _quiet():
        mode = wandb_mode(config)
        if mode == "disabled":
            yield RunLogger()
            return
        import wandb

        fields = {
            "dir": os.environ["WANDB_DIR"],  # explicitly, as wandb reads the environment once in a process
            "project": config.project,
            "entity": config.entity,
            "group": group,
            "name": run_id,
            "tags": tags,
            "config": {"ablate_run": run_id, **settings},
            "settings": wandb.Settings(silent=True, console="off"),
        }
        try:
            run = _start(mode, fields)
        except wandb.Error as error:
            if config.wandb != "auto" or mode == "offline":
                raise UserError(f"W&B does not start ({error}). Use logger.wandb=offline or disabled.") from error
            run = _start("offline", fields)
        exit_code = 1
        try:
            yield WandbLogger(run)
            exit_code = 0
        finally:
            run.finish(exit_code=exit_code)


def _start(mode: Any, fields: Mapping[str, Any]) -> Any:
    import wandb

    # In the environment too, for child processes: without a key and a terminal, wandb raises.
    os.environ["WANDB_MODE"] = mode
    return wandb.init(mode=mode, **fields)


def wandb_mode(config: LoggerConfig) -> str:
    """`online`, `offline` or `disabled`. `auto` is WANDB_MODE, else online if a server answers, else offline."""
    if config.wandb != "auto":
        return config.wandb
    if named := os.environ.get("WANDB_MODE"):
        mode = {"dryrun": "offline", "run": "online"}.get(named, named)
        if mode not in ("online", "offline", "disabled"):
            raise UserError(f'WANDB_MODE is "{named}": expected online, offline or disabled.')
        return mode
    return "online" if server_answers() else "offline"


def server_answers(seconds: float = PROBE_SECONDS) -> bool:
    """Whether W&B has a key and its server accepts it within `seconds`."""
    answer: list[bool] = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            import wandb

            answer.append(bool(wandb.login(prompt=False, verify=True)))

    # wandb retries a dead server for minutes, out of reach of its own timeout.
    thread = threading.Thread(target=ask, name="wandb-probe", daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answer and answer[0])


@contextmanager
def wandb_environment(folder: Path, group: str) -> Iterator[None]:
    """Keep W&B's files in `folder` and silence its messages; afterwards the environment is as it was."""
    wanted = {
        "WANDB_DIR": str(folder),
        "WANDB_DATA_DIR": str(folder / ".wandb-data"),
        "WANDB_CACHE_DIR": str(folder / ".wandb-cache"),
        "WANDB_RUN_GROUP": group,
        "WANDB_SILENT": "true",
    }
    before = {name: os.environ.get(name) for name in [*wanted, "WANDB_MODE"]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, earlier in before.items():
            if earlier is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = earlier


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence W&B's messages about a server that does not answer."""
    logger = logging.getLogger("wandb")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
