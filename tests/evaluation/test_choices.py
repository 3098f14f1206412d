"""Choices of any number: which rule compares them, what is kept of the answer, and what needs no model to score."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from torch import Tensor

import connectors
from ablate.core.errors import UserError
from ablate.evaluation.answers import PredictionFile
from ablate.evaluation.asking import Inputs, evaluate
from ablate.evaluation.baselines import baselines
from ablate.evaluation.benchmarks import Answer, Benchmark, Question, get
from ablate.evaluation.files import Images
from ablate.evaluation.official import read_results
from ablate.evaluation.statistics import bootstrap, mean_estimate, score_interval
from ablate.model import VLM
from ablate.model.languages.mamba2 import MambaConfig, MambaLMHeadModel, SSMConfig
from ablate.runs.config import EvaluationConfig
from datamodules import IMAGE_TOKEN_ID
from datamodules.batches.collate import Row, collate
from datamodules.text.conversation import COBRA, ConversationEncoder
from datamodules.text.tokenizer import Tokenizer

WORDS = ["red", "blue", "green", "car", "a", "b", "c", "?"]
VISUAL_TOKENS = 4


class Colours(Benchmark):
    """Two photos' questions, each with its own choices or with the class's."""

    name, title, split, default_prompt = "colours", "Colours", "test", "{question}"
    answering_modes = ("likelihood", "generate")
    own: tuple[tuple[str, ...], ...] = ()

    def read_questions(self, images: Images) -> list[Question]:
        image = images.path("0.png", "here")
        return [
            Question(str(n), image, str(n), "a ?", self.body("a ?"), ("red",), choices=self.own[n] if self.own else ())
            for n in range(len(self.own) or 3)
        ]


def colours(root: Path, **attributes: Any) -> Benchmark:
    from PIL import Image

    (root / "images").mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(root / "images" / "0.png")
    return type("Kind", (Colours,), attributes)(root)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(["<|endoftext|>", "[UNK]", *WORDS])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(inner)


@pytest.fixture(scope="module")
def vlm(tokenizer: Tokenizer) -> VLM:
    torch.manual_seed(3)
    ssm = SSMConfig(d_state=8, headdim=8)
    language = MambaLMHeadModel(MambaConfig(d_model=32, n_layer=2, vocab_size=tokenizer.vocab_size, ssm_cfg=ssm))
    return VLM(None, connectors.create("linear", 3, 32), language).eval()


class Features:
    """Of the one photo."""

    def __contains__(self, digest: str) -> bool:
        return True

    def get(self, hashes: list[str]) -> Tensor:
        return torch.linspace(0, 1, 12).reshape(1, 2, 2, 3).expand(len(hashes), -1, -1, -1)


def answers(benchmark: Benchmark, vlm: VLM, tokenizer: Tokenizer, folder: Path) -> list[Answer]:
    inputs = Inputs(tokenizer, COBRA, [], VISUAL_TOKENS, Features())
    evaluate(vlm, [benchmark], inputs, EvaluationConfig(batch_size=2), folder=folder)
    read = PredictionFile(folder, benchmark).answers
    return [read[question.id] for question in benchmark.questions]


def by_hand(benchmark: Benchmark, vlm: VLM, tokenizer: Tokenizer, firsts: bool) -> list[Tensor]:
    """The softmax over the choices, one row at a time: of first tokens, or of whole texts with the end token."""
    encoder = ConversationEncoder(tokenizer, COBRA, VISUAL_TOKENS)
    found = []
    for question in benchmark.questions:
        prompt = encoder.prompt_ids(question.body, has_image=True, key="")
        likelihoods = []
        for choice in benchmark.choices_of(question):
            ids = encoder.answer_ids(choice)
            assert ids[-1] == tokenizer.eos_id
            ids = ids[:1] if firsts else ids
            row = collate([Row("", prompt + ids, [-100] * len(prompt) + ids)], pad_id=tokenizer.pad_id)
            assert (row["input_ids"] == IMAGE_TOKEN_ID).sum() == VISUAL_TOKENS
            likelihoods.append(vlm.answer_log_likelihood(row | {"features": Features().get([""])}))
        found.append(torch.cat(likelihoods).softmax(dim=0))
    return found


@pytest.mark.parametrize(
    ("attributes", "firsts"),
    [
        ({"choices": ("red", "blue", "green")}, True),
        ({"choices": ("red car", "blue car", "green", "a b c")}, False),
        ({"choices": ("red", "red car", "blue")}, False),
        ({"own": (("red", "blue"), ("red", "a", "red car", "c"), ("c", "red", "b"))}, False),
        ({"own": (("red", "blue"), ("b", "red")), "choices": ("red", "blue")}, False),
    ],
)
def test_choices_are_compared_by_one_rule(
    attributes: dict[str, Any], firsts: bool, vlm: VLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    benchmark = colours(tmp_path, **attributes)
    given = answers(benchmark, vlm, tokenizer, tmp_path / "answers")
    expected = by_hand(benchmark, vlm, tokenizer, firsts)
    for question, answer, shares in zip(benchmark.questions, given, expected, strict=True):
        assert answer.probabilities == pytest.approx(shares.tolist(), abs=1e-5)
        choices = benchmark.choices_of(question)
        assert benchmark.answer_text(question, answer) == choices[int(shares.argmax())]
    assert read_results(benchmark, tmp_path / "answers" / "colours.jsonl") == {
        question.id: answer for question, answer in zip(benchmark.questions, given, strict=True)
    }


def test_two_choices_are_kept_as_one_probability(vlm: VLM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    benchmark = colours(tmp_path, choices=("red", "blue"))
    given = answers(benchmark, vlm, tokenizer, tmp_path / "answers")
    assert given[0].probability == pytest.approx(float(by_hand(benchmark, vlm, tokenizer, True)[0][0]), abs=1e-6)
    line = json.loads((tmp_path / "answers" / "colours.jsonl").read_text().splitlines()[0])
    assert line["p_red"] == given[0].probability


def test_choices_that_cannot_be_told_apart_are_refused(vlm: VLM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for choices in (("red", "red"), ("unknown", "words")):
        with pytest.raises(UserError, match="two of its choices are the same tokens"):
            answers(colours(tmp_path, choices=choices), vlm, tokenizer, tmp_path / "answers")


def test_the_likeliest_choice_is_the_answer_and_the_first_of_equals(tmp_path: Path) -> None:
    benchmark = colours(tmp_path, choices=("red", "blue", "green"))
    question = benchmark.questions[0]
    said = [
        benchmark.answer_text(question, Answer(probabilities=each))
        for each in ((0.2, 0.4, 0.4), (0.5, 0.1, 0.4), (0.0, 0.0, 1.0))
    ]
    assert said == ["blue", "red", "green"]
    with pytest.raises(UserError, match="2 probabilities for 3 choices"):
        benchmark.judge(question, Answer(probabilities=(0.4, 0.6)))


def test_baselines_of_choices(tmp_path: Path) -> None:
    one = baselines(colours(tmp_path, choices=("blue", "red", "green", "a")))
    assert (one["constant"].answer, one["constant"].score, one["chance"].score) == ("red", 100.0, 25.0)
    # Each question has its own: a constant is a place.
    own = baselines(colours(tmp_path, own=(("red", "b"), ("red", "a", "b", "c"), ("c", "red", "b"))))
    assert (own["constant"].answer, own["constant"].score) == ("choice 1", pytest.approx(200 / 3))
    assert own["chance"].score == pytest.approx(100 * (1 / 2 + 1 / 4 + 1 / 3) / 3)


def test_questions_with_other_choices_are_other_questions(tmp_path: Path) -> None:
    here, there = (colours(tmp_path, own=(("red", other),)) for other in ("a", "b"))
    assert here.digests["questions_sha256"] != there.digests["questions_sha256"]
    assert replace(here.questions[0], choices=()) == replace(there.questions[0], choices=())


# -- Metrics over the corpus ------------------------------------------------------------------------------------------


def mean_of(statistics: np.ndarray) -> float:
    return float(statistics.mean())


def test_a_mean_by_drawing_images_anew_is_as_wide_as_by_the_formula() -> None:
    rng = np.random.default_rng(1)
    images = np.repeat(np.arange(80), 3)
    scores = (rng.random(240) < np.repeat(rng.random(80), 3)).astype(float)
    drawn, known = bootstrap(mean_of, scores, images), score_interval(scores, images)
    assert drawn.mean == pytest.approx(known.mean)
    assert (drawn.low, drawn.high) == pytest.approx((known.low, known.high), abs=0.01)
    assert drawn == bootstrap(mean_of, scores, images)


def test_the_interval_of_a_figure_without_variance_or_with_one_image() -> None:
    perfect, known = bootstrap(mean_of, np.ones(20), range(20)), score_interval(np.ones(20), range(20))
    assert (perfect.low, perfect.high) == pytest.approx((known.low, known.high))
    assert perfect.low < 1.0
    alone = bootstrap(mean_of, np.full(5, 0.4), ["one"] * 5)
    assert (alone.mean, alone.low, alone.high) == (0.4, 0.0, 1.0)


def test_several_runs_of_one_figure() -> None:
    runs = [bootstrap(mean_of, level + 0.001 * np.arange(30), range(30)) for level in (0.4, 0.5)]
    together = mean_estimate(runs)
    assert together.mean == pytest.approx(sum(run.mean for run in runs) / 2)
    assert together.se > max(run.se for run in runs)  # seeds count too
    assert mean_estimate(runs[:1]).se == pytest.approx(runs[0].se)


def test_the_demo_and_the_ocr_variants_know_their_folders() -> None:
    assert (get("textvqa_llava").folder, get("textvqa_llava").always_asked) == ("textvqa", "llava")
    assert get("demo_vqa").official_questions is None
