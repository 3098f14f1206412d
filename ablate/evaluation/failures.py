"""One HTML file of what models got wrong: image, question, people's answers, each run's answer and its score.

It opens from disk and asks nothing of the network: script, style and data are in it, and so are thumbnails of up to
`MOST_THUMBNAILS` different images, each once; further images are linked, relative to the page. All text of questions
and answers is data, never markup: the page puts it in place with `textContent`, and its content security policy lets no
script run but its own.
"""

import base64
import hashlib
import html
import io
import json
import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ablate.core.errors import UserError
from ablate.core.files import atomic_file
from datamodules.errors import BadSample
from datamodules.images.decode import read_image

MOST_ROWS = 10_000
MOST_THUMBNAILS = 2_000  # of about 5 KB each
THUMBNAIL_SIZE = 160  # pixels of the longer side
_PAGE = Path(__file__).with_suffix(".html")

Record = Mapping[str, Any]  # a line of predictions/<task>.jsonl


@dataclass(frozen=True)
class Answered:
    """What one run answered.

    Attributes:
        name: what the page calls the run; unlike any other's.
        records: the lines of its prediction files, by task.
        partial: tasks of which not all questions were asked, with "N of M".
    """

    name: str
    connector: str
    records: Mapping[str, Sequence[Record]]
    partial: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """What went into a page: questions that some run failed at, how many of them are shown, and images not found."""

    failures: int
    shown: int
    without_image: int


def write_page(
    path: Path, runs: Sequence[Answered], images: Mapping[tuple[str, str], Path], *, most: int = MOST_ROWS
) -> Written:
    """Write the page.

    Args:
        runs: side by side, in this order.
        images: the image of each question, by task and question id; questions without one are shown without.
        most: questions shown at most: evenly spaced ones of every task. The page says how many there are in all.

    Raises:
        UserError: two runs of one name.
    """
    if len({run.name for run in runs}) < len(runs):
        raise UserError(f"Two runs have one name: {', '.join(run.name for run in runs)}.")
    tasks = list(dict.fromkeys(task for run in runs for task in run.records))
    failed = {task: _failed(runs, task) for task in tasks}
    total = sum(map(len, failed.values()))
    shown = {
        task: _evenly(rows, most * len(rows) // max(1, total)) if total > most else rows
        for task, rows in failed.items()
    }
    pictures = _Pictures(path.parent, images)
    rows = [
        _row(number, qid, records, pictures.of(task, qid))
        for number, task in enumerate(tasks)
        for qid, records in shown[task]
    ]
    data = {
        "tasks": tasks,
        "runs": [{"name": run.name, "connector": run.connector} for run in runs],
        "summary": [[_summary(run, task) for run in runs] for task in tasks],
        "failures": total,
        "rows": rows,
        "pictures": pictures.sources,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(_page(data).encode())
    return Written(total, len(rows), sum(row["i"] < 0 for row in rows))


def _failed(runs: Sequence[Answered], task: str) -> list[tuple[str, list[Record | None]]]:
    """The questions that some run did not answer fully right: (id, each run's record or None if not asked)."""
    by_id: dict[str, list[Record | None]] = {}
    for column, run in enumerate(runs):
        for record in run.records.get(task, ()):
            by_id.setdefault(record["id"], [None] * len(runs))[column] = record
    return [
        (qid, records)
        for qid, records in by_id.items()
        if any(record is not None and record["score"] < 1 for record in records)
    ]


def _evenly(rows: list[Any], count: int) -> list[Any]:
    return [rows[number * len(rows) // count] for number in range(count)]


def _row(task: int, qid: str, records: Sequence[Record | None], picture: int) -> dict[str, Any]:
    """A question as the page's script reads it: t(ask), (t)y(pe), i(mage), q(uestion), a(nswers), r(uns' answers)."""
    record = next(record for record in records if record is not None)
    answer = record["answer"]
    counted: list[Any] = [[answer, 1]] if isinstance(answer, str) else Counter(answer).most_common()
    return {
        "t": task,
        "y": record["type"],
        "i": picture,
        "id": qid,
        "q": record["question"],
        "a": counted,
        "r": [
            None if each is None else [each["prediction"], _rounded(each["score"]), _certainty(each)]
            for each in records
        ],
    }


def _certainty(record: Record) -> str:
    """Of a likelihood answer: "P(yes) = 0.512"."""
    return "".join(f"P({name[2:]}) = {value:.3f}" for name, value in record.items() if name in ("p_yes", "p_true"))


def _summary(run: Answered, task: str) -> dict[str, Any] | None:
    records = run.records.get(task)
    if not records:
        return None
    weights = sum(record["weight"] for record in records)
    return {
        "n": len(records),
        "failed": sum(record["score"] < 1 for record in records),
        "score": _rounded(100 * sum(record["score"] * record["weight"] for record in records) / weights),
        "partial": run.partial.get(task, ""),
    }


def _rounded(score: float) -> float:
    return round(score, 4)


class _Pictures:
    """The sources of the page's images: each different file once."""

    def __init__(self, folder: Path, images: Mapping[tuple[str, str], Path]):
        self.sources: list[str] = []
        self._folder, self._images = folder.absolute(), images
        self._numbers: dict[Path, int] = {}

    def of(self, task: str, qid: str) -> int:
        """The number of a question's image in `sources`; -1 if there is none."""
        path = self._images.get((task, qid))
        if path is None:
            return -1
        if path not in self._numbers:
            source = self._source(path)
            self._numbers[path] = len(self.sources) if source else -1
            self.sources += [source] * bool(source)
        return self._numbers[path]

    def _source(self, path: Path) -> str:
        if len(self.sources) >= MOST_THUMBNAILS:
            return urllib.parse.quote(os.path.relpath(path.absolute(), self._folder)) if path.is_file() else ""
        try:
            picture = read_image(path)
        except (UserError, BadSample):
            return ""
        picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=72)
        return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _page(data: Mapping[str, Any]) -> str:
    template = _PAGE.read_text(encoding="utf-8")
    [script] = re.findall(r"<script>(.*?)</script>", template, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # As data in a script element, text could end the element with "</script>" or open a comment with "<!--".
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    filled = {"{{title}}": html.escape(_title(data)), "{{script_sha256}}": digest, "{{data}}": text}
    return re.sub("|".join(map(re.escape, filled)), lambda found: filled[found.group()], template)


def _title(data: Mapping[str, Any]) -> str:
    return f"Failures of {', '.join(run['name'] for run in data['runs'])}"
