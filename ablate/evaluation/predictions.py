"""predictions/<task>.jsonl: one line a question, with the model's answer and its score.

    {"id", "image", "file", "question", "prediction", "p_yes" or "p_true" (likelihood mode), "answer", "score" in 0..1,
     "weight", "type", "group"}

`image` is the photo, the same in every file that has it; `file` is the image's file name. While a model is being asked,
lines come in the order of its answers; when all are there, the file is put in the benchmark's order. Beside it,
<task>.settings.json says how the model was asked: answers to other prompts, or of another model, are never taken for
these.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.evaluation.benchmarks import Answer, Benchmark, Question
from datamodules.files import atomic_file


class PredictionFile:
    """The answers of one model to one benchmark, on disk as soon as they are given.

    Args:
        folder: where the files are, made if needed.
        benchmark: what was asked.
        settings: everything else that decides the answers (model, template, ...); JSON values.

    Raises:
        UserError: the folder has answers that were given with other settings (the message says which), or a file that
            is not a prediction file.
    """

    def __init__(self, folder: Path, benchmark: Benchmark, settings: Mapping[str, Any]):
        self.benchmark = benchmark
        self.path = folder / f"{benchmark.name}.jsonl"
        self._settings_path = folder / f"{benchmark.name}.settings.json"
        folder.mkdir(parents=True, exist_ok=True)
        self._claim(asked_of(benchmark) | dict(settings))
        self.answers: dict[str, Answer] = self._read()

    def append(self, answered: Iterable[tuple[Question, Answer]]) -> None:
        """Add answers. They are written at once, so that a kill loses all of them or none."""
        answered = list(answered)
        data = "".join(self._line(question, answer) for question, answer in answered).encode()
        try:
            with open(self.path, "ab", buffering=0) as file:
                file.write(data)
        except OSError as error:
            raise UserError(f"Cannot write {self.path}: {error.strerror}. What was answered before is kept.") from None
        self.answers |= {question.id: answer for question, answer in answered}

    def finish(self, questions: Sequence[Question]) -> None:
        """Put the file in the order of `questions`, with scores and weights as they are now."""
        with atomic_file(self.path) as file:
            for question in questions:
                file.write(self._line(question, self.answers[question.id]).encode())

    def _claim(self, settings: dict[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))
        if not self.path.exists():
            with atomic_file(self._settings_path) as file:
                file.write((json.dumps(settings, indent=1, sort_keys=True) + "\n").encode())
            return
        try:
            found = json.loads(self._settings_path.read_bytes())
        except (OSError, ValueError):
            found = {}
        if found == settings:
            return
        differs = [
            f"{name}: {found.get(name)!r} there, {settings.get(name)!r} here"
            for name in sorted(found.keys() | settings.keys())
            if found.get(name) != settings.get(name)
        ]
        raise UserError(
            f"{self.path} holds answers that were asked for in another way ({'; '.join(differs)}). "
            "Delete it to ask again, or choose another folder."
        )

    def _read(self) -> dict[str, Answer]:
        """The answers in the file. A last line cut short by a kill is cut off the file."""
        if not self.path.exists():
            return {}
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        known = {question.id for question in self.benchmark.questions}
        answers = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                probability = record.get(self._probability_key)
                answer = Answer(record["prediction"]) if probability is None else Answer(probability=probability)
                qid = record["id"]
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise UserError(
                    f"{self.path}, line {number}, is not a prediction ({error!r}). Delete the file."
                ) from None
            if qid not in known:
                raise UserError(f"{self.path}, line {number}: {self.benchmark.name} has no question {qid!r}.")
            answers[qid] = answer
        return answers

    @property
    def _probability_key(self) -> str:
        return f"p_{self.benchmark.choices[0].lower()}" if self.benchmark.choices else ""

    def _line(self, question: Question, answer: Answer) -> str:
        record: dict[str, Any] = {
            "id": question.id,
            "image": question.image_id,
            "file": question.image.name,
            "question": question.text,
            "prediction": answer.text,
        }
        if answer.probability is not None:
            record["prediction"] = self.benchmark.choice(answer.probability)
            record[self._probability_key] = answer.probability
        record |= {
            "answer": question.answers[0] if len(question.answers) == 1 else list(question.answers),
            "score": self.benchmark.judge(question, answer).score,
            "weight": question.weight,
            "type": question.type,
            "group": question.group,
        }
        return json.dumps(record, ensure_ascii=False) + "\n"


def asked_of(benchmark: Benchmark) -> dict[str, Any]:
    """What a benchmark asks of a model: changes whenever an answer to it could."""
    digest = hashlib.sha256()
    for question in benchmark.questions:
        digest.update(json.dumps([question.id, question.image_id, question.body]).encode())
    return {
        "benchmark": benchmark.title,
        "split": benchmark.split,
        "answering": benchmark.answering,
        "prompt": benchmark.prompt,
        "prompt_text": benchmark.prompt_text,
        "questions_sha256": digest.hexdigest(),
    }
