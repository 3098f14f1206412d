"""The ablation table for people: on the terminal and as Markdown.

Both show the same sections: scores, differences to the baseline, whether each connector beats its own blind run, costs,
and what a reader must know. On a terminal too narrow for a section, its columns are stacked.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ablate.evaluation.statistics import Comparison
from ablate.tables.ablation import MEAN, AblationTable, Cell, Row
from ablate.tables.verdicts import ALPHA, CONFIDENCE, EQUIVALENCES, EQUIVALENT_WORDS, said

SYMBOLS = {"better": "▲", "worse": "▼"}  # of other verdicts none
_WORDS = {
    "better": "better than",
    "worse": "worse than",
    "equivalent": "equivalent to",
    "unresolved": "unresolved against",
}
STYLES = {"better": "green", "worse": "red", "equivalent": "cyan", "unresolved": "dim", "one seed": "dim", "": ""}
UNRESOLVED = "?"
PARTIAL = "†"
MISSING = "–"
CORPUS = "◊"  # after the name of a task
LOGGED = "°"  # after a score
NOT_COMPARED = "not compared"
HEADER_WIDTH, LEAST_NAME = 16, 10  # cells
_WRAPPING = Console(file=io.StringIO())  # what wraps text asks for one


@dataclass(frozen=True)
class Section:
    """One of the stacked tables: the first column is left-aligned, the others right-aligned.

    `styles`: the rich style of each row. `marks`: (row, column) -> the style of that entry.
    """

    title: str
    header: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    caption: str = ""
    styles: tuple[str, ...] = ()
    marks: dict[tuple[int, int], str] | None = None


def sections(table: AblationTable) -> list[Section]:
    """The stacked tables, in order; those with nothing to say are left out."""
    found = [_scores(table), _differences(table), _blindness(table), _sizes(table), _costs(table)]
    return [section for section in found if section.body]


def print_table(table: AblationTable, console: Console) -> None:
    """Print for a terminal."""
    for section in sections(table):
        console.print(Text(f"\n{section.title}", style="bold"))
        for i, block in enumerate(_stacked(section, console)):
            if i:
                console.print()
            console.print(grid(block))
        console.print(Text(section.caption, style="dim"))
    if lines := list(conclusions(table)):
        console.print()
        console.print(_bullets(lines))
    if table.notes:
        console.print(Text("\nBefore you believe it", style="bold yellow"))
        console.print(_bullets(table.notes), style="yellow")
    console.print()


def plain_text(table: AblationTable, width: int = 120) -> str:
    """The text of `print_table`, without colors."""
    console = Console(file=io.StringIO(), width=width, force_jupyter=False)
    print_table(table, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _bullets(lines: Iterable[str]) -> Table:
    """Lines that wrap with their indentation."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column()
    grid.add_column(overflow="fold")
    for line in lines:
        grid.add_row("•", Text(line))
    return grid


def grid(section: Section, *, title: bool = False) -> Table:
    """A section as one rich table; nothing is stacked."""
    shown = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0),
        title=section.title if title else None,
        title_justify="left",
    )
    for i, name in enumerate(section.header):
        shown.add_column(name, justify="right" if i else "left", no_wrap=True, vertical="bottom")
    marks = section.marks or {}
    for i, row in enumerate(section.body):
        # A space of our own besides the box's: rich pads on both sides, which is wider than a terminal.
        entries = [Text(" " * bool(j) + entry, style=marks.get((i, j), "")) for j, entry in enumerate(row)]
        shown.add_row(*entries, style=section.styles[i] if section.styles else "")
    return shown


