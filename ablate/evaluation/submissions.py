"""The answers as the official servers and scorers take them: `ablate score` reads these files, from any model.

    VQAv2    [{"question_id": int, "answer": str}, ...]
    GQA      [{"questionId": str, "prediction": str}, ...]
    TextVQA  [{"question_id": int, "answer": str}, ...]
    POPE     JSON Lines {"question_id": int, "split": str, "answer": str}; ids restart in every split
    VizWiz   [{"image": str, "answer": str}, ...]
    VSR      JSON Lines {"index": int, "p_true": float}

Answers are as the model gave them: what a scorer rewrites, it rewrites itself. In likelihood mode an answer is the
likelier choice.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.evaluation.benchmarks import Answer, Benchmark, Question
from datamodules.files import atomic_file

Entry = Callable[[Benchmark, Question, Answer], dict[str, Any]]


@dataclass(frozen=True)
class Form:
    """How one benchmark's answers are written: `lines`: JSON Lines, else one JSON list."""

    entry: Entry
    lines: bool = False


def write_submission(
    folder: Path, benchmark: Benchmark, questions: Sequence[Question], answers: Mapping[str, Answer]
) -> Path | None:
    """Write `<benchmark>.json` or `.jsonl`; None for a benchmark whose release has no such form."""
    form = FORMS.get(type(benchmark).name)
    if form is None:
        return None
    entries = [form.entry(benchmark, question, answers[question.id]) for question in questions]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark.name}.{'jsonl' if form.lines else 'json'}"
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    with atomic_file(path) as file:
        text = "".join(f"{line}\n" for line in lines) if form.lines else f"[{f',{chr(10)} '.join(lines)}]\n"
        file.write(text.encode())
    return path


def answer_text(benchmark: Benchmark, answer: Answer) -> str:
    """What the model said, or the likelier choice."""
    return answer.text if answer.probability is None else benchmark.choice(answer.probability)


def _by_number(benchmark: Benchmark, question: Question, answer: Answer) -> dict[str, Any]:
    return {"question_id": int(question.id), "answer": answer_text(benchmark, answer)}


def _gqa(benchmark: Benchmark, question: Question, answer: Answer) -> dict[str, Any]:
    return {"questionId": question.id, "prediction": answer_text(benchmark, answer)}


def _pope(benchmark: Benchmark, question: Question, answer: Answer) -> dict[str, Any]:
    split, _, number = question.id.partition("/")
    return {"question_id": int(number), "split": split, "answer": answer_text(benchmark, answer)}


def _vizwiz(benchmark: Benchmark, question: Question, answer: Answer) -> dict[str, Any]:
    return {"image": question.id, "answer": answer_text(benchmark, answer)}


def _vsr(benchmark: Benchmark, question: Question, answer: Answer) -> dict[str, Any]:
    probability = answer.probability
    if probability is None:
        # A text is certain; one that is neither "true" nor "false" is wrong, so it counts for the wrong side.
        is_true = question.answers[0] == benchmark.choices[0]
        probability = float(is_true == (benchmark.judge(question, answer).score == 1))
    return {"index": int(question.id), "p_true": probability}


# By the benchmark's own name: a set of one's own in its layout is written alike.
FORMS: dict[str, Form] = {
    "vqav2": Form(_by_number),
    "gqa": Form(_gqa),
    "textvqa": Form(_by_number),
    "pope": Form(_pope, lines=True),
    "vizwiz": Form(_vizwiz),
    "vsr": Form(_vsr, lines=True),
}
