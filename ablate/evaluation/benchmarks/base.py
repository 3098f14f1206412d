"""What every benchmark has: questions out of the official files, a prompt, a score in [0, 1] for each answer."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ablate.core.errors import UserError, unknown_name
from ablate.core.sources import file_entry
from ablate.evaluation import prompts
from ablate.evaluation.files import (
    MISSING,
    ImageProblem,
    Images,
    Problems,
    Types,
    check_fields,
    collector_paused,
    find_file,
    image_problem,
    listed,
    read_document,
    read_records,
)
from ablate.evaluation.statistics import Estimate, bootstrap, score_interval
from ablate.evaluation.texts import files_noted

GROUPS_FILE = "groups.json"
GROUP = "group"  # the breakdown by them
ANSWERING_MODES = ("likelihood", "generate")
OFFICIAL = -1  # as `expected`: the release's own number of questions

Figures = dict[str, Any]  # percentages by name, nested for breakdowns


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one image.

    Attributes:
        id: unique within the benchmark; the official id where the release has one.
        image: the image's file.
        image_id: the photo; questions about one photo are not independent. COCO's photos have the same ids in all
            benchmarks that use them.
        text: the question as the release has it.
        body: what is asked of the model, without the chat template.
        answers: the ground truth: ten humans' answers, or one.
        types: every breakdown's value, by the breakdown's name.
        weight: what the question counts in the benchmark's score; 1 on average.
        group: the part of the test set that `groups.json` puts it in ("seen", "unseen"), or "".
        choices: the answers that this question offers, where they differ from one question to the next.
    """

    id: str
    image: Path
    image_id: str
    text: str
    body: str
    answers: tuple[str, ...]
    types: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0
    group: str = ""
    choices: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """The first breakdown's value."""
        return next(iter(self.types.values()), "")


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer: its text; or, in likelihood mode, the probability of the first of two choices, or those of all
    choices where there are more."""

    text: str | None = None
    probability: float | None = None
    probabilities: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.text, self.probability, self.probabilities)) != 1:
            raise UserError("An answer is either a text, a probability, or the probabilities of all choices.")
        for probability in self.probabilities or (self.probability,):
            if probability is not None and not 0 <= probability <= 1:
                raise UserError(f"A probability must lie in [0, 1], got {probability}. Did the model diverge?")


class Judgement(NamedTuple):
    """`score` in [0, 1]. `positive`: how much the answer says "yes" ("True", "unanswerable"), in [0, 1]; NaN if the
    benchmark has no such side.
    """

    score: float
    positive: float = math.nan


class Comparison(NamedTuple):
    """How one question's answers are compared: the prediction is rewritten, and its matches are counted."""

    normalise: Callable[[str], str]
    truths: list[str]


@dataclass(frozen=True)
class Judged:
    """Questions and how their answers were judged: `scores` and `positives`, (questions,) float64. `statistics`
    (questions, numbers) float64: what a corpus metric is computed from."""

    questions: Sequence[Question]
    scores: np.ndarray
    positives: np.ndarray
    statistics: Any = None

    def where(self, keep: Callable[[Question], bool]) -> Judged:
        return self._take([row for row, question in enumerate(self.questions) if keep(question)])

    def kinds(self) -> list[str]:
        """The breakdowns, in their order; the one by group where there are groups."""
        kinds = dict.fromkeys(kind for question in self.questions for kind in question.types)
        return [*kinds, *[GROUP] * any(question.group for question in self.questions)]

    def by(self, kind: str) -> dict[str, Judged]:
        """The parts of a breakdown, by its values in their order."""
        rows: dict[str, list[int]] = defaultdict(list)
        for row, question in enumerate(self.questions):
            rows[question.group if kind == GROUP else question.types.get(kind, "")].append(row)
        return {value: self._take(rows[value]) for value in sorted(rows)}

    def mean(self) -> float:
        """The weighted mean score in percent.

        In the official scripts' arithmetic, one question after the other: what lies half-way between two decimals
        is then rounded as they round it.
        """
        weights = np.array([question.weight for question in self.questions])
        total = sum((self.scores * weights).tolist())
        return min(100.0, 100 * total / sum(weights.tolist()))  # rounding may go above

    def _take(self, rows: Sequence[int]) -> Judged:
        chosen = np.array(rows, dtype=np.int64)
        statistics = None if self.statistics is None else self.statistics[chosen]
        return Judged([self.questions[row] for row in rows], self.scores[chosen], self.positives[chosen], statistics)


