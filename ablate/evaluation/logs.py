"""Other packages' logs of answers, joined to a benchmark's questions where there is no doubt, else refused.

    POPE        {"question", "answer"}: one file a split, in the order of its questions
    LLaVA       {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    lmms-eval   {"doc_id", "target", "filtered_resps", and "resps", "doc", "input", a metric's own fields or not}

One object a line (or one list). A row is joined by the question's id where it has one. Else by its image and question
(LLaVA's TextVQA, whose ids are images'). Else by its place (POPE's order, lmms-eval's doc_id, LLaVA's ids for POPE,
which count through the splits): only if every row says its question (or an open question's right answer) and each is
the one at that place, in one way only.
Sources: POPE README and `evaluate.py`; LLaVA `model_vqa_loader.py`, `eval_textvqa.py`; lmms-eval 0.2.4 to 0.7
`evaluation_tracker.py`.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from ablate.core.errors import UserError
from ablate.evaluation.benchmarks import Answer, Benchmark, Question
from ablate.evaluation.files import check_fields, listed

POPE, LLAVA, LMMS_EVAL = "POPE", "LLaVA", "lmms-eval"
FIELDS = ("doc_id", "question_id", "question", "id")  # one of them is in every row that is read


@dataclass(frozen=True)
class Row:
    """A row of a log: where it is, the answer, and what it says about the question ("" = nothing).

    Attributes:
        place: its place among the rows: the line, or lmms-eval's doc_id.
        asked: the prompt, or the question.
        part: POPE's split.
        target: the right answer.
    """

    where: str
    answer: str
    place: int
    id: str = ""
    asked: str = ""
    part: str = ""
    target: str = ""


def kind_of(benchmark: Benchmark, records: Sequence[tuple[str, Any]]) -> str:
    """Whose log these records are: POPE, LLAVA or LMMS_EVAL; "" for an official results file, or nothing known."""
    entries = [entry for _, entry in records if isinstance(entry, dict)]
    if any(benchmark.result_fields.keys() <= entry.keys() for entry in entries):
        return ""
    for entry in entries:
        if "doc_id" in entry and ("filtered_resps" in entry or "resps" in entry):
            return LMMS_EVAL
        if "question_id" in entry and "text" in entry and "label" not in entry:
            return LLAVA
        in_parts = benchmark.part_of(benchmark.questions[0]) != ""
        if in_parts and "answer" in entry and entry.keys() & {"question", "question_id"}:
            return POPE
    return ""


def read_row(kind: str, entry: Any, where: str, number: int) -> Row:
    """One row; `number`: its place in the file.

    Raises:
        UserError: beginning with `where`: it is not such a row.
    """
    if kind == LMMS_EVAL:
        return _lmms_eval_row(entry, where)
    answer = "text" if kind == LLAVA else "answer"
    check_fields(entry, {answer: str} | ({"question_id": (int, str)} if kind == LLAVA else {}), where)
    asked = entry.get("prompt") if kind == LLAVA else entry.get("question", entry.get("text"))
    return Row(
        where,
        entry[answer],
        number,
        id=_said(entry.get("question_id")),
        asked=_said(asked),
        part=_said(entry.get("category") or entry.get("split")),
    )


def _lmms_eval_row(entry: Any, where: str) -> Row:
    check_fields(entry, {"doc_id": int}, where)
    doc = entry["doc"] if isinstance(entry.get("doc"), dict) else {}
    # A metric may have a record of the question: POPE's, and the submissions of TextVQA and VizWiz.
    details = [doc, *(value for key, value in entry.items() if isinstance(value, dict) and key != "doc")]
    ids = [_said(each.get(key)) for each in details for key in ("question_id", "questionId") if key in each]
    ids += [_said(each["image"]) for each in details if isinstance(each.get("image"), str)]
    ids += [_said(doc.get("id"))]
    asked = next((doc[key] for key in ("question", "text", "caption") if isinstance(doc.get(key), str)), None)
    return Row(
        where,
        _only_response(entry.get("filtered_resps", entry.get("resps")), where),
        entry["doc_id"],
        id=next(filter(None, ids), ""),
        asked=_said(asked if asked is not None else _context(entry)),
        part=_said(doc.get("category") or doc.get("split")),
        target=_said(entry.get("target")),
    )


def _context(entry: Mapping[str, Any]) -> Any:
    """The prompt: `input`, or the first of `arguments`."""
    found = entry.get("input", entry.get("arguments"))
    while isinstance(found, (list, dict)) and found:
        found = next(iter(found.values())) if isinstance(found, dict) else found[0]
    return found


def _only_response(responses: Any, where: str) -> str:
    """lmms-eval has the text alone or in one or two lists, by its version."""
    while isinstance(responses, list) and len(responses) == 1:
        [responses] = responses
    if not isinstance(responses, str):
        number = f"{len(responses)} responses" if isinstance(responses, list) else type(responses).__name__
        raise UserError(f"{where}: expected one response, got {number}. Was the task asked by likelihood?")
    return responses


def _said(value: Any) -> str:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


def join(benchmark: Benchmark, kind: str, rows: Sequence[Row], path: Path) -> list[tuple[str, Answer]]:
    """(question id, answer) of every row; ids that the benchmark does not know are given as they are.

    Raises:
        UserError: it cannot be said without doubt which row answers which question; the message says why.
    """
    if benchmark.answering == "likelihood":
        raise UserError(
            f"{path} is a log of {kind} with texts, and the mode is likelihood: score it with --mode generate."
        )
    by_id = {question.id: question for question in benchmark.questions}
    part = _part_of_file(benchmark, rows, path)
    ids = [_question_id(row, by_id, part) for row in rows]
    images = {question.image.stem for question in benchmark.questions}
    if any(each in by_id for each in ids):
        joined = [each if each in by_id else row.id or each for each, row in zip(ids, rows, strict=True)]
    elif any(row.id in images and row.asked for row in rows):
        joined = _by_image_and_question(benchmark, rows, path)
    else:
        joined = _by_place(benchmark, kind, rows, part, path)
    _check_asked(by_id, joined, rows, path)
    return [(qid, Answer(row.answer)) for qid, row in zip(joined, rows, strict=True)]


def _question_id(row: Row, known: Mapping[str, Question], part: str) -> str:
    """What the row's id is in the benchmark; "" where it says none. VizWiz's are file names, with their end or not."""
    candidates = [f"{row.part or part}/{row.id}"] if row.part or part else [row.id, f"{row.id}.jpg"]
    return next((each for each in candidates if each in known), candidates[0] if row.id else "")


def _part_of_file(benchmark: Benchmark, rows: Sequence[Row], path: Path) -> str:
    """The part of the benchmark (POPE's split) that all rows are of: the only one, or the one in the file's name."""
    sizes = Counter(map(benchmark.part_of, benchmark.questions))
    if len(sizes) == 1:
        return next(iter(sizes))
    part = benchmark.part_named(path.name)
    return part if len(rows) <= sizes[part] else ""


def _by_image_and_question(benchmark: Benchmark, rows: Sequence[Row], path: Path) -> list[str]:
    """Several questions may have one image and one text: then as many rows must say the same."""
    questions: dict[str, list[Question]] = defaultdict(list)
    for question in benchmark.questions:
        questions[question.image.stem].append(question)
    found: dict[tuple[str, ...], list[int]] = defaultdict(list)
    joined = [""] * len(rows)
    for number, row in enumerate(rows):
        fitting = [each for each in questions[row.id] if _is_line_of(each.text, row.asked)]
        found[tuple(each.id for each in fitting)].append(number)
        joined[number] = fitting[0].id if fitting else f"{row.id}: {row.asked.splitlines()[0] if row.asked else ''}"
    for ids, numbers in found.items():
        if len(ids) < 2:
            continue
        if len(numbers) != len(ids) or len({rows[number].answer for number in numbers}) > 1:
            raise UserError(
                f"{path}: the questions {listed(ids)} have one image and one text, and the rows that answer them do "
                "not tell which is which: give an official results file."
            )
        for number, qid in zip(numbers, ids, strict=True):
            joined[number] = qid
    return joined


def _by_place(benchmark: Benchmark, kind: str, rows: Sequence[Row], part: str, path: Path) -> list[str]:
    parts: dict[str, list[Question]] = defaultdict(list)
    for question in benchmark.questions:
        parts[benchmark.part_of(question)].append(question)
    if part:
        parts = {part: parts[part]}
    order = _order(kind, rows, path)
    if silent := [row for row in rows if not row.asked and (benchmark.choices or not row.target)]:
        row = silent[0]
        split = ", with no split in the row or the file's name," if len(parts) > 1 else ""
        why = f"has the id {row.id!r}{split} which {benchmark.title} does not know, and" if row.id else "has no id and"
        raise UserError(
            f"{row.where} {why} does not say its question: its place alone is no proof of what it answers. Give a log "
            "with prompts, or an official results file."
        )
    best, said, ways = -1, "", []
    for number in range(1, len(parts) + 1):
        for names in permutations(parts, number):
            asked = [question for name in names for question in parts[name]]
            differs = next(
                (at for at, (row, question) in enumerate(zip(order, asked, strict=False))
                 if not _fits(rows[row], question)), min(len(order), len(asked)),
            )  # fmt: skip
            if differs == len(order) == len(asked):
                ways.append(asked)
            elif differs > best:
                best, said = differs, _difference(rows, order, asked, differs, names)
    if not ways:
        raise UserError(
            f"{path} cannot be joined to the {len(benchmark.questions):,} questions of {benchmark.title}: {said} "
            "Rows that have no id are joined by their order, which must be that of the questions, with none missing."
        )
    if len(ways) > 1:
        raise UserError(
            f"{path} fits {len(ways)} ways of putting the parts of {benchmark.title} one after the other: score each "
            f"part by itself, with a file that has its name ({', '.join(parts)}) in its own."
        )
    joined = [""] * len(rows)
    for place, question in zip(order, ways[0], strict=True):
        joined[place] = question.id
    return joined


def _order(kind: str, rows: Sequence[Row], path: Path) -> list[int]:
    """The rows in the order of the questions, as far as they say it themselves."""
    if kind == LMMS_EVAL:
        if twice := [place for place, count in Counter(row.place for row in rows).items() if count > 1]:
            raise UserError(f"{path}: these doc_id occur more than once: {listed(twice)}.")
        return sorted(range(len(rows)), key=lambda number: rows[number].place)
    ids = [row.id for row in rows]
    if all(each.isdecimal() for each in ids) and len(set(ids)) == len(ids):
        return sorted(range(len(rows)), key=lambda number: int(ids[number]))
    return list(range(len(rows)))


def _difference(
    rows: Sequence[Row], order: Sequence[int], asked: Sequence[Question], at: int, parts: Sequence[str]
) -> str:
    compared = f"compared with {', '.join(filter(None, parts))}, " if any(parts) else ""
    if at < min(len(order), len(asked)):
        row, question = rows[order[at]], asked[at]
        return f"{compared}{row.where} asks {row.asked[:80]!r}, but question {question.id} is {question.text[:80]!r}."
    return f"{compared}it has {len(order):,} rows for {len(asked):,} questions."


def _check_asked(by_id: Mapping[str, Question], joined: Sequence[str], rows: Sequence[Row], path: Path) -> None:
    """Rows that say a question or a right answer say that of the question that they are joined to."""
    for qid, row in zip(joined, rows, strict=True):
        if (question := by_id.get(qid)) is None:
            continue
        if row.asked and question.text and not _asks(row.asked, question.text):
            raise UserError(
                f"{row.where} asks {row.asked[:80]!r}, but question {qid} is {question.text[:80]!r}. Is {path} a log "
                "of this benchmark and split?"
            )
        if row.target and len(question.answers) == 1 and _plain(row.target) != _plain(question.answers[0]):
            raise UserError(
                f"{row.where} has the right answer {row.target!r}, but that of question {qid} is "
                f"{question.answers[0]!r}. Is {path} a log of this benchmark and split?"
            )


def _fits(row: Row, question: Question) -> bool:
    """By the question's text, or else by its right answer."""
    if row.asked:
        return _asks(row.asked, question.text)
    return _plain(row.target) in map(_plain, question.answers)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _asks(prompt: str, question: str) -> bool:
    """Does the prompt hold the question, as whole words?"""
    wanted, text = _plain(question), f" {_plain(prompt)} "
    start = text.find(wanted)
    while start > 0:
        before, after = text[start - 1], text[start + len(wanted)]
        if not (before.isalnum() and wanted[0].isalnum()) and not (after.isalnum() and wanted[-1].isalnum()):
            return True
        start = text.find(wanted, start + 1)
    return False


def _is_line_of(question: str, prompt: str) -> bool:
    """Is the question a line of the prompt (several, if it has several)?"""
    wanted, lines = _plain(question), [_plain(line) for line in prompt.split("\n")]
    height = question.strip().count("\n") + 1
    return any(" ".join(lines[start : start + height]) == wanted for start in range(len(lines)))
