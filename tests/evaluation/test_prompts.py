"""Prompts as YAML: the styles that come with Ablate, files of one's own, and what is wrong with them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablate.core.errors import UserError
from ablate.evaluation import benchmarks, prompts
from ablate.evaluation.answers import asked_of
from ablate.evaluation.benchmarks import Answer, Benchmark
from ablate.evaluation.check import check
from ablate.evaluation.submissions import write_submission

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
    assert ask["vsr", "bare"] == "{caption}"


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


@pytest.fixture
def registered() -> Iterator[Callable[..., type[Benchmark]]]:
    """registered("my_gqa", parent, **attributes): a subclass of a benchmark under a name of its own, for one test."""
    made = []

    def register(name: str, parent: type[Benchmark], **attributes: Any) -> type[Benchmark]:
        made.append(name)
        return benchmarks.benchmark(name)(type(name.title(), (parent,), attributes))

    yield register
    for name in made:
        del benchmarks.registry._members[name]


def kind_of(name: str) -> type[Benchmark]:
    return type(benchmarks.create(name, "."))


@pytest.mark.parametrize("style", prompts.styles())
@pytest.mark.parametrize("name", OFFICIAL)
def test_a_subclass_is_asked_as_its_parent_and_leaves_it_alone(
    name: str, style: str, roots: dict[str, Path], registered: Any, tmp_path: Path
) -> None:
    parent = benchmarks.create(name, roots[name], prompt=style, expected=None)
    bodies = [question.body for question in parent.questions]
    registered("my_own", kind_of(name))
    registered("my_owns_own", kind_of("my_own"))
    for own in ("my_own", "my_owns_own"):
        mine = benchmarks.create(own, roots[name], prompt=style, expected=None)
        assert mine.name == own
        assert mine.prompt_text == parent.prompt_text
        assert [question.body for question in mine.questions] == bodies
        assert own in benchmarks.names()
        path = write_submission(tmp_path, mine, mine.questions, {q.id: Answer(text="yes") for q in mine.questions})
        assert path.stem == own
    again = benchmarks.create(name, roots[name], prompt=style, expected=None)
    assert (again.name, [question.body for question in again.questions]) == (name, bodies)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_prompt_file_may_name_the_subclass_the_parent_or_both(
    name: str, roots: dict[str, Path], registered: Any, tmp_path: Path
) -> None:
    registered("my_own", kind_of(name))
    field = "{caption}" if name == "vsr" else "{question}"
    both = f"{name}: 'parent {field}'\nmy_own: 'mine {field}'\n"
    assert create(name, tmp_path / "both.yaml", both).prompt_text == f"parent {field}"
    assert create("my_own", tmp_path / "both.yaml", both).prompt_text == f"mine {field}"
    parent = f"{name}: 'parent {field}'\n"
    assert create("my_own", tmp_path / "parent.yaml", parent).prompt_text == f"parent {field}"
    with pytest.raises(UserError, match=rf"mine\.yaml has no prompt for {name}; it has those of my_own"):
        create(name, tmp_path / "mine.yaml", f"my_own: 'mine {field}'\n")


def test_a_benchmark_of_another_package_brings_its_default_prompt(
    roots: dict[str, Path], registered: Any, tmp_path: Path
) -> None:
    methods = {name: vars(kind_of("gqa"))[name] for name in ("read_questions", "_question", "comparison")}
    facts = {"title": "T", "split": "s", "official_questions": 4, "official_images": 3, "result_fields": {}}
    registered("theirs", Benchmark, **methods, **facts, default_prompt="Say: {question}")
    for style in prompts.styles():
        assert benchmarks.create("theirs", roots["gqa"], prompt=style).questions[0].body.startswith("Say: What colour")
    with pytest.raises(UserError, match="has no prompt for theirs"):
        create("theirs", tmp_path / "mine.yaml", "gqa: '{question}'")
    registered("promptless", Benchmark, **methods, **facts)
    with pytest.raises(UserError, match="promptless has no default_prompt"):
        benchmarks.create("promptless", roots["gqa"])
    silent = benchmarks.create("promptless", roots["gqa"], asks=False)  # to score or check, none is needed
    assert [question.body for question in silent.questions] == [""] * 4
    assert check(silent).sound


@pytest.mark.parametrize("name", OFFICIAL)
def test_what_asks_nothing_reads_the_same_questions_without_a_prompt(name: str, small: Small) -> None:
    asking, silent = small(name), small(name, asks=False)
    assert [replace(question, body="") for question in asking.questions] == silent.questions
    assert silent.prompt == silent.prompt_text == ""


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
