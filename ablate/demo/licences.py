"""Who made the demo's pictures and under which licence, read from the packages themselves.

gcompris keeps a README beside the pictures of an activity: paragraphs in the manner of Debian's copyright files
("Copyright:", "License:", "Source:", then "Files:" and one name a line). Only photos that it lists by name as being in
the public domain (or CC0) become backgrounds: then a picture made of one of them and of Tux Paint's stamps has the
stamps' licence and no other. Debian's own copyright file of the package gives no licence for each photo.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

_FIELD = re.compile(r"^(?P<name>[A-Za-z][A-Za-z -]*):(?P<value>.*)$")
_PUBLIC_DOMAIN = re.compile(r"public[ -]domain|CC0([ -]1\.0)?", re.IGNORECASE)


@dataclass(frozen=True)
class Credit:
    """One work: its name, its authors, its licence and where it comes from."""

    name: str
    authors: str
    licence: str
    source: str

    @property
    def public_domain(self) -> bool:
        return _PUBLIC_DOMAIN.fullmatch(self.licence) is not None


def read_credits(text: str) -> dict[str, Credit]:
    """The credits of a README, by file name without folder and suffix.

    A paragraph without authors or without a licence credits nothing. A file named by two paragraphs is left out, since
    it is unclear which one applies.
    """
    credits: dict[str, Credit] = {}
    contested: set[str] = set()
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        fields = _fields(paragraph)
        authors, licence = fields.get("copyright", ""), fields.get("license", "")
        if not authors or not licence:
            continue
        for file in fields.get("files", "").split("\n"):
            name = PurePosixPath(file.strip()).stem
            if not name:
                continue
            if name in credits:
                contested.add(name)
            credits[name] = Credit(name, authors, licence, fields.get("source", ""))
    return {name: credit for name, credit in credits.items() if name not in contested}


def _fields(paragraph: str) -> dict[str, str]:
    """A paragraph's fields by lower-case name; the lines after a field's own belong to it."""
    fields: dict[str, str] = {}
    name = ""
    for line in paragraph.split("\n"):
        found = _FIELD.match(line)
        if found:
            name = found["name"].strip().lower()
            fields[name] = found["value"].strip()
        elif name:
            fields[name] = f"{fields[name]}\n{line.strip()}".strip()
    return fields


def credits_table(credits: Iterable[Credit]) -> str:
    """A Markdown table, by name."""
    rows = ["| Photo | By | Licence | Source |", "|---|---|---|---|"]
    for each in sorted(credits, key=lambda credit: credit.name.lower()):
        cells = (each.name, each.authors, each.licence, f"<{each.source}>" if each.source else "")
        rows.append("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |")
    return "\n".join(rows)
