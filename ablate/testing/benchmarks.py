"""The contract of a benchmark, on the small set that its `example` writes. No model is asked."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ablate.core.errors import UserError
from ablate.evaluation import benchmarks
from ablate.evaluation.answers import PredictionFile
from ablate.evaluation.baselines import baselines
from ablate.evaluation.benchmarks import Answer, Benchmark, Question, registry
from ablate.evaluation.official import read_results

__all__ = ["CHECKS", "Subject", "registry", "subjects"]


@dataclass
class Subject:
    """A benchmark by name, and what writes a small set of it into a folder."""

    name: str
    write: Callable[[Path], None]
    _folder: tempfile.TemporaryDirectory | None = field(default=None, repr=False)

    @property
    def root(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory()
            self.write(Path(self._folder.name))
        return Path(self._folder.name)

    def make(self, **options: object) -> Benchmark:
        return benchmarks.create(self.name, self.root, **({"expected": None} | options))


def subjects(name: str) -> dict[str, Subject]:
    return {"": Subject(name, registry.get(name).example)}


def questions_are_read(subject: Subject) -> None:
    benchmark = subject.make()
    ids = [question.id for question in benchmark.questions]
    assert len(ids) >= 3, f"{len(ids)} questions: the example needs three at least"
    assert len(set(ids)) == len(ids), "an id occurs twice"
    for question in benchmark.questions:
        assert question.image.is_file(), f"question {question.id}: no image {question.image}"
        assert question.body.strip(), f"question {question.id} asks nothing"
        assert question.answers, f"question {question.id} has no answer"
        choices = benchmark.choices_of(question)
        assert len(set(choices)) == len(choices) != 1, f"question {question.id}: the choices are {choices}"
    assert benchmark.title, "no title"
    assert benchmark.split, "no split"


def a_question_is_asked_in_its_own_words(subject: Subject) -> None:
    for question in subject.make().questions:
        asked = bool(question.text) and question.text.lower() in question.body.lower()
        assert asked, f"question {question.id} is {question.text!r}, but what is asked is {question.body!r}"


def a_subclass_is_a_set_of_its_own(subject: Subject) -> None:
    parent = subject.make()
    child = type("Other", (type(parent),), {"name": "other", "official_questions": None})(subject.root)
    assert [question.body for question in child.questions] == [question.body for question in parent.questions]
    assert (child.name, subject.make().name) == ("other", subject.name), "a subclass changes its parent"
    photos = {question.image_id for question in child.questions} & {question.image_id for question in parent.questions}
    assert not photos, "two custom sets treat their photos as the same"


def answers_are_kept(subject: Subject) -> None:
    for answering in _modes(subject):
        benchmark = subject.make(answering=answering)
        answers = {}
        for place, (question, text) in enumerate(zip(benchmark.questions, _right(benchmark), strict=True)):
            count = len(benchmark.choices_of(question))
            likely = answering == "likelihood"
            answers[question.id] = _certain(benchmark, place % count, count) if likely else Answer(text)
        with tempfile.TemporaryDirectory() as folder:
            file = PredictionFile(Path(folder), benchmark)
            file.append((question, answers[question.id]) for question in benchmark.questions)
            assert PredictionFile(Path(folder), benchmark).answers == answers, "the journal changes answers"
            file.finish(benchmark.questions)
            assert PredictionFile(Path(folder), benchmark).answers == answers, "the prediction file changes answers"
            assert read_results(benchmark, file.path) == answers, "`ablate score` reads other answers"


def it_is_the_same_set_every_time(subject: Subject) -> None:
    assert subject.make().digests == subject.make().digests
    changed = subject.make(prompt=None)
    changed.__dict__["all_questions"] = changed.all_questions[1:]
    assert changed.digests["questions_sha256"] != subject.make().digests["questions_sha256"], "a question less, unseen"


def scores_lie_between_0_and_1(subject: Subject) -> None:
    benchmark = subject.make()
    for answer in ("", "yes", "No.", "A", *_right(benchmark)):
        judged = benchmark.judge_all(benchmark.questions, [Answer(answer)] * len(benchmark.questions))
        assert ((judged.scores >= 0) & (judged.scores <= 1)).all(), f'"{answer}" scores {judged.scores.tolist()}'
        assert 0 <= benchmark.score(judged) <= 100


def right_answers_score_more_than_none(subject: Subject) -> None:
    benchmark = subject.make()
    questions = benchmark.questions
    right = benchmark.score(benchmark.judge_all(questions, map(Answer, _right(benchmark))))
    nothing = benchmark.score(benchmark.judge_all(questions, [Answer("")] * len(questions)))
    assert right > nothing, f"the ground truth scores {right:.1f}, empty answers {nothing:.1f}"


def the_likeliest_choice_is_the_answer(subject: Subject) -> None:
    for answering in benchmarks.registry.get(subject.name).answering_modes:
        benchmark = subject.make(answering=answering)
        if answering != "likelihood":
            continue
        for question in benchmark.questions:
            choices = benchmark.choices_of(question)
            assert choices, f"question {question.id} is answered by likelihood and has no choices"
            for place, choice in enumerate(choices):
                answer = _certain(benchmark, place, len(choices))
                assert benchmark.answer_text(question, answer) == choice
                assert benchmark.judge(question, answer).score == benchmark.judge_text(question, choice).score


def figures_agree_with_the_score(subject: Subject) -> None:
    benchmark = subject.make()
    judged = benchmark.judge_all(benchmark.questions, map(Answer, _right(benchmark)))
    report, estimate = benchmark.report(judged), benchmark.estimate(judged)
    assert math.isclose(report["overall"], benchmark.score(judged), abs_tol=0.01)
    assert estimate.low - 1e-9 <= benchmark.score(judged) / 100 <= estimate.high + 1e-9, "outside its own interval"
    for name, baseline in baselines(benchmark).items():
        assert 0 <= baseline.score <= 100, f"{name}: {baseline.score}"


def official_results_are_read_back(subject: Subject) -> None:
    benchmark = subject.make(answering="generate") if "generate" in _modes(subject) else subject.make()
    if not getattr(benchmark, "result_fields", None):
        return
    for question, text in zip(benchmark.questions, _right(benchmark), strict=True):
        entry = benchmark.result_entry(question, Answer(text))
        assert benchmark.result_id(entry) == question.id, f"{entry} is of question {question.id}"
        assert benchmark.result_answer(entry, "entry") == Answer(text)


def a_corpus_metric_takes_any_answers(subject: Subject) -> None:
    benchmark = subject.make()
    if not benchmark.corpus:
        return
    statistics = benchmark.judge_all(benchmark.questions, map(Answer, _right(benchmark))).statistics
    assert statistics is not None
    assert np.isfinite(statistics).all(), "statistics that are not finite"
    whole = benchmark.corpus_score(statistics)
    assert math.isclose(benchmark.corpus_score(statistics[::-1]), whole, abs_tol=1e-9), "the order changes it"
    for rows in ([0], [0] * 5, [1, 1, 2]):
        assert 0 <= benchmark.corpus_score(statistics[rows]) <= 1, f"of the answers {rows}"


def a_missing_image_is_named_or_left_out(subject: Subject) -> None:
    image = subject.make().questions[0].image
    content = image.read_bytes()
    image.unlink()
    try:
        left = subject.make(partial=True)
        assert all(question.image != image for question in left.questions)
        assert left.left_out
        said = _refusal(lambda: subject.make().questions)
        assert image.name in said, f"a missing image is not refused by its name: {said or 'no error'}"
    finally:
        image.write_bytes(content)


CHECKS: list[Callable[[Subject], None]] = [
    questions_are_read,
    a_question_is_asked_in_its_own_words,
    a_subclass_is_a_set_of_its_own,
    answers_are_kept,
    it_is_the_same_set_every_time,
    scores_lie_between_0_and_1,
    right_answers_score_more_than_none,
    the_likeliest_choice_is_the_answer,
    figures_agree_with_the_score,
    official_results_are_read_back,
    a_corpus_metric_takes_any_answers,
    a_missing_image_is_named_or_left_out,
]


def _refusal(call: Callable[[], object]) -> str:
    """What is said where the call is refused."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def _modes(subject: Subject) -> tuple[str, ...]:
    return registry.get(subject.name).answering_modes


def _right(benchmark: Benchmark) -> list[str]:
    """For each question the ground truth's text that scores most."""

    def best(question: Question) -> str:
        return max(question.answers, key=lambda answer: benchmark.judge_text(question, answer).score)

    return [best(question) for question in benchmark.questions]


def _certain(benchmark: Benchmark, place: int, count: int) -> Answer:
    if benchmark.probability_key and count == 2:
        return Answer(probability=1.0 - place)
    return Answer(probabilities=tuple(float(each == place) for each in range(count)))
