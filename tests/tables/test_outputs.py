"""One table, five outputs: terminal, Markdown, both CSV files and the picture say the same of every row and task."""

import csv
import io
import re

import pytest
from matplotlib.text import Text
from rich.console import Console

from ablate.tables import collect
from ablate.tables.ablation import MEAN, ablation_table
from ablate.tables.csv_files import long_csv, wide_csv
from ablate.tables.figure import draw
from ablate.tables.text import markdown, print_table
from ablate.tables.verdicts import said

TASKS = ("demo_vqa", "demo_gqa", "demo_pope")
COLUMNS = (MEAN, *TASKS)
WORDS = {"▲": "better", "▼": "worse", "≈": "equivalent", "≥": "not worse", "≤": "not better"}
ENTRY = re.compile(
    r"(?P<value>[+−]?\d+\.\d)(?: \[(?P<low>[+−]?[\d.]+), (?P<high>[+−]?[\d.]+)\](?P<symbols>[▲▼≈≥≤?]+)| 1 seed)†?"
)


@pytest.fixture(params=[{}, {"margin": 60.0}, {"force": True}, {"baseline": "linear"}], ids=str)
def table(runs, request):
    """A row of each kind: better, worse, hardly different, one seed, other prompt, other settings, other code, fewer
    seeds than planned, blind."""
    levels = {"mlp": 0.5, "linear": 0.48, "msc_csm": 0.9, "msc_bsm": 0.1, "prompted": 0.7, "tuned": 0.52, "late": 0.5}
    options = {
        "prompted": {"details": {"prompt_text": "Say: {question}"}},
        "tuned": {"settings": {"margin": 30.0, "train.learning_rate": 2e-3}},
        "late": {"provenance": {"code": {"commit": "b" * 40}}},
    }
    for seed in range(4):
        for connector, level in levels.items():
            usual = {
                "details": {"prompt_text": "{question}"},
                "settings": {"margin": 30.0},
                "provenance": {"code": {"commit": "a" * 40}},
            }
            runs.add(connector, seed, level=level, **(usual | options.get(connector, {})))
        runs.add("mlp", seed, blind=True, level=0.2, settings={"margin": 30.0})
    runs.add("once", 0, level=0.9, **usual)
    runs.add("half", 0, level=0.6, **usual)
    runs.add("half", 1, level=0.6, **usual)
    runs.unfinished("half", 2)
    return ablation_table(collect([runs.group]), **request.param)


def number(text):
    return float(text.replace("−", "-"))


def printed(table):
    console = Console(width=400, file=io.StringIO())
    print_table(table, console)
    return console.file.getvalue()


def sections(page):
    """Title -> the body of its table, without escapes."""
    found = {}
    for part in page.split("\n## ")[1:]:
        title, *lines = part.splitlines()
        cells = [line.replace("\\*", "*")[2:-2].split(" | ") for line in lines if line.startswith("| ")]
        found[title] = cells[2:] if cells else []
    return found


def of_csv(text, key):
    return {key(line): line for line in csv.DictReader(io.StringIO(text))}


def compared_rows(table):
    return [row for row in table.rows if not row.blind and row.name != table.baseline and row.cells]


def differences(table):
    """(row, column) -> the entry in Markdown."""
    (body,) = [body for title, body in sections(markdown(table)).items() if title.startswith("Difference from")]
    by_name = {f"{row.name}{row.marks}": row.name for row in table.rows}
    return {
        (by_name[name], column): entry
        for name, mean, _p, *others in body
        for column, entry in zip(COLUMNS, (mean, *others), strict=True)
    }


def test_every_kind_of_row_is_there(table):
    verdicts = {cell.verdict for row in table.rows for cell in row.cells.values()}
    assert {"better", "worse", "unresolved", "one seed"} <= verdicts | (
        {"unresolved"} if "equivalent" in verdicts else set()
    )
    assert {mark for row in table.rows for mark in row.marks} == set("*‡§")


