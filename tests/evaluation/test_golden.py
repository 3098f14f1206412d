"""Cases with the exact scores that the official and the peers' scorers gave for them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.evaluation import benchmarks
from ablate.evaluation.benchmarks import Answer, Benchmark, Judged, Question
from ablate.evaluation.benchmarks.base import soft_accuracy
from ablate.evaluation.benchmarks.pope import first_sentence_yes_or_no

EXACT = 1e-9


def question(answers: list[str], qid: str = "1", **types: str) -> Question:
    return Question(qid, Path("x.jpg"), "x", "?", "?", tuple(answers), types)


def score(name: str, mode: str, prediction: str, answers: list[str], **options: str) -> float:
    benchmark = benchmarks.create(name, "unused", mode=mode, **options)
    return benchmark.judge(question(answers), Answer(prediction)).score


def judged(benchmark: Benchmark, questions: list[Question], answers: list[Answer]) -> Judged:
    values = np.array([benchmark.judge(each, answer) for each, answer in zip(questions, answers, strict=True)])
    return Judged(questions, values[:, 0], values[:, 1])


LOO3 = ["dog"] * 3 + ["cat"] * 7
SLASH = ["a/c"] * 3 + ["ac"] * 7
NONE = ["0", "0", "none", "none"] + ["1"] * 6
STOPS = ["x"] * 9 + ["y"]


@pytest.mark.parametrize(
    ("prediction", "answers", "by_mode"),
    [
        ("dog", LOO3, {"official_2021": 0.9, "official_2016": 0.9, "vlm_evaluation": 0.9, "lmms_eval": 0.9}),
        (
            "t-shirt",
            ["t-shirt"] * 10,
            {"official_2021": 1.0, "official_2016": 0.0, "vlm_evaluation": 1.0, "lmms_eval": 1.0},
        ),
        ("a/c", SLASH, {"official_2021": 0.9, "official_2016": 0.0, "vlm_evaluation": 0.0, "lmms_eval": 0.9}),
        ("None", NONE, {"official_2021": 1.0, "official_2016": 0.6, "vlm_evaluation": 0.6, "lmms_eval": 1.0}),
        ("." * 40 + "x", STOPS, dict.fromkeys(("official_2021", "official_2016", "vlm_evaluation", "lmms_eval"), 0.0)),
        # Agreement to the letter switches the 2021 script's rewriting off.
        ("Yes", ["yes"] * 10, {"official_2021": 0.0, "official_2016": 1.0, "vlm_evaluation": 1.0, "lmms_eval": 1.0}),
        # Only the 2021 script and lmms-eval strip the ground truth.
        ("yes", ["yes "] * 10, {"official_2021": 1.0, "official_2016": 0.0, "vlm_evaluation": 0.0, "lmms_eval": 1.0}),
    ],
)
def test_vqav2(prediction: str, answers: list[str], by_mode: dict[str, float]) -> None:
    for mode, expected in by_mode.items():
        assert score("vqav2", mode, prediction, answers) == pytest.approx(expected, abs=EXACT), mode


@pytest.mark.parametrize(
    ("prediction", "answers", "expected", "as_vqav2"),
    [
        ("1,000-2,000", ["10002000"] * 2 + ["1000 2000"] * 3 + ["1000"] * 5, 0.9, 0.6),
        ("men 's room", ["men's room"] * 4 + ["men"] * 6, 1.0, 0.0),
    ],
)
def test_textvqa(prediction: str, answers: list[str], expected: float, as_vqav2: float) -> None:
    for mode in ("official", "lmms_eval", "vlm_evaluation"):
        assert score("textvqa", mode, prediction, answers) == pytest.approx(expected, abs=EXACT)
    assert score("vqav2", "official_2021", prediction, answers) == pytest.approx(as_vqav2, abs=EXACT)


@pytest.mark.parametrize(
    ("prediction", "label", "by_mode"),
    [
        ("T-shirt", "t-shirt", {"llava": 1, "vlm_evaluation": 0, "official": 0, "lmms_eval": 1}),
        ("Yes!", "yes", {"llava": 0, "vlm_evaluation": 1, "official": 0, "lmms_eval": 1}),
        ("Yes.", "yes", {"llava": 1, "vlm_evaluation": 1, "official": 0, "lmms_eval": 1}),
        (" yes", "yes", {"llava": 0, "vlm_evaluation": 0, "official": 0, "lmms_eval": 0}),
        ("yes", "yes", {"llava": 1, "vlm_evaluation": 1, "official": 1, "lmms_eval": 1}),
    ],
)
def test_gqa(prediction: str, label: str, by_mode: dict[str, int]) -> None:
    for mode, expected in by_mode.items():
        assert score("gqa", mode, prediction, [label]) == expected, mode


@pytest.mark.parametrize(
    ("prediction", "label", "official", "lmms_eval"),
    [
        ("NO", "no", 0, 1),
        ("Yes. There is no doubt", "yes", 1, 0),
        ("Yes, not sure", "no", 1, 0),
        ("no,", "no", 1, 0),
        ("yes", "yes", 1, 1),
    ],
)
def test_pope(prediction: str, label: str, official: int, lmms_eval: int) -> None:
    assert score("pope", "official", prediction, [label]) == official
    assert score("pope", "lmms_eval", prediction, [label]) == lmms_eval


@pytest.mark.parametrize("text", ["NO", "No!", "isn't", "cannot", "None", "", "Maybe", "Yes.no", "I do\nnot"])
def test_pope_reads_these_as_yes(text: str) -> None:
    assert first_sentence_yes_or_no(text) == "yes"


@pytest.mark.parametrize("text", ["No", "no", "not", "Yes, not sure", "There is no dog.", "n,o", "No. Yes"])
def test_pope_reads_these_as_no(text: str) -> None:
    assert first_sentence_yes_or_no(text) == "no"


def test_vizwiz() -> None:
    answers = ["unanswerable"] * 3 + ["text"] * 7
    for mode in ("official", "vlm_evaluation", "lmms_eval"):
        assert score("vizwiz", mode, "Unanswerable", answers) == pytest.approx(0.9, abs=EXACT)


def test_vizwiz_leaves_the_ground_truth_as_it_is() -> None:
    assert score("vizwiz", "official", "Dr. Pepper", ["Dr. Pepper"] * 10) == 0
    assert score("vizwiz", "lmms_eval", "Dr. Pepper", ["Dr. Pepper"] * 10) == 1


def test_vizwiz_aggregate() -> None:
    benchmark = benchmarks.create("vizwiz", "unused")
    asked = [
        ("Unanswerable", ["unanswerable"] * 10, 0),
        ("unanswerable.", ["unanswerable"] * 6 + ["blue"] * 4, 1),
        ("blue", ["unanswerable"] * 7 + ["blue"] * 3, 0),
        ("red", ["red"] * 8 + ["maroon"] * 2, 1),
    ]
    questions = [
        question(answers, str(row), answer_type="other", answerable="answerable" if answerable else "unanswerable")
        for row, (_, answers, answerable) in enumerate(asked)
    ]
    figures = benchmark.report(judged(benchmark, questions, [Answer(text) for text, *_ in asked]))
    assert figures["overall"] == pytest.approx(97.5, abs=EXACT)
    assert figures["answerable"] == pytest.approx(100.0, abs=EXACT)
    assert figures["unanswerable"] == pytest.approx(95.0, abs=EXACT)
    assert figures["ap"] == pytest.approx(50.0, abs=EXACT)
    assert figures["f1"] == pytest.approx(50.0, abs=EXACT)


def test_vsr_aggregate() -> None:
    benchmark = benchmarks.create("vsr", "unused")
    questions = [
        question(["True" if label else "False"], str(row), relation="on") for row, label in enumerate([1, 0, 0, 1])
    ]
    answers = [Answer(probability=probability) for probability in (0.6, 0.5, 0.2, 0.49)]
    figures = benchmark.report(judged(benchmark, questions, answers))
    assert figures["overall"] == pytest.approx(50.0, abs=EXACT)
    assert figures["roc_auc"] == pytest.approx(75.0, abs=EXACT)
    assert figures["ap"] == pytest.approx(83.33333333333333, abs=EXACT)


def test_soft_accuracy_by_matches() -> None:
    assert [soft_accuracy(matches) for matches in range(11)] == pytest.approx([0, 0.3, 0.6, 0.9] + [1.0] * 7, abs=EXACT)


@given(st.lists(st.sampled_from(["dog", "cat", "cow"]), min_size=10, max_size=10))
def test_soft_accuracy_is_the_mean_over_humans_left_out_by_index(answers: list[str]) -> None:
    agreeing = [sum(other == "dog" for row, other in enumerate(answers) if row != left_out) for left_out in range(10)]
    expected = np.mean([min(1, count / 3) for count in agreeing])
    assert score("vqav2", "lmms_eval", "Dog.", answers) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("name", ["pope", "vsr"])
def test_a_tie_goes_to_the_positive_side(name: str) -> None:
    benchmark = benchmarks.create(name, "unused")
    truth = {"pope": "yes", "vsr": "True"}[name]
    assert benchmark.judge(question([truth]), Answer(probability=0.5)) == (1.0, 0.5)
    assert benchmark.judge(question([truth]), Answer(probability=0.5 - 1e-9)).score == 0.0


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        ("True", "True", 1),
        ("false.", "False", 1),
        ('"True" it is', "True", 1),
        ("It is true", "True", 0),
        ("", "False", 0),
    ],
)
def test_vsr_in_generate_mode(text: str, truth: str, expected: int) -> None:
    assert score("vsr", "official", text, [truth], answering="generate") == expected
