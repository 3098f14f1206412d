"""Prompts as YAML: the styles that come with Ablate, files of one's own, and what is wrong with them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ablate.errors import UserError
from ablate.evaluation import benchmarks, prompts
from ablate.evaluation.benchmarks import Benchmark
from ablate.evaluation.predictions import asked_of

OFFICIAL = ("vqav2", "gqa", "textvqa", "pope", "vizwiz", "vsr")
SHORT = "Answer the question using a single word or phrase."
Small = Callable[..., Benchmark]


def create(name: str, path: Path, text: str) -> Benchmark:
    path.write_text(text)
    return benchmarks.create(name, ".", prompt=str(path))


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("style", prompts.styles())
def test_every_style_asks_every_benchmark(style: str, name: str, small: Small) -> None:
    benchmark = small(name, prompt=style)
    assert benchmark.prompt == style
    assert all(question.text.lower() in question.body.lower() for question in benchmark.questions)


def test_styles() -> None:
    assert prompts.styles() == ("bare", "cobra", "llava", "official")
    assert benchmarks.create("gqa", ".").prompt == benchmarks.create("gqa", ".", prompt="plain").prompt == "official"


@pytest.mark.parametrize("name", sorted(set(OFFICIAL) - {"textvqa"}))
def test_llava_and_cobra_differ_in_textvqa_alone(name: str) -> None:
    texts = {benchmarks.create(name, ".", prompt=style).prompt_text for style in ("official", "llava", "cobra")}
    assert len(texts) == 1


def test_the_texts_to_the_letter() -> None:
    ask = {
        (name, style): benchmarks.create(name, ".", prompt=style).prompt_text
        for name in OFFICIAL
        for style in prompts.styles()
    }
    assert ask["vqav2", "official"] == ask["gqa", "official"] == ask["pope", "official"] == f"{{question}}\n{SHORT}"
    assert ask["textvqa", "official"] == f"{{question}}\n{SHORT}"
    assert ask["textvqa", "llava"] == f"{{Question}}\nReference OCR token: {{ocr}}\n{SHORT}"
    assert ask["textvqa", "cobra"] == f"Reference OCR token: {{ocr}}\n{{Question}}\n{SHORT}"
    assert ask["vizwiz", "official"] == (
        f"{{question}}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}"
    )
    assert ask["vsr", "official"] == (
        'Based on the image, is this statement "True" or "False"? {caption}\nRespond with "True" or "False" directly.'
    )
    assert ask["vsr", "bare"] == "{caption} True or False?"


def test_a_file_of_ones_own(roots: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('gqa: "Q {{x}}: {question} A:"\n')
    benchmark = benchmarks.create("gqa", roots["gqa"], prompt=str(path))
    assert benchmark.questions[0].body == "Q {x}: What colour is the car? A:"
    # What was asked is kept in full, and braces in a question are only braces.
    assert asked_of(benchmark)["prompt"] == str(path)
    assert asked_of(benchmark)["prompt_text"] == "Q {{x}}: {question} A:"
    assert benchmark.body("{ocr}?") == "Q {x}: {ocr}? A:"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gqa: '{qestion}'", r'mine\.yaml, gqa: Unknown placeholder "qestion"\. Did you mean question\? Choices: Ques'),
        ("gqa: '{ocr}'", r'Unknown placeholder "ocr".*Choices: Question, question'),
        ("gqa: '{question.text}'", r'Unknown placeholder "question\.text"'),
        ("gqa: '{}'", r'Unknown placeholder ""'),
        ("gqa: '{question!r}'", r"takes neither a format nor a conversion"),
        ("gqa: '{question:>9}'", r"takes neither a format nor a conversion"),
        ("gqa: '{question'", r"mine\.yaml, gqa: .*A plain brace is written twice; placeholders are \{question\}"),
        ("gqa: What is it?", r"no placeholder.*Use \{question\}, \{Question\}"),
        ("gqa: 7", r"mine\.yaml, gqa: expected the prompt's text, got 7"),
        ("vqav2: '{question}'", r"mine\.yaml has no prompt for gqa; it has those of vqav2"),
        ("qga: '{question}'", r'mine\.yaml: Unknown benchmark "qga"\. Did you mean gqa'),
        ("- gqa", r"mine\.yaml: expected a mapping"),
    ],
)
def test_a_mistake_is_answered_with_the_choices(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        create("gqa", tmp_path / "mine.yaml", text)


def test_textvqa_is_asked_with_and_without_ocr_words_in_one_run(roots: dict[str, Path]) -> None:
    names = ["textvqa", "textvqa_llava", "textvqa_cobra"]
    pure, llava, cobra = benchmarks.create_all(names, roots["textvqa"].parent, prompt="bare")
    assert [each.name for each in (pure, llava, cobra)] == names
    assert [each.prompt for each in (pure, llava, cobra)] == ["bare", "llava", "cobra"]
    assert [each.questions[0].body for each in (pure, llava, cobra)] == [
        "what is the Brand?",
        f"What is the brand?\nReference OCR token: NOKIA, 0\n{SHORT}",
        f"Reference OCR token: NOKIA, 0\nWhat is the brand?\n{SHORT}",
    ]
    assert pure.questions[0].image_id == llava.questions[0].image_id  # the same photos
    assert llava.n_expected == 5_000


def test_unknown_styles_and_files() -> None:
    with pytest.raises(UserError, match=r'Unknown prompt "offical"\. Did you mean official\?.*bare, cobra, llava'):
        benchmarks.create("gqa", ".", prompt="offical")
    with pytest.raises(UserError, match=r"no prompt file nowhere\.yaml\. Prompts by name: bare, cobra, llava"):
        benchmarks.create("gqa", ".", prompt="nowhere.yaml")


def test_settings_reach_the_benchmarks(roots: dict[str, Path]) -> None:
    root = roots["gqa"].parent
    chosen = benchmarks.create_all(
        ["vqav2", "pope", "vsr"],
        root,
        prompt="bare",
        answering="generate",
        modes={"vqav2": "official_2016"},
        partial=True,
    )
    assert [each.answering for each in chosen] == ["generate"] * 3
    assert [each.mode for each in chosen] == ["official_2016", "official", "official"]
    assert all(each.prompt == "bare" and each.partial for each in chosen)
    assert [
        each.answering for each in benchmarks.create_all(["vqav2", "pope", "vsr"], root, answering="likelihood")
    ] == [
        "generate",
        "likelihood",
        "likelihood",
    ]
    with pytest.raises(UserError, match=r'answering mode "likely".*likelihood'):
        benchmarks.create_all(["pope"], root, answering="likely")
    with pytest.raises(UserError, match=r'benchmark in modes "vqa2".*vqav2'):
        benchmarks.create_all(["vqav2"], root, modes={"vqa2": "official_2016"})
