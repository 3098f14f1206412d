"""What a model that sees nothing could score: the figures to report with every score.

They are found on the questions that they are scored on, so they are the best that any such answerer can do:

- constant: one answer to everything, the best one (where each question has its own choices, one place among them);
- chance: a choice at random, where there are choices: never above the constant;
- majority: one answer to each type of question, the best one for each, where a type can be told from the question's
  words (`Benchmark.majority_type`; "how many ..." in VQAv2). Elsewhere it is the constant.

Scores are the benchmark's own, in its mode.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ablate.evaluation.benchmarks import Answer, Benchmark, Question
from ablate.evaluation.benchmarks.base import Comparison

AT_RANDOM = "a choice at random"
MOST_CANDIDATES = 50  # answers whose corpus metric is computed

Compared = tuple[Question, Comparison]


@dataclass(frozen=True)
class Baseline:
    """`score` in percent; `answer` is the answer given, to every type where there is more than one."""

    score: float
    answer: str | dict[str, str]

    def __str__(self) -> str:
        """What is answered to what."""
        if isinstance(self.answer, dict):
            return "the best for each type"
        return self.answer if self.answer == AT_RANDOM else f'"{self.answer}" to everything'


def baselines(benchmark: Benchmark, questions: Sequence[Question] | None = None) -> dict[str, Baseline]:
    """{"constant": ..., "majority": ...} over `questions` (by default all of the benchmark's), and "chance" where all
    have choices."""
    questions = benchmark.questions if questions is None else questions
    if benchmark.corpus:
        return _of_corpus(benchmark, questions)
    weight = sum(question.weight for question in questions)
    compared = [(question, benchmark.comparison(question)) for question in questions]
    chance = _chance(benchmark, compared)
    answer, earned = _best(benchmark, compared)
    constant = Baseline(100 * earned / weight, answer)
    if not benchmark.majority_type:
        return {"constant": constant, "majority": constant, **chance}
    by_type: dict[str, list[Compared]] = defaultdict(list)
    for question, comparison in compared:
        by_type[question.types[benchmark.majority_type]].append((question, comparison))
    best = {kind: _best(benchmark, group) for kind, group in sorted(by_type.items())}
    majority = Baseline(
        100 * sum(earned for _, earned in best.values()) / weight, {kind: answer for kind, (answer, _) in best.items()}
    )
    return {"constant": constant, "majority": majority, **chance}


def _chance(benchmark: Benchmark, compared: Sequence[Compared]) -> dict[str, Baseline]:
    """What a choice at random scores on average; nothing where a question has no choices."""
    earned = weight = 0.0
    for question, (normalise, truths) in compared:
        if not (choices := benchmark.choices_of(question)):
            return {}
        scores = [benchmark.agreement(truths.count(normalise(choice))) for choice in choices]
        earned += question.weight * sum(scores) / len(scores)
        weight += question.weight
    return {"chance": Baseline(100 * earned / weight, AT_RANDOM)}


def _of_corpus(benchmark: Benchmark, questions: Sequence[Question]) -> dict[str, Baseline]:
    """The best corpus metric of one answer to everything, of the most frequent ones."""
    scores = {}
    for label, texts in _constants(benchmark, questions).items():
        scores[label] = benchmark.score(benchmark.judge_all(questions, map(Answer, texts)))
    best = max(scores, key=lambda label: scores[label])
    return dict.fromkeys(("constant", "majority"), Baseline(scores[best], best))


def _constants(benchmark: Benchmark, questions: Sequence[Question]) -> dict[str, list[str]]:
    """What is answered, to each question: a place among its choices, or one of the most frequent answers."""
    if any(question.choices for question in questions):
        choices = [benchmark.choices_of(question) for question in questions]
        return {f"choice {place + 1}": [each[place] for each in choices] for place in range(min(map(len, choices)))}
    counts = Counter(candidate for question in questions for candidate in benchmark.candidates([question]))
    return {candidate: [candidate] * len(questions) for candidate, _ in counts.most_common(MOST_CANDIDATES)}


def _best(benchmark: Benchmark, compared: Sequence[Compared]) -> tuple[str, float]:
    """The answer with the largest summed score, and that sum; the first in the alphabet where several have it.

    Exact and linear in the questions: what each normalised answer would earn is summed up per way of normalising (a
    scorer has one or two), and a candidate earns what its normalised forms do.
    """
    if any(question.choices for question, _ in compared):
        return _best_place(benchmark, compared)
    tables: dict[Callable[[str], str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for question, (normalise, truths) in compared:
        table = tables[normalise]
        for truth in set(truths):
            table[truth] += question.weight * benchmark.agreement(truths.count(truth))
    earned = {
        candidate: sum(table.get(normalise(candidate), 0.0) for normalise, table in tables.items())
        for candidate in sorted(benchmark.candidates(question for question, _ in compared))
    }
    best = max(earned, key=lambda candidate: earned[candidate])
    return best, earned[best]


def _best_place(benchmark: Benchmark, compared: Sequence[Compared]) -> tuple[str, float]:
    """Where every question has choices of its own: the place whose choice is right most often."""
    earned: dict[int, float] = defaultdict(float)
    for question, (normalise, truths) in compared:
        for place, choice in enumerate(benchmark.choices_of(question)):
            earned[place] += question.weight * benchmark.agreement(truths.count(normalise(choice)))
    best = max(earned, key=lambda place: (earned[place], -place))
    return f"choice {best + 1}", earned[best]
