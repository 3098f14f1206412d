"""From run folders to one ablation table: connectors x tasks, with intervals, costs, and what is real.

make_tables(["runs/demo"])          # prints it; saves table.md, table.csv, table_wide.csv and table.png
collect(["runs/demo"])              # the runs, finished or not, as `ablation.ablation_table` takes them
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ablate.tables.results import Run, collect, latest_group

if TYPE_CHECKING:
    from ablate.tables.ablation import AblationTable

PIPE_WIDTH = 120

__all__ = ["Run", "collect", "default_console", "latest_group", "make_tables", "save", "show"]


def make_tables(
    folders: Sequence[Path | str],
    baseline: str = "",
    out: Path | str | None = None,
    *,
    margin: float | None = None,
    root: Path | str = "runs",
    console: Console | None = None,
    force: bool = False,
    vary: Sequence[str] = (),
) -> "AblationTable":
    """Print the ablation table of the runs in these folders and save it.

    Args:
        folders: runs, groups of runs, or folders of groups; the group under `root` with the newest run if empty.
        baseline: the row or connector that the others are compared with; that whose settings most rows share if empty.
        out: the folder for table.md, table.csv, table_wide.csv and table.png; if None, the runs' group folder (the
            first, where there are several).
        margin: percentage points within which rows count as equal; the one that the runs were started with if None.
        root: see `folders`.
        console: where to print; standard output if None.
        force, vary: see `ablation.ablation_table`.

    Raises:
        UserError: no such folder, no run there that has finished, or no such baseline.
    """
    return show(
        collect(folders or [latest_group(root)]), baseline, out, margin=margin, console=console, force=force, vary=vary
    )


def show(
    runs: Sequence[Run],
    baseline: str = "",
    out: Path | str | None = None,
    *,
    margin: float | None = None,
    console: Console | None = None,
    force: bool = False,
    vary: Sequence[str] = (),
) -> "AblationTable":
    """Print and save the table of these runs; see `make_tables`."""
    # Imported here: scipy takes a second, and a sweep reads this package before it starts its first run.
    from ablate.evaluation.files import collector_paused
    from ablate.tables.ablation import ablation_table
    from ablate.tables.text import print_table

    console = console or default_console()
    with collector_paused():
        table = ablation_table(runs, baseline, margin, force=force, vary=vary)
    print_table(table, console)
    saved = save(table, Path(out) if out is not None else Path(table.groups[0]))
    console.print(f"Saved {', '.join(map(str, saved))}", style="dim", soft_wrap=True, highlight=False)
    return table


def default_console() -> Console:
    """Standard output; into a file or a pipe with the width of the whole table, unless COLUMNS says another."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=PIPE_WIDTH)


def save(table: "AblationTable", folder: Path) -> list[Path]:
    """Write table.md, table.csv, table_wide.csv and table.png; returns their paths."""
    from ablate.tables.csv_files import long_csv, wide_csv
    from ablate.tables.figure import draw
    from ablate.tables.text import markdown

    folder.mkdir(parents=True, exist_ok=True)
    texts = {"table.md": markdown(table), "table.csv": long_csv(table), "table_wide.csv": wide_csv(table)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    draw(table).savefig(folder / "table.png", dpi=150)
    return [folder / name for name in (*texts, "table.png")]
