"""`ablate data check BENCHMARK PATH`: what a benchmark's folder holds, and everything that is wrong with it."""

import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ablate.cli import FAILED, INTERRUPTED
from ablate.core.console import Reporter

if TYPE_CHECKING:
    from ablate.evaluation.check import Report


def check(name: str, path: str, *, as_json: bool = False) -> int:
    """0: complete and sound. 1: not. 130: interrupted; what was found until then is shown."""
    from ablate.evaluation import benchmarks
    from ablate.evaluation.check import check as check_benchmark

    benchmark = benchmarks.create(name, path, asks=False)
    with Reporter(None, Console(stderr=True)).phase(f"{name}: decode images", 0) as phase:
        report = check_benchmark(benchmark, phase.update)
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        _print(report)
    if report.unchecked:
        return INTERRUPTED
    return 0 if report.ok else FAILED


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
