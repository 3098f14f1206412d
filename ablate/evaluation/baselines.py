"""What a model that sees nothing could score: the figures that must stand beside every score.

Both are found on the questions that they are scored on, so they are the best that any such answerer can do:

- constant: one answer to everything, the best one;
- majority: one answer to each type of question, the best one for each, where a type can be told from the question's
  words (`Benchmark.majority_type`; "how many ..." in VQAv2). Elsewhere it is the constant.

Scores are the benchmark's own, in its mode.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ablate.evaluation.benchmarks import Answer, Benchmark, Question
from ablate.evaluation.benchmarks.base import Comparison

Compared = tuple[Question, Comparison]


@dataclass(frozen=True)
class Baseline:
    """`score` in percent; `answer` is the answer given, to every type where there is more than one."""

    score: float
    answer: str | dict[str, str]


def baselines(benchmark: Benchmark, questions: Sequence[Question] | None = None) -> dict[str, Baseline]:
    """{"constant": ..., "majority": ...} over `questions` (by default all of the benchmark's)."""
    questions = benchmark.questions if questions is None else questions
    if benchmark.corpus:
        return _of_corpus(benchmark, questions)
    weight = sum(question.weight for question in questions)
    compared = [(question, benchmark.comparison(question)) for question in questions]
    answer, earned = _best(benchmark, compared)
    constant = Baseline(100 * earned / weight, answer)
    if not benchmark.majority_type:
        return {"constant": constant, "majority": constant}
    by_type: dict[str, list[Compared]] = defaultdict(list)
    for question, comparison in compared:
        by_type[question.types[benchmark.majority_type]].append((question, comparison))
    best = {kind: _best(benchmark, group) for kind, group in sorted(by_type.items())}
    majority = Baseline(
        100 * sum(earned for _, earned in best.values()) / weight, {kind: answer for kind, (answer, _) in best.items()}
    )
    return {"constant": constant, "majority": majority}


MOST_CANDIDATES = 50  # answers whose corpus metric is computed


def _of_corpus(benchmark: Benchmark, questions: Sequence[Question]) -> dict[str, Baseline]:
    """The best corpus metric of one answer to everything, of the most frequent ones."""
    counts = Counter(candidate for question in questions for candidate in benchmark.candidates([question]))
    scores = {}
    for candidate, _ in counts.most_common(MOST_CANDIDATES):
        judged = benchmark.judge_all(questions, [Answer(candidate)] * len(questions))
        scores[candidate] = benchmark.score(judged)
    best = max(scores, key=lambda candidate: scores[candidate])
    return dict.fromkeys(("constant", "majority"), Baseline(scores[best], best))


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
