"""The best constant and the best answer per type, against trying every answer."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.evaluation import benchmarks
from ablate.evaluation.baselines import baselines
from ablate.evaluation.benchmarks import Benchmark, Question

Small = Callable[..., Benchmark]


def score_of(benchmark: Benchmark, questions: list[Question], answer: Callable[[Question], str]) -> float:
    earned = [question.weight * benchmark.judge_text(question, answer(question)).score for question in questions]
    return 100 * sum(earned) / sum(question.weight for question in questions)


@pytest.mark.parametrize("name", ["vqav2", "gqa", "textvqa", "pope", "vizwiz", "vsr"])
def test_the_constant_is_the_best_of_all_answers_in_every_mode(name: str, small: Small) -> None:
    for mode in small(name).modes:
        benchmark = small(name, mode=mode)
        constant = baselines(benchmark)["constant"]
        scores = {
            text: score_of(benchmark, benchmark.questions, lambda _, text=text: text)
            for text in benchmark.candidates(benchmark.questions)
        }
        assert constant.score == pytest.approx(max(scores.values()))
        assert scores[constant.answer] == pytest.approx(constant.score)


def test_yes_or_no_alone_scores_half_on_pope(small: Small) -> None:
    constant = baselines(small("pope"))["constant"]
    assert (constant.score, constant.answer) == (pytest.approx(50), "No")


def test_true_alone_on_vsr(small: Small) -> None:
    constant = baselines(small("vsr"))["constant"]
    assert (constant.score, constant.answer) == (pytest.approx(60), "True")


def test_true_alone_on_the_official_vsr_scores_what_the_paper_reports() -> None:
    truths = ["True"] * 629 + ["False"] * 593
    questions = [
        Question(str(row), Path("x"), "x", "?", "?", (truth,), {"relation": "on"}) for row, truth in enumerate(truths)
    ]
    found = baselines(benchmarks.create("vsr", "unused"), questions)
    assert (round(found["constant"].score, 2), found["constant"].answer) == (51.47, "True")
    assert found["majority"].score == found["constant"].score


def test_the_majority_answers_each_type_of_question(small: Small) -> None:
    benchmark = small("vqav2")
    majority = baselines(benchmark)["majority"]
    assert majority.answer == {"how many": "2", "is it": "yes", "what is": "t-shirt"}
    # 1, .9 (yes: 8 and 3 of ten), 1, 1
    assert majority.score == pytest.approx(
        score_of(benchmark, benchmark.questions, lambda question: majority.answer[question.types["question_type"]])
    )
    assert majority.score > baselines(benchmark)["constant"].score


def test_a_type_that_gives_the_answer_away_is_no_baseline(small: Small) -> None:
    """VizWiz's answer type says "unanswerable": a model cannot know it from the question."""
    found = baselines(small("vizwiz"))
    assert found["majority"] == found["constant"]


def test_baselines_of_a_part_are_of_that_part(small: Small) -> None:
    benchmark = small("gqa")
    assert baselines(benchmark, benchmark.questions[2:3])["constant"].answer == "t-shirt"


ANSWERS = st.lists(st.sampled_from(["yes", "Yes", "yes.", "no", "2", "two", "a dog"]), min_size=10, max_size=10)


@given(st.lists(ANSWERS, min_size=1, max_size=5), st.sampled_from(["lmms_eval", "official_2021", "official_2016"]))
def test_no_answer_beats_the_constant(humans: list[list[str]], mode: str) -> None:
    benchmark = benchmarks.create("vqav2", ".", mode=mode)
    questions = [
        Question(str(row), Path("x"), "x", "?", "?", tuple(answers), {"question_type": "what"})
        for row, answers in enumerate(humans)
    ]
    benchmark.__dict__["questions"] = questions
    best = max(
        score_of(benchmark, questions, lambda _, text=text: text) for text in benchmark.candidates(benchmark.questions)
    )
    assert baselines(benchmark)["constant"].score == pytest.approx(best)
