"""`ablate data check BENCHMARK PATH`: what a benchmark's folder holds, and everything that is wrong with it."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ablate.cli import FAILED, INTERRUPTED

if TYPE_CHECKING:
    from ablate.evaluation.check import Report

SECONDS_BETWEEN_LINES = 10.0


def check(name: str, path: str, *, as_json: bool = False) -> int:
    """0: complete and sound. 1: not. 130: interrupted; what was found until then is shown."""
    from ablate.evaluation import benchmarks
    from ablate.evaluation.check import check as check_benchmark

    benchmark = benchmarks.create(name, path, asks=False)
    with _progress(name) as progress:
        report = check_benchmark(benchmark, progress)
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        _print(report)
    if report.unchecked:
        return INTERRUPTED
    return 0 if report.ok else FAILED


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Images decoded, with the time left: a bar in a terminal, a line now and then elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        began = said = time.monotonic()

        def say(done: int, total: int) -> None:
            nonlocal said
            if (now := time.monotonic()) - said >= SECONDS_BETWEEN_LINES and done:
                said, left = now, (now - began) / done * (total - done)
                console.print(f"{name}: {done:,} of {total:,} images decoded, {left:.0f} s left", highlight=False)

        yield say
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{name}: decoding images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print(report: "Report") -> None:
    console = Console(soft_wrap=True, highlight=False)
    table = Table(title=f"{report.title} in {report.path}", title_justify="left")
    for column in ("", "found", "expected"):
        table.add_column(column, justify="right" if column else "left")
    for what, (found, expected) in report.counts.items():
        table.add_row(what, f"{found:,}", f"{expected:,}", style="" if found == expected else "yellow")
    console.print(table)
    for problem in report.problems:
        console.print(f"• {problem}", markup=False)
    for image in report.images:
        console.print(f"• image {image}", markup=False)
    console.print(_verdict(report), style="bold green" if report.ok else "bold red", markup=False)


def _verdict(report: "Report") -> str:
    if report.ok:
        return "Complete and sound."
    said = []
    if not report.complete:
        n, expected = report.counts["questions"]
        said.append(f"Not complete ({n:,} of {expected:,} questions): scores of it are marked partial.")
    if report.problems:
        said.append(f"{len(report.problems):,} problems with the files.")
    if report.images:
        said.append(f"{len(report.images):,} images cannot be used.")
    if report.unchecked:
        said.append(f"Interrupted: {report.unchecked:,} images were not looked at.")
    return " ".join(said)
