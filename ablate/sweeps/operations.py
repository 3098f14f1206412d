"""What can be done with a sweep: run it, on an engine, and stop it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ablate.core.config import parse_override, read_yaml
from ablate.core.errors import UserError
from ablate.sweeps.display import count_runs
from ablate.sweeps.engines.base import LAUNCHER, OK, Engine, Work, at_least, registry
from ablate.sweeps.expand import shard
from ablate.sweeps.listing import has_failed, list_runs, say_cap
from ablate.sweeps.manifest import pinned_threads, write_manifest
from ablate.sweeps.plan import PlannedRun, Resolver, adapted, plan, resolve_with_training
from ablate.sweeps.schema import load_sweep
from ablate.sweeps.sharing import say_shared, share_runs
from ablate.tables import Run, collect, default_console, show
from ablate.tables.results import READ_SIZE

ENGINE_PREFIX = "engine."


def engine_of(name: str = "local", options: Mapping[str, Any] | None = None) -> Engine:
    """The engine of this name with these options; or of a YAML file, whose `name:` is the engine's and whose other
    lines are its options. Options given beside a file win.

    Raises:
        UserError: an unknown engine or option, answered with the choices; a value of the wrong type.
    """
    fields = dict(options or {})
    if Path(name).suffix in (".yaml", ".yml"):
        content = read_yaml(name)
        if not isinstance(of_file := content.pop("name", None), str):
            raise UserError(f"{name}: expected `name:`, the engine's: {', '.join(registry.names())}.")
        name, fields = of_file, content | fields
    return registry.create(name, **fields)


def run_sweep(
    path: Path | str,
    only: Sequence[str] = (),
    shard_spec: str = "",
    jobs: int | None = None,
    overrides: Sequence[str] = (),
    root: Path | str | None = None,
    *,
    engine: Engine | str = "local",
    threads: int | None = None,
    baseline: str = "",
    prepare: Callable[[Any], None] | None = None,
    table: bool = True,
    rerun: bool = False,
    only_failed: bool = False,
    dry_run: bool = False,
    retries: int = 0,
    wait: bool = False,
    console: Console | None = None,
    resolve: Resolver = resolve_with_training,
    launcher: Sequence[str] = LAUNCHER,
) -> int:
    """Run what is left of a sweep and print its table.

    Args:
        path: the sweep file.
        only: connectors to run, see `plan`.
        shard_spec: "i/N" for the i-th of N machines, from 0; "" for all runs.
        jobs: how many runs at the same time; None for the engine's choice, one at a time on this machine.
        overrides: `key=value` for every run, see `plan`. Those of `engine.` are options of the engine.
        root: the folder under which runs are written, the config's if None.
        engine: how the runs get machines: an engine, its name, or a YAML file, see `engine_of`.
        threads: of each process of a run. None for those that the sweep's first runs had, else OMP_NUM_THREADS, else
            the engine's choice.
        baseline: the table's row that the others are compared with.
        prepare: called once with a run's config before the first run, to make what all runs share.
        table: whether to print and save the table at the end.
        rerun: run finished runs again if the source that they were made of has changed; the old folders are kept.
        only_failed: of the runs, those alone that have failed.
        dry_run: list the runs, and run and write nothing.
        retries: how often a run is tried again that a signal has ended, or for which memory was too small. Others would
            fail the same way.
        wait: wait for the runs that others have, and take up those that they leave.
        console: where to print; standard output if None.
        resolve: how arguments become a run's folder and settings.
        launcher: the program that is given a run's arguments.

    Returns:
        0 if all runs are finished; 1 if one has failed; 4 if some are still elsewhere, on other machines or in a queue;
        128 + signal (130 for Ctrl-C) if interrupted.

    Raises:
        UserError: before anything runs, for a mistake in the file or in the arguments.
    """
    console = console or default_console()
    at_least("jobs", jobs, 1)
    at_least("threads", threads, 1)
    at_least("retries", retries, 0)
    again = _command_line(
        path,
        overrides,
        {"--connector": ",".join(only), "--shard": shard_spec, "--jobs": jobs, "--root": root, "--baseline": baseline}
        | {"--engine": engine if engine != "local" else None, "--threads": threads, "--retries": retries or None},
        {"--rerun": rerun, "--only-failed": only_failed, "--wait": wait},
    )
    overrides, options = split_options(overrides)
    if isinstance(engine, str):
        engine = engine_of(engine, options)
    sweep = load_sweep(path)
    asked, others = adapted(sweep, only, overrides)
    if root is not None:
        others = [*others, f"root={root}"]
    planned: list[PlannedRun] = []
    if engine.needs_plan or (not asked.only_wandb and asked.method in ("grid", "random")):
        with console.status("Checking the config of every run"):
            planned = plan(sweep, only=only, overrides=overrides, root=root, resolve=resolve)
    if engine.needs_plan:
        shared = share_runs(planned, earlier=not rerun)
        planned = list(shared.runs)
        say_cap(asked, console)
        say_shared(shared, console)
    mine = shard(planned, shard_spec)
    if only_failed:
        mine = [run for run in mine if has_failed(run)]
    if dry_run:
        list_runs(mine, console, engine.held(mine))
        return OK
    threads = threads or pinned_threads(planned) or threads_asked() or engine.default_threads(jobs, mine)
    work = Work(
        sweep=asked,
        overrides=others,
        planned=planned,
        runs=mine,
        console=console,
        again=again,
        jobs=jobs,
        threads=threads,
        rerun=rerun,
        retries=retries,
        wait=wait,
        prepare=prepare,
        launcher=launcher,
    )
    if engine.needs_plan:
        write_manifest(sweep, planned, threads)
    status = engine.run(work)
    if table and engine.needs_plan:
        # With the sweep's other connectors, trained by an earlier call under the same settings.
        rest = share_runs(plan(sweep, overrides=overrides, root=root, resolve=resolve)).runs if only else ()
        _print_table(planned, rest, baseline, console)
    return status


def stop_sweep(
    path: Path | str,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    root: Path | str | None = None,
    *,
    console: Console | None = None,
    resolve: Resolver = resolve_with_training,
) -> int:
    """Ask those who have runs of the sweep to stop, whichever engine started them. Each finishes its step and saves.

    Returns:
        0 if none is left that has one; 4 if runs are another machine's.
    """
    console = console or default_console()
    overrides, _ = split_options(overrides)
    runs = share_runs(plan(load_sweep(path), only=only, overrides=overrides, root=root, resolve=resolve)).runs
    return max(registry.create(name).stop(runs, console) for name in registry.names())


def split_options(overrides: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The overrides of runs, and the engine's options among them."""
    of_runs: list[str] = []
    options: dict[str, Any] = {}
    for override in overrides:
        if override.removeprefix("--").startswith(ENGINE_PREFIX):
            options |= parse_override(override)["engine"]
        else:
            of_runs.append(override)
    return of_runs, options