def test_text_and_csv_say_the_same_of_every_difference(table):
    lines = of_csv(long_csv(table), lambda line: (line["row"], line["task"]))
    entries = differences(table)
    terminal = printed(table)
    for row in compared_rows(table):
        for column in row.cells:
            entry, line = entries[row.name, column], lines[row.name, column]
            assert any(text.startswith(f"{row.name}{row.marks} ") and entry in text for text in terminal.splitlines())
            if line["verdict"] == "not compared":
                assert entry == "not compared"
                assert (line["difference"], line["not_alike"] != "") == ("", True)
                continue
            found = ENTRY.fullmatch(entry)
            assert abs(number(found["value"]) - float(line["difference"])) <= 0.05 + 1e-9
            if line["verdict"].startswith("one seed"):
                assert entry.rstrip("†").endswith(" 1 seed")
                assert (line["difference_low"], line["p_adjusted"], line["equivalence"]) == ("", "", "")
                continue
            for end in ("low", "high"):
                assert abs(number(found[end]) - float(line[f"difference_{end}"])) <= 0.05 + 1e-9
                assert (number(found[end]) > 0) == (float(line[f"difference_{end}"]) > 0)
            if (line["verdict"], line["equivalence"]) == ("equivalent", "equivalent"):
                line = {**line, "verdict": "unresolved"}  # it has one symbol
            shown = {WORDS[symbol] for symbol in found["symbols"] if symbol != "?"}
            verdict = {line["verdict"]} - {"unresolved"}
            assert shown == verdict | ({said(line["verdict"], line["equivalence"])} - {""})
            assert entry.endswith("†") == (line["partial"] == "True")
            low, high, margin = (float(line[name]) for name in ("difference_low", "difference_high", "margin"))
            assert line["verdict"] == ("better" if low > 0 else "worse" if high < 0 else "unresolved")
            sides = {(True, True): "equivalent", (True, False): "not worse", (False, True): "not better"}
            assert line["equivalence"] == sides.get((low > -margin, high < margin), "")


def test_both_csv_files_say_the_same(table):
    lines = of_csv(long_csv(table), lambda line: (line["row"], line["task"]))
    for name, line in of_csv(wide_csv(table), lambda line: line["row"]).items():
        for column in table.row(name).cells:
            long = lines[name, column]
            assert (line[column], line[f"{column}_low"], line[f"{column}_high"]) == (
                *(long[key] for key in ("score", "low", "high")),
            )
            assert (line["margin"], line["margin_set"]) == (long["margin"], long["margin_set"])
            assert (line["marks"], line["forced"]) == (long["marks"], long["forced"])
        if MEAN in table.row(name).cells:
            shared = (line.keys() & long.keys()) - {"scores_from", "not_alike"}
            assert {key: line[key] for key in shared} == {key: lines[name, MEAN][key] for key in shared}


def test_scores_are_the_same_in_text_and_csv(table):
    lines = of_csv(long_csv(table), lambda line: (line["row"], line["task"]))
    (body,) = [body for title, body in sections(markdown(table)).items() if title.startswith("Scores")]
    names = [f"└ blind{row.marks}" if row.blind and not row.shared else f"{row.name}{row.marks}" for row in table.rows]
    terminal = printed(table).splitlines()
    for row, (name, *entries) in zip(table.rows, body, strict=False):
        assert name == names[table.rows.index(row)]
        for column, entry in zip(COLUMNS, entries, strict=False):
            line = lines[row.name, column]
            score, low, high = (float(text) for text in re.findall(r"\d+\.\d", entry))
            assert [score, low, high] == pytest.approx([float(line[k]) for k in ("score", "low", "high")], abs=0.0501)
            assert any(text.startswith(name) and entry in text for text in terminal)


def test_the_picture_says_the_same(table):
    lines = of_csv(long_csv(table), lambda line: (line["row"], line["task"]))
    figure = draw(table)
    rows = compared_rows(table)
    labels = [label.get_text().replace("\n", " ") for label in figure.axes[0].get_yticklabels()]
    assert labels == [f"{row.name}{row.marks}" for row in rows]
    for axis, column in zip(figure.axes, COLUMNS, strict=False):
        for row, y in zip(rows, axis.get_yticks(), strict=True):
            line = lines[row.name, column]
            drawn = [list(each.get_xdata()) for each in axis.lines if set(each.get_ydata()) == {y}]
            texts = [text.get_text().strip() for text in axis.texts if getattr(text, "xy", text.get_position())[1] == y]
            numbers = {"difference": line["difference"], "low": line["difference_low"], "high": line["difference_high"]}
            known = {key: float(value) for key, value in numbers.items() if value}
            if line["verdict"] == "not compared":
                assert (drawn, texts) == ([], ["not compared"])
                continue
            ends = [[known["low"], known["high"]]] if "low" in known else []
            assert drawn == [*ends, [known["difference"]]]
            equivalence = said(line["verdict"], line["equivalence"])
            assert [WORDS[text] for text in texts] == [equivalence] * bool(equivalence)
            assert {"better": "^", "worse": "v", "unresolved": "o", "equivalent": "s"}.get(line["verdict"], "D") in [
                each.get_marker() for each in axis.lines if set(each.get_ydata()) == {y}
            ]
    text = " ".join(" ".join(each.get_text() for each in figure.findobj(Text)).split())
    assert f"margin: {table.margin}" in text
    assert all(" ".join(note.split()) in text for note in table.held)
    assert table.marks in text


def test_margin_and_marks_are_in_every_text(table):
    for text in (printed(table), markdown(table).replace("\\*", "*")):
        text = " ".join(text.split())
        assert f"Margin {table.margin}" in text
        assert table.marks in text
        assert all(note in text for note in table.held)
