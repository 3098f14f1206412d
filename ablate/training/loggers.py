"""Weights & Biases, without ever making a run wait for it or fail because of it.

What W&B gets is what the run folder has: it is a view, never the place where results live.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch.loggers import Logger

from ablate.core.errors import UserError
from ablate.runs.config import LoggerConfig
from ablate.training.callbacks import StopTraining

PROBE_SECONDS = 12.0
# How long a run waits for W&B: to start, for one call, and to send what is left at the end.
START_SECONDS, CALL_SECONDS, FINISH_SECONDS = 20.0, 5.0, 10.0


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

    def summarize(self, values: Mapping[str, Any]) -> None:
        pass


class _Calls:
    """Calls of W&B's client, one after another in a thread of their own.

    None is waited for longer than asked, none raises: after the first that fails, all others are left out, and `say`
    says so once. The client blocks, or raises, when its service process or its server dies.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.lost = False
        self._say = say
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], list[Exception], threading.Event]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="wandb-calls", daemon=True).start()

    def __call__(self, call: Callable[[], Any], seconds: float | None = None) -> None:
        if self.lost:
            return
        seconds = CALL_SECONDS if seconds is None else seconds
        errors: list[Exception] = []
        done = threading.Event()
        self._queue.put((call, errors, done))
        if not done.wait(seconds):
            self._give_up(f"no answer within {seconds:g} s")
        elif errors:
            self._give_up(f"{type(errors[0]).__name__}: {errors[0]}")

    def _work(self) -> None:
        while True:
            call, errors, done = self._queue.get()
            try:
                call()
            except Exception as error:
                errors.append(error)
            done.set()

    def _give_up(self, reason: str) -> None:
        self.lost = True
        self._say(
            f"W&B gets no more of this run ({reason}). The run goes on; its folder has everything, and `wandb sync` "
            "sends what W&B's client has written."
        )


class WandbLogger(RunLogger):
    """One W&B run: one attempt at an Ablate run. Lightning's own logger leaves WANDB_MODE set after an offline run."""

    def __init__(self, run: Any, say: Callable[[str], None] = print) -> None:
        super().__init__()
        self._run, self._call = run, _Calls(say)
        # Sweeps and tables of runs show the summary: the best, not the last.
        self._call(lambda: run.define_metric("val/loss", summary="min,last"))

    @property
    def name(self) -> str | None:
        return self._run.project

    @property
    def version(self) -> str | None:
        return self._run.id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._call(lambda: self._run.log(dict(metrics), step=step))

    def log_scores(self, scores: Mapping[str, Mapping[str, Any]], step: int) -> None:
        """`<task>/score` for every task, `mean/score`, which sweeps compare, and a table of them all. The summary also
        has the ends of each score's interval, `<task>/low` and `<task>/high`.
        """
        values = {f"{task}/score": score["score"] for task, score in scores.items()}
        if scores:
            values["mean/score"] = fmean(score["score"] for score in scores.values())
        ends = {
            f"{task}/{end}": score[end] for task, score in scores.items() for end in ("low", "high") if end in score
        }
        columns = ["task", "metric", "score", "low", "high", "n"]
        rows = [[task, *(score.get(column) for column in columns[1:])] for task, score in scores.items()]

        def table() -> None:
            import wandb

            self._run.log({"scores": wandb.Table(columns=list(columns), data=rows)}, step=step)

        # The numbers first: a table is checked, and uploaded as a file.
        self._call(lambda: self._run.log(values, step=step))
        self.summarize(ends)
        self._call(table)

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Values of the whole run, such as its costs."""
        self._call(lambda: self._run.summary.update(dict(values)))

    def finish(self, exit_code: int, *, preempted: bool = False) -> None:
        """Send what is left; `preempted`: the run will go on, as W&B's sweeps should know."""
        if preempted:
            self._call(self._run.mark_preempting)
        self._call(lambda: self._run.finish(exit_code=exit_code), FINISH_SECONDS)
        if self._call.lost:
            import wandb

            # Its hook at the end of the process would wait for W&B without end; this takes the hook away first.
            teardown = threading.Thread(target=wandb.teardown, name="wandb-teardown", daemon=True)
            teardown.start()
            teardown.join(CALL_SECONDS)


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
    job_type: str = "train",
    say: Callable[[str], None] = print,
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
        job_type: the recipe.
        say: where to say that W&B is lost.

    WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, WANDB_RUN_GROUP and WANDB_JOB_TYPE count where set; WANDB_TAGS adds
    to the tags.
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
            "project": os.environ.get("WANDB_PROJECT") or config.project,
            "entity": os.environ.get("WANDB_ENTITY") or config.entity,
            "group": os.environ["WANDB_RUN_GROUP"],
            "name": os.environ.get("WANDB_NAME") or run_id,
            "job_type": os.environ.get("WANDB_JOB_TYPE") or job_type,
            "tags": [*dict.fromkeys([*tags, *filter(None, os.environ.get("WANDB_TAGS", "").split(","))])],
            "config": {"ablate_run": run_id, **settings},
            "settings": wandb.Settings(silent=True, console="off", init_timeout=START_SECONDS),
        }
        try:
            run = _start(mode, fields)
        except wandb.Error as error:
            if config.wandb != "auto" or mode == "offline":
                raise UserError(f"W&B does not start ({error}). Use logger.wandb=offline or disabled.") from error
            run = _start("offline", fields)
        logger = WandbLogger(run, say)
        exit_code, preempted = 1, False
        try:
            yield logger
            exit_code = 0
        except (KeyboardInterrupt, SystemExit, StopTraining):  # Lightning makes the second of the first
            preempted = True
            raise
        finally:
            logger.finish(exit_code, preempted=preempted)


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
