"""predictions/<task>.jsonl: one line a question, with the model's answer and its score.

    {"id", "image", "file", "question", "prediction", "p_yes" or "p_true" (likelihood mode), "answer", "score" in 0..1,
     "weight", "type", "group"}

`image` is the photo, the same in every file that has it; `file` is the image's file name. Lines are in the benchmark's
order, and the file is there once all questions have been answered. Until then the answers are in journals,
<task>.part<n>.jsonl, one for each process that asks, with one line a batch: `[[id, text or probability], ...]`. A line
that was cut short by a kill does not count, so a batch is answered completely or not at all. A resumed evaluation
therefore asks the same batches, and gives the same bits, as one without interruption. Beside them, <task>.settings.json
says how the
model was asked: answers to other prompts, or of another model, are never taken for these.
"""

import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.core.errors import UserError
from ablate.core.files import atomic_file
from ablate.evaluation.benchmarks import Answer, Benchmark, Question
from ablate.evaluation.files import listed


class PredictionFile:
    """The answers of one model to one benchmark, on disk as soon as they are given.

    Args:
        folder: where the files are, made if needed.
        benchmark: what was asked.
        settings: everything else that decides the answers (model, template, ...); JSON values. None: whatever they
            were, to score answers that are there.
        part: the journal to write to; processes that ask at the same time have one each.

    Raises:
        UserError: the folder has answers that were given with other settings (the message says which), or a file that
            is not a prediction file.
    """

    def __init__(self, folder: Path, benchmark: Benchmark, settings: Mapping[str, Any] | None = None, *, part: int = 0):
        self.benchmark = benchmark
        self.path = folder / f"{benchmark.name}.jsonl"
        self._settings_path = folder / f"{benchmark.name}.settings.json"
        self._journal = folder / f"{benchmark.name}.part{part}.jsonl"
        self._journal_size = 0  # bytes of whole lines in it
        folder.mkdir(parents=True, exist_ok=True)
        if settings is not None:
            self._claim(asked_of(benchmark) | dict(settings))
        self.answers: dict[str, Answer] = {}
        self._read()

    def append(self, answered: Iterable[tuple[Question, Answer]]) -> None:
        """Add a batch's answers. They are written at once, and a kill loses all of them or none."""
        answered = list(answered)
        pairs = [[question.id, _plain(answer)] for question, answer in answered]
        data = (json.dumps(pairs, ensure_ascii=False) + "\n").encode()
        try:
            with open(self._journal, "ab") as file:
                file.truncate(self._journal_size)  # what a kill or a full disk left of a line
                file.write(data)
        except OSError as error:
            raise UserError(
                f"Cannot write {self._journal}: {error.strerror}. The {len(self.answers):,} answers before are kept: "
                "free some space and run the same command again."
            ) from None
        self._journal_size += len(data)
        self.answers |= {question.id: answer for question, answer in answered}

    def finish(self, questions: Sequence[Question]) -> None:
        """Write the file, in the order of `questions`, with scores and weights as they are now.

        Raises:
            UserError: questions without an answer.
        """
        if missing := [question.id for question in questions if question.id not in self.answers]:
            raise UserError(
                f"{self.path.parent} has no answer to {len(missing):,} of {len(questions):,} questions of "
                f"{self.benchmark.name}: {listed(missing)}. Run the evaluation again to ask them."
            )
        with atomic_file(self.path) as file:
            for question in questions:
                file.write(self._line(question, self.answers[question.id]).encode())
        for journal in self._journals():
            journal.unlink()

    def _claim(self, settings: dict[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))
        if not self.path.exists() and not self._journals():
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

    def _journals(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{glob.escape(self.benchmark.name)}.part*.jsonl"))

    def _read(self) -> None:
        known = {question.id for question in self.benchmark.all_questions}
        for path in filter(Path.exists, [self.path, *self._journals()]):
            read = self._pairs_of_record if path == self.path else self._pairs_of_batch
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            for number, line in enumerate(whole.splitlines(), start=1):
                try:
                    answers = read(json.loads(line))
                except (ValueError, KeyError, AttributeError, TypeError) as error:
                    raise UserError(
                        f"{path}, line {number}, is not a prediction ({error!r}). Delete the file."
                    ) from None
                if unknown := answers.keys() - known:
                    raise UserError(f"{path}, line {number}: {self.benchmark.name} has no question {listed(unknown)}.")
                self.answers |= answers
            if path == self._journal:
                self._journal_size = len(whole)

    def _pairs_of_record(self, record: dict[str, Any]) -> dict[str, Answer]:
        if record.get("probabilities") is not None:
            return {record["id"]: Answer(probabilities=tuple(record["probabilities"]))}
        probability = record.get(self.benchmark.probability_key)
        return {record["id"]: Answer(record["prediction"]) if probability is None else Answer(probability=probability)}

    def _pairs_of_batch(self, pairs: list[tuple[str, str | float | list[float]]]) -> dict[str, Answer]:
        return {qid: _answer(value) for qid, value in pairs}

    def _line(self, question: Question, answer: Answer) -> str:
        record: dict[str, Any] = {
            "id": question.id,
            "image": question.image_id,
            "file": question.image.name,
            "question": question.text,
            "prediction": self.benchmark.answer_text(question, answer),
        }
        if answer.probability is not None:
            record[self.benchmark.probability_key] = answer.probability
        if answer.probabilities is not None:
            record |= {"choices": self.benchmark.choices_of(question), "probabilities": answer.probabilities}
        record |= {
            "answer": question.answers[0] if len(question.answers) == 1 else list(question.answers),
            "score": self.benchmark.judge(question, answer).score,
            "weight": question.weight,
            "type": question.type,
            "group": question.group,
        }
        return json.dumps(record, ensure_ascii=False) + "\n"


def _plain(answer: Answer) -> str | float | tuple[float, ...]:
    return next(given for given in (answer.text, answer.probability, answer.probabilities) if given is not None)


def _answer(value: str | float | list[float]) -> Answer:
    if isinstance(value, list):
        return Answer(probabilities=tuple(value))
    return Answer(value) if isinstance(value, str) else Answer(probability=value)


def asked_of(benchmark: Benchmark) -> dict[str, Any]:
    """What a benchmark asks of a model: changes whenever an answer to it could."""
    return {
        "benchmark": benchmark.title,
        "split": benchmark.split,
        "answering": benchmark.answering,
        "prompt": benchmark.prompt,
        "prompt_text": benchmark.prompt_text,
        "questions_sha256": benchmark.digests["questions_sha256"],
    }