def _stacked(section: Section, console: Console) -> Iterator[Section]:
    """The section in blocks of columns that fit the console, about equally many in each; the first column is repeated
    in each. Long names wrap to a second line; numbers are never shortened.
    """
    header = tuple(folded(name, HEADER_WIDTH) for name in section.header)
    others = [_width(column) for column in zip(header[1:], *(row[1:] for row in section.body), strict=True)]
    room = max(LEAST_NAME, min(console.width // 2, console.width - max(others, default=0) - 2))
    body = tuple((folded(row[0], room), *row[1:]) for row in section.body)
    widths = [_width([header[0], *(row[0] for row in body)]), *others]
    blocks = _blocks(widths, console.width, most=len(widths))
    blocks = _blocks(widths, console.width, most=-(-(len(widths) - 1) // len(blocks)))
    for columns in blocks:
        kept = [0, *columns]
        yield replace(
            section,
            header=tuple(header[i] for i in kept),
            body=tuple(tuple(row[i] for i in kept) for row in body),
            marks={(i, kept.index(j)): style for (i, j), style in (section.marks or {}).items() if j in kept},
        )


def _width(column: Iterable[str]) -> int:
    """With the two spaces that part it from the next."""
    return max(cell_len(line) for entry in column for line in entry.split("\n")) + 2


def folded(text: str, width: int) -> str:
    """In lines of at most `width` cells, broken at spaces, within longer words after _, else anywhere."""
    if all(cell_len(line) <= width for line in text.split("\n")):
        return text
    words = text.replace("\n", "").split(" ")
    breakable = " ".join(word.replace("_", "_\u200b ") if cell_len(word) > width else word for word in words)
    lines = Text(breakable).wrap(_WRAPPING, width, overflow="fold")
    return "\n".join(line.plain.replace("_\u200b ", "_").replace("\u200b", "").rstrip() for line in lines)


def _blocks(widths: Sequence[int], width: int, most: int) -> list[list[int]]:
    """Columns 1, 2, ... in blocks that fit `width` beside column 0, at most `most` (and at least one) in each."""
    blocks: list[list[int]] = [[]]
    for i in range(1, len(widths)):
        used = widths[0] + sum(widths[j] for j in blocks[-1])
        if blocks[-1] and (used + widths[i] > width or len(blocks[-1]) == most):
            blocks.append([])
        blocks[-1].append(i)
    return blocks


def markdown(table: AblationTable) -> str:
    """The same as GitHub-flavoured Markdown."""
    parts = [f"# Ablation: {', '.join(group.rpartition('/')[2] for group in table.groups)}"]
    for section in sections(table):
        header = [name.replace("_\n", "_").replace("\n", " ") for name in section.header]
        lines = [_pipes(header), _pipes([":--"] + ["--:"] * (len(header) - 1))]
        lines += [_pipes(row) for row in section.body]
        parts += [f"## {section.title}", "\n".join(lines)]
        if section.caption:
            parts.append(section.caption.replace("*", "\\*"))
    if lines := list(conclusions(table)):
        parts += ["## In words", "\n".join(f"- {line}" for line in lines)]
    if table.notes:
        parts += ["## Before you believe it", "\n".join(f"- {note}" for note in table.notes)]
    return "\n\n".join(parts) + "\n"


def conclusions(table: AblationTable) -> Iterator[str]:
    """One sentence for each connector: against the baseline, and against its own blind run."""
    checks = {check.row: check for check in table.blind_checks}
    for row in table.rows:
        parts = []
        if (cell := row.cells.get(MEAN)) and cell.difference:
            parts.append(_in_words(cell, table.baseline))
        if check := checks.get(row.name):
            parts.append(f"beats its own blind run on {len(check.beats)} of {len(check.tasks)} tasks")
            if check.unknown:
                parts[-1] = "one seed, so whether it beats its own blind run is unknown"
        if parts:
            yield f"{row.name}: {'; '.join(parts)}"


def _in_words(cell: Cell, baseline: str) -> str:
    found = cell.difference
    assert found is not None
    if not found.covers_seeds:
        return f"{_signed(found.difference)} points against {baseline}; one seed: other seeds unknown"
    text = (
        f"{_WORDS[cell.verdict]} {baseline} ({_signed(found.difference)} points, {_end(found.low)} to "
        f"{_end(found.high)}, adjusted p {_p(found.p_value)})"
    )
    if equivalence := said(cell.verdict, cell.equivalence):
        text += f", {EQUIVALENT_WORDS[equivalence]}"
    if cell.verdict == "unresolved":
        text += f"; 80% power at {100 * found.detectable:.1f} points"
    return text


# -- Sections ---------------------------------------------------------------------------------------------------------


def _scores(table: AblationTable) -> Section:
    columns = (MEAN, *table.tasks)
    body: list[Any] = []
    styles, marks = [], {}
    for row in table.rows:
        entries = [_score(row.cells.get(column)) for column in columns]
        seeds = str(len(row.runs)) if len(row.runs) == row.planned else f"{len(row.runs)} of {row.planned}{PARTIAL}"
        marks[len(body), 1] = "bold"
        body.append((_name(row), *entries, seeds))
        styles.append("dim" if row.blind else "")
    for name, answers in (("constant answer", table.constant), ("majority answer", table.majority)):
        if answers:
            body.append((name, *(_percent(answers.get(column)) for column in columns), ""))
            styles.append("dim italic")
    over = "images and seeds" if any(len(row.runs) > 1 for row in table.rows) else "images alone"
    caption = f"Mean over the seeds and its {100 * CONFIDENCE:g}% interval over {over}, each score by itself."
    if table.splits:
        caption += f" Splits: {'; '.join(f'{task} {split}' for task, split in table.splits.items())}."
    if any(PARTIAL in entry for row in body for entry in row):
        caption += f" {PARTIAL} partial: see the notes."
    if table.marks:
        caption += f" {table.marks}"
    if table.corpus:
        caption += (
            f" {CORPUS} metric over the corpus: one figure over all answers, its interval by resampling the images; "
            "in no comparison and not in the mean."
        )
    if logs := sorted({log for row in table.rows for cell in row.cells.values() for log in cell.logs}):
        caption += f" {LOGGED} answers read from a file of {', '.join(logs)}: how the model was asked is not known."
    header = ("connector", MEAN, *(_header(task) + CORPUS * (task in table.corpus) for task in table.tasks), "seeds")
    return Section(f"Scores (%) · {table.summary()}", header, tuple(body), caption, tuple(styles), marks)


def _differences(table: AblationTable) -> Section:
    columns = (MEAN, *table.averaged)
    body: list[Any] = []
    marks: dict[Any, str] = {}
    for row in table.rows:
        mean, *others = cells = [row.cells.get(column) for column in columns]
        refused = table.refused(row)
        if not refused and not any(cell and cell.difference for cell in cells):
            continue
        marks |= {(len(body), j + 3): STYLES[cell.verdict] for j, cell in enumerate(others) if cell}
        if mean:
            marks[len(body), 1] = f"{STYLES[mean.verdict]} bold"
        p = _p(mean.difference.p_value).removeprefix("= ") if mean and _known(mean.difference) else MISSING
        texts = {column: _difference(cell) for column, cell in zip(columns, cells, strict=True)}
        entries = list((texts | dict.fromkeys(refused, NOT_COMPARED)).values())
        body.append((_name(row), entries[0], p, *entries[1:]))
    caption = _foot(table)
    header = ("connector", MEAN, "p", *map(_header, table.averaged))
    return Section(f"Difference from {table.baseline}", header, tuple(body), caption, (), marks)


def _foot(table: AblationTable) -> str:
    """How the differences are to be read, what they assume, and how large a difference had to be."""
    differences = {
        column: [cell.difference for row in table.rows if (cell := row.cells.get(column)) and _known(cell.difference)]
        for column in (MEAN, *table.tasks)
    }
    if not any(differences.values()):
        return "Points, on the questions that both answered. One seed: others are unknown, so no verdicts."
    text = (
        f"Points [simultaneous {100 * CONFIDENCE:g}% interval]: all intervals hold at once, for the mean and every "
        "task of every row. ▲ better, ▼ worse: the interval excludes 0. ? unresolved. p: of the mean, adjusted for "
        f"all these comparisons ({ALPHA:g} or less where the interval excludes 0). Assumed: images and seeds are "
        "independent draws, and on a task the seeds of all rows vary alike; a row whose seeds clearly vary more (F "
        "test) is also tested with its own variance, and the wider interval counts."
    )
    if table.margin.points:
        text += f" Margin {table.margin}: ≈ {EQUIVALENT_WORDS['equivalent']}, ≥ not worse, ≤ not better by more."
    else:
        text += " No margin was given (`margin=POINTS` for the runs, or --margin), so nothing is called equal."
    whats = (("the mean", (MEAN,)), ("a task", table.tasks))
    power = [
        f"{_span([each.detectable for column in columns for each in differences[column]])} points on {what}"
        for what, columns in whats
        if any(differences[column] for column in columns)
    ]
    return f"{text} Difference that is found with 80% power: {', '.join(power)}."


def _span(values: Sequence[float]) -> str:
    low, high = f"{100 * min(values):.1f}", f"{100 * max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _known(difference: Comparison | None) -> TypeGuard[Comparison]:
    return difference is not None and difference.covers_seeds


def _blindness(table: AblationTable) -> Section:
    body: list[Any] = []
    marks: dict[Any, str] = {}
    for check in table.blind_checks:
        entries = []
        for j, task in enumerate(table.averaged, start=1):
            beats = task in check.beats
            known = task in check.tasks and task not in check.unknown
            entries.append(("yes" if beats else "no") if known else "1 seed" if task in check.unknown else MISSING)
            marks[len(body), j] = "green" if beats else "red" if known else "dim"
        total = len(check.tasks)
        body.append((check.row, *entries, f"{len(check.beats)} of {total}", f"{len(check.at_constant)} of {total}"))
    header = ("connector", *map(_header, table.averaged), "beats\nblind", "blind at\nconstant")
    caption = (
        "yes: better than the same training without the image, on the same questions (simultaneous "
        f"{100 * CONFIDENCE:g}% intervals over all rows and tasks). no: not shown to be. "
        "Last column: tasks where the blind run's interval contains the constant answer's score."
    )
    return Section("Does it see? Against its own blind run", header, tuple(body), caption, (), marks)


def _sizes(table: AblationTable) -> Section:
    body: list[Any] = []
    marks: dict[Any, str] = {}
    for check in table.sizes:
        read = table.row(check.read)
        trained = table.row(check.trained) if check.trained else None
        cell = Cell(0.0)
        if check.difference is not None:
            equivalence = check.difference.equivalence(table.margin.points / 100)
            cell = Cell(0.0, difference=check.difference, equivalence=equivalence)
            marks[len(body), 5] = STYLES[cell.verdict]
        body.append(
            (
                check.row,
                "as trained" if check.size is None else str(check.size),
                _count(read.cost("visual_tokens"), exact=True),
                _score(read.cells.get(MEAN)),
                _score(trained.cells.get(MEAN)) if trained else MISSING,
                _difference(cell) if check.difference is not None else MISSING,
            )
        )
    header = (
        "connector",
        "size",
        "visual\ntokens",
        "mean, trained\nfor all sizes",
        "mean, trained\nfor it alone",
        "difference",
    )
    caption = (
        "One training read at several sizes, beside trainings for one size each (connector.size=N). Difference: points "
        f"[simultaneous {100 * CONFIDENCE:g}% interval over all sizes]."
    )
    if table.margin.points:
        caption += f" Margin {table.margin}: ≈ {EQUIVALENT_WORDS['equivalent']}."
    return Section("Trained once, read at several sizes", header, tuple(body), caption, (), marks)


def _costs(table: AblationTable) -> Section:
    body, styles = [], []
    for row in table.rows:
        if row.runs and not row.blind and row.read_size is None:
            body.append(
                (
                    _name(row),
                    _count(row.cost("connector_parameters")),
                    _count(row.cost("trainable_parameters")),
                    _count(row.cost("visual_tokens"), exact=True),
                    _scaled(row.cost("step_seconds"), 1e3),
                    _scaled(row.cost("peak_memory_bytes"), 1e-6, digits=0),
                    _scaled(row.cost("train_seconds"), 1),
                )
            )
            styles.append("")
    header = (
        "connector",
        "connector\nparameters",
        "trained\nparameters",
        "visual\ntokens",
        "step\n(ms)",
        "peak memory\n(MB)",
        "training\n(s)",
    )
    return Section("Cost", header, tuple(body), "Medians over the seeds.", tuple(styles))


# -- Entries ----------------------------------------------------------------------------------------------------------


def _name(row: Row) -> str:
    # A blind row stands right below the one it belongs to, unless it belongs to several.
    return ("└ blind" if row.blind and not row.shared else row.name) + row.marks


def _header(task: str) -> str:
    """Narrow: "demo_textvqa" on two lines. Never "textvqa" alone for a demo task."""
    return task.replace("_", "_\n", 1)


def _score(cell: Cell | None) -> str:
    if cell is None:
        return MISSING
    flag = PARTIAL * cell.partial + LOGGED * bool(cell.logs)
    interval = "" if cell.estimate is None else f" [{100 * cell.estimate.low:.1f}, {100 * cell.estimate.high:.1f}]"
    return f"{100 * cell.mean:.1f}{interval}{flag}"


def _difference(cell: Cell | None) -> str:
    """+1.2 [−0.3, +2.7]: followed by a symbol if it is better or worse, equal within the margin, or partial."""
    if cell is None or cell.difference is None:
        return MISSING
    flag = PARTIAL if cell.partial else ""
    found = cell.difference
    assert found is not None
    if not found.covers_seeds:
        return f"{_signed(found.difference)} 1 seed{flag}"
    symbols = SYMBOLS.get(cell.verdict, "") + EQUIVALENCES[said(cell.verdict, cell.equivalence)]
    return f"{_signed(found.difference)} [{_end(found.low)}, {_end(found.high)}]{symbols or UNRESOLVED}{flag}"


def _end(fraction: float) -> str:
    """An end of an interval, with the digits that keep its side of 0: +0.04 is not 0.0."""
    for digits in range(1, 9):
        text = f"{100 * fraction:+.{digits}f}"
        if float(text) != 0:
            return text.replace("-", "−")
    return "0.0"


def _signed(fraction: float) -> str:
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _percent(fraction: float | None) -> str:
    return MISSING if fraction is None else f"{100 * fraction:.1f}"


def _p(p: float) -> str:
    """With the digits that keep its side of `ALPHA`: .0502 is not .050."""
    if p < 0.001:
        return "< .001"
    texts = (f"{p:.{digits}f}" for digits in range(3, 17))
    return f"= {next(text for text in texts if (float(text) <= ALPHA) == (p <= ALPHA)).removeprefix('0')}"


def _count(value: float | None, exact: bool = False) -> str:
    if value is None:
        return MISSING
    if exact or value < 1e4:
        return f"{value:,.0f}"
    return f"{value / 1e3:,.0f}k" if value < 1e6 else f"{value / 1e6:,.1f}M"


def _scaled(value: float | None, factor: float, digits: int = 1) -> str:
    return MISSING if value is None else f"{value * factor:,.{digits}f}"


def _pipes(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entry.replace("|", "\\|").replace("*", "\\*") for entry in entries) + " |"


__all__ = ["Section", "conclusions", "folded", "markdown", "print_table", "sections"]
