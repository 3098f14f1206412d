"""Tables as HTML, for notebooks: the sections that the terminal shows, with the same marks and colours."""

from collections.abc import Iterable
from html import escape

from ablate.tables.ablation import AblationTable
from ablate.tables.text import Section, conclusions, sections

# Of rich's styles; the colours are readable on white and on dark backgrounds.
_CSS = {
    "bold": "font-weight: bold",
    "italic": "font-style: italic",
    "dim": "opacity: 0.6",
    "green": "color: #1a9850",
    "red": "color: #d6604d",
    "cyan": "color: #3690c0",
}
_CELL = "padding: 2px 10px; white-space: nowrap; text-align: {}"


def table_html(table: AblationTable) -> str:
    """All of the table: sections, what they say in words, and the notes."""
    parts = [section_html(section) for section in sections(table)]
    if lines := list(conclusions(table)):
        parts.append(_list("In words", lines))
    if table.notes:
        parts.append(_list("Before you believe it", table.notes))
    return "\n".join(parts)


def section_html(section: Section) -> str:
    """One section, with its title above and its caption below."""
    head = "".join(
        f'<th style="{_cell(i)}">{escape(name.replace("_" + chr(10), "_")).replace(chr(10), "<br>")}</th>'
        for i, name in enumerate(section.header)
    )
    marks = section.marks or {}
    rows = []
    for i, row in enumerate(section.body):
        cells = "".join(
            f'<td style="{_cell(j)}; {_css(marks.get((i, j), ""))}">{escape(entry)}</td>' for j, entry in enumerate(row)
        )
        rows.append(f'<tr style="{_css(section.styles[i] if section.styles else "")}">{cells}</tr>')
    caption = f'<p style="max-width: 60em; opacity: 0.7">{escape(section.caption)}</p>' if section.caption else ""
    return (
        f'<h4>{escape(section.title)}</h4><div style="overflow-x: auto"><table style="border-collapse: collapse">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{caption}"
    )


def _list(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<h4>{escape(title)}</h4><ul style="max-width: 60em">{items}</ul>'


def _cell(column: int) -> str:
    return _CELL.format("right" if column else "left")


def _css(style: str) -> str:
    return "; ".join(_CSS[word] for word in style.split())