def threads_asked() -> int | None:
    """OMP_NUM_THREADS, as everywhere the wish for this number of threads a process."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() and int(text) > 0 else None


def _command_line(
    path: Path | str, overrides: Sequence[str], options: Mapping[str, Any], flags: Mapping[str, bool]
) -> list[str]:
    """The same sweep again."""
    given = [part for option, value in options.items() if value not in (None, "") for part in (option, str(value))]
    return ["ablate", "sweep", str(path), *overrides, *given, *(flag for flag, on in flags.items() if on)]


def _home(run: Run) -> Path:
    """A run's folder; of one that was read at another size, in whose folder that is written."""
    return (run.folder.parent if READ_SIZE in run.settings else run.folder).resolve()


def _print_table(planned: Sequence[PlannedRun], others: Sequence[PlannedRun], baseline: str, console: Console) -> None:
    """The table of this sweep's runs. Runs of other settings in the same folder are left out."""
    asked, begun = ({run.folder.resolve() for run in runs} for runs in (planned, others))
    groups = sorted({run.folder.parent for run in planned})
    found = collect(groups)
    runs = [run for run in found if (folder := _home(run)) in asked or (folder in begun and run.state != "not started")]
    if not any(run.state == "finished" for run in runs):
        console.print("No run has finished yet, so there is no table.")
        return
    from ablate.tables.ablation import ablation_table  # imports scipy, which takes a second

    try:
        table = ablation_table(runs, baseline)
    except UserError as error:
        if not baseline:
            raise
        # After hours of training, a baseline that is not there is no reason to show nothing.
        console.print(Text(f"{error} Compared with the default instead.", style="yellow"))
        table = ablation_table(runs)
    show(table, console=console)
    if left_out := len(found) - len(runs):
        which = count_runs(left_out)
        folders = " ".join(map(str, groups))
        console.print(Text(f"{which} with other settings left out; `ablate table {folders}` shows all.", style="dim"))