class Benchmark(ABC):
    """A benchmark's official files at `root`, how to ask its questions and how to score the answers.

    Subclasses say where the files are (`read_questions`) and how answers are compared (`comparison`).

    An answer is a text, or (`answering="likelihood"`) the most likely of the choices: `choices` of the class, or
    `Question.choices` where they differ. The choices of a class are compared by the probability of their first tokens,
    if each is one token; all others by the likelihood of their whole text, its end included.

    A score is the weighted mean of the questions' scores, or (`corpus`) a metric of all of them together: then a
    subclass gives `statistics` of each answer and `corpus_score` of many, and intervals are bootstrapped over images.

    Args:
        root: the folder with the files of the official release, or the file with the annotations itself.
        name: what this copy is called in results; your own set in the official layout is another name at another root.
        mode: whose scorer to follow; one of `modes`.
        answering: "generate" (free text) or "likelihood" (the most likely choice).
        prompt: a style of `ablate.evaluation.prompts`, or the path of a YAML file; by default `default_prompt`.
        asks: False where no model is asked: with no `prompt` given, none is looked up, and questions have no body.
        expected: the number of questions of the whole set. OFFICIAL: as released. None, and where there is no release:
            as listed in `groups.json`, or as found.
        images: check that every image is there. False for scoring answers without a model.
        partial: leave out questions whose image is missing or cannot be decoded, instead of refusing.

    Attributes:
        prompt_text: what is asked, with placeholders for the question.
        left_out: images that are missing or empty, once `questions` have been read.
        incomplete: a whole part of the release is missing, once `questions` have been read.
    """

    name: str = ""  # set by the registry
    title: ClassVar[str]
    split: ClassVar[str]
    metric: ClassVar[str] = "accuracy"
    modes: ClassVar[tuple[str, ...]] = ("official",)
    # Which releases a mode follows, where a package's rules depend on its version or might.
    follows: ClassVar[Mapping[str, str]] = {
        "lmms_eval": "lmms-eval 0.2.4 to 0.7, in all of which the rules are the same"
    }
    answering_modes: ClassVar[tuple[str, ...]] = ("generate",)
    placeholders: ClassVar[tuple[str, ...]] = ("question", "Question")
    default_prompt: ClassVar[str] = ""
    always_asked: ClassVar[str] = ""  # the only prompt style of this member, which overrides the run's; "" = the run's
    folder: ClassVar[str] = ""  # of the files in a folder of all benchmarks; "" = one of the member's name
    choices: ClassVar[tuple[str, ...] | None] = None  # of two, the first one is the positive side
    corpus: ClassVar[bool] = False  # scored over all answers together
    image_folders: ClassVar[tuple[str, ...]] = ("images", ".")
    majority_type: ClassVar[str] = ""  # the breakdown that the majority baseline may look at; "" = none
    official_questions: ClassVar[int | None] = None  # None: a set of one's own, of which no release is known
    official_images: ClassVar[int | None] = None
    # The official results file: JSON Lines or one JSON list; the fields of an entry, the question's id first (the type
    # that the release has before another that is read too), the answer last.
    results_are_lines: ClassVar[bool] = False
    results_answering: ClassVar[str] = "generate"  # how the answers in official results files were given
    result_fields: ClassVar[dict[str, Types]] = {"id": str, "answer": str}
    decimals: ClassVar[int | None] = None  # what the official scorer rounds its figures to

    def __init__(
        self,
        root: Path | str,
        *,
        name: str | None = None,
        mode: str | None = None,
        answering: str | None = None,
        prompt: str | None = None,
        asks: bool = True,
        expected: int | None = OFFICIAL,
        images: bool = True,
        partial: bool = False,
    ):
        path = Path(root)
        self.file = path if path.is_file() else None
        self.root = path.parent if self.file else path
        self.name = name or self.name
        self.mode = _choose("scoring mode", mode, self.modes)
        self.answering = _choose("answering mode", answering, self.answering_modes)
        self.prompt = prompts.ALIASES.get(prompt or "", prompt) or (prompts.DEFAULT if asks else "")
        self.prompt_text = self._prompt_text() if self.prompt else ""
        self.expected = None if expected == OFFICIAL and self.official_questions is None else expected
        self._check_images, self.partial = images, partial
        self._problems = Problems()
        self.left_out: tuple[ImageProblem, ...] = ()
        self.incomplete = False

    def _prompt_text(self) -> str:
        names = [kind.name for kind in type(self).__mro__ if issubclass(kind, Benchmark) and "name" in vars(kind)]
        known = {kind.name for kind in _kinds_of(Benchmark)}  # type: ignore[type-abstract]
        names = list(dict.fromkeys(filter(None, names))) or [type(self).__name__]
        return prompts.prompt_text(self.prompt, names, self.placeholders, known, self.default_prompt)

    # -- For subclasses ---------------------------------------------------------------------------------------------

    @abstractmethod
    def read_questions(self, images: Images) -> list[Question]:
        """All questions of the files, in their order, validated; weights, groups and images are seen to elsewhere."""

    def comparison(self, question: Question) -> Comparison:
        """How an answer's text is compared with the question's ground truth, in this mode.

        By default equal but for case, spaces at the ends and a full stop.
        """
        return Comparison(plain_text, [plain_text(answer) for answer in question.answers])

    def agreement(self, matches: int) -> float:
        """The score of an answer that `matches` of the ground truths equal."""
        return float(matches > 0)

    def positive(self, question: Question, normalised: str) -> float:
        """How much a (normalised) text says the positive side; NaN where there is none."""
        return math.nan

    def body(self, question: str, **others: str) -> str:
        """What is asked of the model, without the chat format: the prompt with its placeholders filled."""
        return self.prompt_text.format(question=question, Question=question.capitalize(), **others)

    def statistics(self, question: Question, answer: Answer) -> Sequence[float]:
        """What an answer adds to a corpus metric: the same number of numbers for each."""
        raise NotImplementedError(f"{type(self).__name__} is scored over the corpus, but has no statistics")

    def corpus_score(self, statistics: np.ndarray) -> float:
        """The corpus metric, in [0, 1], of the statistics (answers, numbers) of any answers, repeated ones included."""
        raise NotImplementedError(f"{type(self).__name__} is scored over the corpus, but has no corpus_score")

    @classmethod
    def example(cls, folder: Path) -> None:
        """Write a small set in the benchmark's layout into an empty folder, for the contract's tests."""
        raise NotImplementedError(f"{cls.__name__} has no example")

    def weights(self, questions: Sequence[Question]) -> list[float]:
        return [1.0] * len(questions)

    def figures(self, judged: Judged) -> Figures:
        """Every figure that the benchmark reports, in percent: the overall one and the breakdowns."""
        return {"overall": self.score(judged)} | self.breakdowns(judged)

    def parts_expected(self, questions: Sequence[Question]) -> dict[str, int]:
        """How many questions each part of the release has, where it comes in parts: their first breakdown's values."""
        return {}

    def expected_of_release(self, questions: Sequence[Question]) -> int:
        """The number of questions of the release that these questions are from."""
        return self.official_questions or len(questions)

    # -- Questions --------------------------------------------------------------------------------------------------

    @cached_property
    def questions(self) -> list[Question]:
        """The questions in the release's order; of a `partial` benchmark those that have an image.

        Raises:
            UserError: missing, unreadable or malformed files, ids that do not fit together, or missing images (all of
                them are listed). The message names the file and the entry.
        """
        questions = self.all_questions
        if self._check_images:
            questions = self._with_images(questions, self._images)
        return self.reweighted(questions)

    @cached_property
    def all_questions(self) -> list[Question]:
        """The questions in the release's order, whether they have an image or not."""
        with collector_paused(), files_noted() as files:
            questions, groups = self._read_checked(self._images)
        self._files_read = files
        if groups:
            questions = [replace(question, group=groups[question.id]) for question in questions]
        # In a user's own set, a photo's number may be another photo's elsewhere.
        named = self.name != type(self).name or self.official_questions is None
        if named and self.expected != OFFICIAL:
            questions = [replace(question, image_id=f"{self.name}/{question.image_id}") for question in questions]
        return questions

    @cached_property
    def _images(self) -> Images:
        return Images(self.root, self.image_folders)

    @cached_property
    def digests(self) -> dict[str, Any]:
        """What tells this set from another: hashes of all questions as they are asked, of their answers, and of the
        annotation files that were read. An image that is missing, or is repaired, changes none."""
        asked, truth = hashlib.sha256(), hashlib.sha256()
        for question in self.all_questions:
            choices = [question.choices] * bool(question.choices)
            asked.update(json.dumps([question.id, question.image_id, question.body, *choices]).encode())
            truth.update(json.dumps([question.id, question.answers, question.types, question.weight]).encode())
        files = [file_entry(path) for path in dict.fromkeys(self._files_read)]
        return {"questions_sha256": asked.hexdigest(), "answers_sha256": truth.hexdigest(), "files": files}

    def problems(self) -> tuple[list[Question], list[str]]:
        """The questions as far as they can be read, and everything that is wrong with the files (not the images)."""
        self._problems = Problems(collect=True)
        questions: list[Question] = []
        with self._problems:
            questions, _ = self._read_checked(Images(self.root, self.image_folders))
        found, self._problems = self._problems.found, Problems()
        return questions, found

    def _read_checked(self, images: Images) -> tuple[list[Question], dict[str, str]]:
        """All questions, and their groups where there are any; images are not looked at."""
        problems = self._problems
        questions = self.read_questions(images)
        if not questions and not problems.found:
            problems.add(f"{self.file or self.root} holds no question of {self.title}.")
        with problems:
            refuse_duplicates((question.id for question in questions), f"{self.file or self.root} ({self.title})")
        groups: dict[str, str] = {}
        with problems:
            groups = self._groups(questions)
        if self.expected == OFFICIAL and len(questions) > (most := self.expected_of_release(questions)):
            problems.add(
                f"{self.file or self.root} holds {len(questions):,} questions, but {self.title} ({self.split}) has "
                f"{most:,}. Is it another split?"
            )
        return questions, groups

    def check_split(self, found: Any, where: str) -> None:
        """Refuse a file that says itself that it is of a train or test split; your own sets may be."""
        if self.expected == OFFICIAL and isinstance(found, str) and found.startswith(("train", "test")):
            self._problems.add(f'{where} is of the split "{found}"; scores of {self.title} are of {self.split}.')

    def find(self, names: Sequence[str], folders: Sequence[str] = (".",)) -> Path:
        """The annotations: the file that was given, or the first of `names` in one of the root's `folders`."""
        return self.file or find_file(self.root, names, folders)

    def each(
        self, path: Path, fields: Mapping[str, Types], make: Callable[[str, Any], Question], *, lines: bool = False
    ) -> list[Question]:
        """`make(where, entry)` of every entry of a list in a file, for `read_questions`.

        Args:
            fields: what an entry has, with its types; it is checked before.
            make: raises UserError, beginning with `where`, for an entry that is wrong.
            lines: the file should be JSON Lines.
        """
        questions = []
        for where, entry in read_records(path, fields, self._problems, lines=lines):
            with self._problems:
                check_fields(entry, fields, where)
                questions.append(make(where, entry))
        return questions

    def reweighted(self, questions: Sequence[Question]) -> list[Question]:
        """These questions with the weights that they have when there are no others."""
        return [
            question if question.weight == weight else replace(question, weight=weight)
            for question, weight in zip(questions, self.weights(questions), strict=True)
        ]

    @cached_property
    def n_expected(self) -> int:
        """The number of questions of the whole set, those without an image included."""
        return self.expected_with(self.all_questions)

    def expected_with(self, questions: Sequence[Question]) -> int:
        """The number of questions of the whole set that these questions are from."""
        if self.expected == OFFICIAL:
            return self.expected_of_release(questions)
        if self.expected is not None:
            return self.expected
        return max(len(self._read_groups()), len(questions))

    def _read_groups(self) -> dict[str, str]:
        path = self.root / GROUPS_FILE
        if not path.is_file():
            return {}
        groups = read_document(path)
        if not isinstance(groups, dict) or not all(isinstance(group, str) for group in groups.values()):
            raise UserError(f'{path}: expected an object {{question id: group}}, such as {{"17": "unseen"}}.')
        return groups

    def _groups(self, questions: Sequence[Question]) -> dict[str, str]:
        groups = self._read_groups()
        if groups and (unknown := {question.id for question in questions} - groups.keys()):
            raise UserError(f"{self.root / GROUPS_FILE} does not list these questions: {listed(unknown)}.")
        return groups

    def _with_images(self, questions: list[Question], images: Images) -> list[Question]:
        asked: dict[Path, list[str]] = defaultdict(list)
        for question in questions:
            asked[question.image].append(question.id)
        unusable = [path for path in sorted(asked) if not images.usable(path)]
        self.left_out = tuple(
            ImageProblem(path.name, *(image_problem(path) or (MISSING, "not there a moment ago")), tuple(asked[path]))
            for path in unusable
        )
        kept = [question for question in questions if question.image not in set(unusable)]
        if unusable and (not self.partial or not kept):
            named = [
                f"{each.name} ({MISSING if each.kind == MISSING else each.reason}; questions "
                f"{listed(each.questions, 5)})"
                for each in self.left_out
            ]
            raise UserError(
                f"{len(unusable):,} of {len(asked):,} images of {self.name} are missing or empty in "
                f"{' or '.join(map(str, images.folders))}; with evaluation.partial=true the {len(kept):,} questions "
                f"that have theirs can be evaluated, and are marked as partial. They are: {', '.join(named)}"
            )
        return kept

    # -- Results of any model ---------------------------------------------------------------------------------------

    def unanswered(self, answered: Set[str]) -> set[str]:
        """The questions that a results file should answer and does not."""
        return {question.id for question in self.questions} - answered

    def part_of(self, question: Question) -> str:
        """The part of the release that has the question, where parts come in files of their own; else ""."""
        return ""

    def part_named(self, file: str) -> str:
        """The part that a file's name speaks of; "" for none, or several."""
        return ""

    def result_id(self, entry: dict[str, Any]) -> str:
        """The id of the question that an entry of the official results file answers."""
        return str(entry[next(iter(self.result_fields))])

    def result_answer(self, entry: dict[str, Any], where: str) -> Answer:
        """The answer in an entry of the official results file.

        Raises:
            UserError: beginning with `where`, which names file and entry.
        """
        check_fields(entry, self.result_fields, where)
        return Answer(entry[list(self.result_fields)[-1]])

    def result_entry(self, question: Question, answer: Answer) -> dict[str, Any]:
        """The entry of the official results file that `result_id` and `result_answer` read this out of."""
        id_field, *_, answer_field = self.result_fields
        types = self.result_fields[id_field]
        id_type = types[0] if isinstance(types, tuple) else types
        return {id_field: id_type(question.id), answer_field: self.answer_text(question, answer)}

    def choices_of(self, question: Question) -> tuple[str, ...]:
        """What a question offers; nothing where any text may be the answer."""
        return question.choices or self.choices or ()

    def answer_text(self, question: Question, answer: Answer) -> str:
        """The model's text, or the most likely choice; the first of several."""
        if answer.probabilities is not None:
            choices = self.choices_of(question)
            if len(choices) != len(answer.probabilities):
                raise UserError(
                    f"{self.name}, question {question.id}: {len(answer.probabilities)} probabilities for "
                    f"{len(choices)} choices."
                )
            return choices[int(np.argmax(answer.probabilities))]
        return self.choice(answer.probability) if answer.probability is not None else answer.text or ""

    @property
    def probability_key(self) -> str:
        """What the probability of the first of two choices is called in files: "p_yes", "p_true"; "" for others."""
        return f"p_{self.choices[0].lower()}" if self.choices and len(self.choices) == 2 else ""

    # -- Scores -----------------------------------------------------------------------------------------------------

    def judge(self, question: Question, answer: Answer) -> Judgement:
        """Score one answer."""
        judgement = self.judge_text(question, self.answer_text(question, answer))
        return judgement if answer.probability is None else Judgement(judgement.score, answer.probability)

    def judge_all(self, questions: Sequence[Question], answers: Iterable[Answer]) -> Judged:
        """`judge` of as many answers as questions, in their order."""
        answers = list(answers)
        with collector_paused():
            judgements = [self.judge(question, answer) for question, answer in zip(questions, answers, strict=True)]
            values = np.array(judgements, dtype=np.float64).reshape(-1, 2)
        statistics = None
        if self.corpus:
            rows = [self.statistics(question, answer) for question, answer in zip(questions, answers, strict=True)]
            statistics = np.array(rows, dtype=np.float64).reshape(len(rows), -1)
        return Judged(questions, values[:, 0], values[:, 1], statistics)

    def score(self, judged: Judged) -> float:
        """The score in percent: the mean over the questions, or the corpus metric."""
        return 100 * self._corpus_score(judged.statistics) if self.corpus else judged.mean()

    def estimate(self, judged: Judged) -> Estimate:
        """The score with its interval over images, as fractions."""
        images = [question.image_id for question in judged.questions]
        if self.corpus:
            return bootstrap(self._corpus_score, judged.statistics, images)
        return score_interval(judged.scores, images, [question.weight for question in judged.questions])

    def _corpus_score(self, statistics: np.ndarray) -> float:
        score = float(self.corpus_score(statistics))
        if not 0 <= score <= 1:
            raise UserError(f"{self.name}: corpus_score returned {score}, expected a number from 0 to 1.")
        return score

    def choice(self, probability: float) -> str:
        """The choice that a probability of the first one means; a tie goes to the first."""
        if self.choices is None or len(self.choices) != 2:
            raise UserError(f"{self.title} is scored on text, so probabilities cannot be used.")
        return self.choices[0] if probability >= 0.5 else self.choices[1]

    def judge_text(self, question: Question, text: str) -> Judgement:
        normalise, truths = self.comparison(question)
        normalised = normalise(text)
        return Judgement(self.agreement(truths.count(normalised)), self.positive(question, normalised))

    def candidates(self, questions: Iterable[Question]) -> Iterable[str]:
        """The answers that one who gives the same answer to all of these questions may choose from: the others score
        nothing.
        """
        if self.choices is not None:
            return self.choices
        return {answer for question in questions for answer in question.answers}

    def breakdowns(self, judged: Judged) -> Figures:
        """The score by each breakdown, and by group where there are groups."""
        return {kind: {value: self.score(part) for value, part in judged.by(kind).items()} for kind in judged.kinds()}

    def report(self, judged: Judged) -> Figures:
        """`figures`, rounded as the official scorer rounds them."""
        return _rounded(self.figures(judged), self.decimals)


