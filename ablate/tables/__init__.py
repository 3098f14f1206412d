"""From run folders to one ablation table: connectors x tasks, with intervals, costs, and what is real.

found = table("runs/demo")   # an `ablation.AblationTable`
show(found)                  # prints it; saves table.md, table.csv, table_wide.csv and table.png
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

__all__ = ["Run", "collect", "default_console", "latest_group", "save", "show", "table"]


def table(
    folders: Path | str | Sequence[Path | str] = (),
    baseline: str = "",
    *,
    margin: float | None = None,
    root: Path | str = "runs",
    force: bool = False,
    vary: Sequence[str] = (),
) -> "AblationTable":
    """The ablation table of the runs in these folders.

    Args:
        folders: one or several runs, groups of runs, or folders of groups; the group under `root` with the newest run
            if empty.
        baseline: the row or connector that the others are compared with; that whose settings most rows share if empty.
        margin: percentage points within which rows count as equal; the one that the runs were started with if None.
        root: see `folders`.
        force: compare rows although they were asked other questions, trained on other data, or started otherwise.
        vary: settings in which rows are meant to differ, besides those that their sweep varies.

    Raises:
        UserError: no such folder, no run there that has finished, or no such baseline.
    """
    # Imported here: scipy takes a second, and a sweep reads this package before it starts its first run.
    from ablate.tables.ablation import ablation_table

    given = [folders] if isinstance(folders, Path | str) else list(folders)
    return ablation_table(collect(given or [latest_group(root)]), baseline, margin, force=force, vary=vary)


def show(table: "AblationTable", out: Path | str | None = None, *, console: Console | None = None) -> None:
    """Print a table and save it.

    Args:
        out: the folder for table.md, table.csv, table_wide.csv and table.png; if None, the runs' group folder (the
            first, where there are several).
        console: where to print; standard output if None.
    """
    from ablate.tables.text import print_table

    console = console or default_console()
    print_table(table, console)
    saved = save(table, Path(out) if out is not None else Path(table.groups[0]))
    console.print(f"Saved {', '.join(map(str, saved))}", style="dim", soft_wrap=True, highlight=False)


def default_console() -> Console:
    """Standard output; into a file or a pipe with the width of the whole table, unless COLUMNS says another."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=PIPE_WIDTH)


def save(table: "AblationTable", folder: Path) -> list[Path]:
    """Write table.md, table.csv, table_wide.csv, table.png, and table_sizes.png if a run was read at several sizes.

    Returns:
        their paths.
    """
    from ablate.tables.csv_files import long_csv, wide_csv
    from ablate.tables.figure import draw
    from ablate.tables.text import markdown

    folder.mkdir(parents=True, exist_ok=True)
    texts = {"table.md": markdown(table), "table.csv": long_csv(table), "table_wide.csv": wide_csv(table)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    figures = {"table.png": draw(table)}
    if table.sizes:
        from ablate.tables.size_figure import draw_sizes

        figures["table_sizes.png"] = draw_sizes(table)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=150)
    return [folder / name for name in (*texts, *figures)]