def _kinds_of(cls: type[Benchmark]) -> Iterator[type[Benchmark]]:
    """All registered subclasses, theirs included."""
    for kind in cls.__subclasses__():
        if vars(kind).get("name"):
            yield kind
        yield from _kinds_of(kind)


def plain_text(text: str) -> str:
    """Without case, spaces at the ends and a full stop."""
    return text.strip().removesuffix(".").lower()


# Leaving each of ten humans out in turn, a matching one sees k - 1 others who match, and the rest see k.
_SOFT_ACCURACY = tuple((k * min(3, k - 1) + (10 - k) * min(3, k)) / 30 for k in range(11))


def soft_accuracy(matches: int) -> float:
    """The mean over ten humans of min(1, others who agree / 3): 0, .3, .6, .9, 1, 1, ..."""
    return _SOFT_ACCURACY[matches]


def _rounded(figures: Any, decimals: int | None) -> Any:
    if isinstance(figures, dict):
        return {name: _rounded(value, decimals) for name, value in figures.items()}
    return figures if decimals is None or not isinstance(figures, float) else round(figures, decimals)


def _choose(what: str, got: str | None, choices: tuple[str, ...]) -> str:
    """`got`, or the first choice."""
    if got is None:
        return choices[0]
    if got not in choices:
        raise unknown_name(what, got, choices)
    return got


def refuse_duplicates(ids: Iterable[str], where: str) -> None:
    """
    Raises:
        UserError: some ids occur more than once; the message lists them.
    """
    if twice := sorted(each for each, count in Counter(ids).items() if count > 1):
        raise UserError(f"{where}: these ids occur more than once: {listed(twice)}.")
