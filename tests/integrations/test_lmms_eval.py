"""A run of ours inside lmms-eval, and lmms-eval's scores beside ours. Skipped where the package is not installed."""

import importlib.metadata
import json
import random
import runpy
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip(
    "lmms_eval", reason="lmms-eval is not installed: pip install --no-deps lmms-eval, and what it asks for"
)

from lmms_eval import tasks as lmms_tasks
from lmms_eval.api.metrics import exact_match_hf_evaluate
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models.registry_v2 import ModelRegistryV2
from lmms_eval.tasks.pope import utils as pope
from lmms_eval.tasks.textvqa.utils import textvqa_process_results
from lmms_eval.tasks.vizwiz_vqa.utils import vizwiz_vqa_process_results
from lmms_eval.tasks.vqav2.utils import vqav2_process_results_val

from ablate.core.errors import UserError
from ablate.evaluation import benchmarks
from ablate.evaluation.asking import Inputs, evaluate
from ablate.evaluation.benchmarks import Answer, Judged
from ablate.evaluation.benchmarks.pope import yes_no_figures
from ablate.integrations.lmms_eval import Ablate
from ablate.runs.config import EvaluationConfig
from datamodules.batches.collate import Row, collate

ROOT = Path(__file__).parents[2]
WRITERS = runpy.run_path(str(ROOT / "tests" / "evaluation" / "conftest.py"))["WRITERS"]

# What normalisers stumble over, and what the questions of the tiny benchmarks have for answers.
PIECES = [
    "Yes",
    "no",
    "two",
    "2",
    "the",
    "a",
    ",",
    ".",
    "1,000",
    "joe's",
    "t-shirt",
    "dont",
    "?",
    "unanswerable",
    "nokia",
    " ",
    "\n",
    "-",
]
ANSWERS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


# -- Registration -----------------------------------------------------------------------------------------------------


def test_lmms_eval_finds_the_model_by_its_entry_point() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    entry_point = importlib.metadata.EntryPoint("ablate", declared["ablate"], "lmms_eval.models")
    registry = ModelRegistryV2()
    registry._select_entry_points = lambda group: [entry_point] * (group == entry_point.group)
    registry.load_entrypoint_manifests()
    assert registry.get_model_class("ablate") is Ablate


def test_the_installed_package_lists_the_model() -> None:
    if not importlib.metadata.entry_points(group="lmms_eval.models", name="ablate"):
        pytest.skip("the installed ablate is older than its entry point: pip install -e . again")
    from lmms_eval.models import get_model

    assert get_model("ablate") is Ablate


# -- Parity of scores -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], benchmarks.Benchmark]:
    root = tmp_path_factory.mktemp("benchmarks")
    made: dict[str, benchmarks.Benchmark] = {}

    def create(name: str) -> benchmarks.Benchmark:
        if name not in made:
            WRITERS[name](root / name)
            made[name] = benchmarks.create(name, root / name, expected=None, mode="lmms_eval", answering="generate")
        return made[name]

    return create


def humans(question: benchmarks.Question) -> list[dict[str, Any]]:
    return [{"answer": answer, "answer_id": number} for number, answer in enumerate(question.answers)]


def by_processor(process: Callable[[dict[str, Any], list[str]], dict[str, Any]], question: Any, text: str) -> float:
    return process({"answers": list(question.answers), "question_id": question.id}, [text])["exact_match"]


def by_vqav2(question: benchmarks.Question, text: str) -> float:
    return vqav2_process_results_val({"answers": humans(question), "question_id": question.id}, [text])["exact_match"]


def by_gqa(question: benchmarks.Question, text: str) -> float:
    options = {"ignore_case": True, "ignore_punctuation": True}  # of its gqa.yaml
    return exact_match_hf_evaluate([text], [question.answers[0]], **options)["exact_match"]


def by_pope(question: benchmarks.Question, text: str) -> dict[str, Any]:
    doc = {"answer": question.answers[0], "question_id": question.id}
    return pope.pope_process_results(doc, [text])["pope_accuracy"]


THEIRS: dict[str, Callable[[benchmarks.Question, str], float]] = {
    "vqav2": by_vqav2,
    "textvqa": partial(by_processor, textvqa_process_results),
    "vizwiz": partial(by_processor, vizwiz_vqa_process_results),
    "gqa": by_gqa,
    "pope": lambda question, text: by_pope(question, text)["score"],
}


@pytest.mark.parametrize("name", THEIRS)
@settings(max_examples=60, deadline=None)
@given(text=ANSWERS)
def test_an_answer_scores_as_in_lmms_eval(name: str, text: str, tiny: Callable[[str], benchmarks.Benchmark]) -> None:
    benchmark = tiny(name)
    for question in benchmark.questions:
        assert benchmark.judge(question, Answer(text)).score == pytest.approx(THEIRS[name](question, text), abs=1e-9)


def test_popes_figures_are_those_of_lmms_eval(tiny: Callable[[str], benchmarks.Benchmark]) -> None:
    benchmark, draw = tiny("pope"), random.Random(0)
    questions = benchmark.questions
    answers = [draw.choice(["Yes", "No", "yes", " no"]) for _ in questions]
    judged = [benchmark.judge(question, Answer(text)) for question, text in zip(questions, answers, strict=True)]
    ours = yes_no_figures(Judged(questions, *torch.tensor(judged, dtype=torch.float64).T.numpy()))
    rows = [by_pope(question, text) for question, text in zip(questions, answers, strict=True)]
    assert ours["accuracy"] == pytest.approx(100 * pope.pope_aggregate_accuracy(rows), abs=1e-9)
    assert ours["precision"] == pytest.approx(100 * pope.pope_aggregate_precision(rows), abs=1e-9)
    assert ours["recall"] == pytest.approx(100 * pope.pope_aggregate_recall(rows), abs=1e-9)
    assert ours["f1"] == pytest.approx(100 * pope.pope_aggregate_f1_score(rows), abs=1e-9)


# -- A run inside lmms-eval -------------------------------------------------------------------------------------------

TASK = """
task: local_vqa
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}, cache_dir: {cache}}}
test_split: validation
output_type: generate_until
doc_to_visual: !function local_utils.images
doc_to_text: !function local_utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4, temperature: 0, do_sample: false}}
process_results: !function local_utils.results
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """
from lmms_eval.tasks.vqav2.utils import vqav2_process_results_val as results
from PIL import Image
def images(doc): return [Image.open(doc["file"])]
def text(doc): return doc["question"]
"""


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_run_scores_the_same_inside_lmms_eval(
    batch_size: int,
    make_run: Callable[..., Path],
    tiny: Callable[[str], benchmarks.Benchmark],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    run, benchmark = make_run(), tiny("vqav2")
    model = Ablate(str(run), batch_size=batch_size, device="cpu")
    evaluate(
        model.trained.vlm,
        [benchmark],
        Inputs(
            model.trained.tokenizer,
            model.trained.encoder.template,
            model.trained.vlm.encoder.transforms,
            model.trained.vlm.num_visual_tokens,
        ),
        EvaluationConfig(max_new_tokens=4),
        folder=tmp_path / "ours",
    )
    said = [json.loads(line)["prediction"] for line in (tmp_path / "ours" / "vqav2.jsonl").open()]
    # The people now say what the model says to half of the questions, so that the score is not 0.
    questions = [
        replace(question, answers=(text,) * 10) if row % 2 else question
        for row, (question, text) in enumerate(zip(benchmark.questions, said, strict=True))
    ]
    docs = [
        {
            "question_id": question.id,
            "question": question.body,
            "file": str(question.image),
            "answer": question.answers[0],
            "answers": humans(question),
        }
        for question in questions
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_utils.py").write_text(UTILS)
    (tmp_path / "tasks" / "local.yaml").write_text(TASK.format(data=tmp_path / "docs.jsonl", cache=tmp_path / "cache"))
    found = simple_evaluate(
        model=model,
        tasks=["local_vqa"],
        task_manager=lmms_tasks.TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )
    theirs = {str(sample["doc_id"]): sample["filtered_resps"][0] for sample in found["samples"]["local_vqa"]}
    assert [theirs[str(row)] for row in range(len(said))] == said
    scores = [benchmark.judge(question, Answer(text)).score for question, text in zip(questions, said, strict=True)]
    assert found["results"]["local_vqa"]["exact_match,none"] == pytest.approx(fmean(scores), abs=1e-9)
    assert fmean(scores) >= 0.5


def requests_of(model: Ablate, texts: list[tuple[str, Any]], images: list[Image.Image | None]) -> list[Any]:
    model.task_dict = {"task": {"test": dict(enumerate(images))}}

    def visual(image: Image.Image | None) -> list[Image.Image]:
        return [] if image is None else [image]

    return [
        SimpleNamespace(args=(context, second, visual, place, "task", "test"))
        for place, (context, second) in enumerate(texts)
    ]


def test_likelihoods_are_losses_per_token_and_batches_change_nothing(make_run: Callable[..., Path]) -> None:
    run = make_run()
    texts = [("what is it", "dog"), ("is the car red ?", "Yes"), ("a", "the red car is a dog"), ("what ?", "No")]
    pictures = [Image.new("RGB", (40, 30), (200, 30, 30)), None, Image.new("RGB", (30, 40)), None]
    one, many = (Ablate(str(run), batch_size=size, device="cpu") for size in (1, 4))
    single = one.loglikelihood(requests_of(one, texts, pictures))
    together = many.loglikelihood(requests_of(many, texts, pictures))
    assert [loss for loss, _ in together] == pytest.approx([loss for loss, _ in single], abs=1e-5)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in single]
    prompt = one.trained.encoder.prompt_ids("is the car red ?", has_image=False)
    answer = [*one.trained.tokenizer.encode("Yes"), one.trained.tokenizer.eos_id]
    batch = collate([Row("", prompt + answer, [-100] * len(prompt) + answer)], pad_id=0)
    assert single[1][0] == pytest.approx(-one.trained.vlm.answer_log_likelihood(batch).item() / 2, abs=1e-6)
    prompts = [(text, {"max_new_tokens": 3}) for text, _ in texts]
    assert one.generate_until(requests_of(one, prompts, pictures)) == many.generate_until(
        requests_of(many, prompts, pictures)
    )


def test_options_of_tasks(make_run: Callable[..., Path]) -> None:
    model = Ablate(str(make_run()), device="cpu")

    def ask(**options: Any) -> str:
        [text] = model.generate_until(requests_of(model, [("what is it", options)], [None]))
        return text

    whole = ask(max_new_tokens=6)
    assert whole
    first = whole.split()[0]
    assert ask(max_new_tokens=6, until=[first]) == ""
    assert ask(max_new_tokens=6, until="never said") == whole
    assert ask(max_new_tokens=6, temperature=0.7, do_sample=False) == whole
    with pytest.raises(UserError, match="3 beams"):
        ask(num_beams=3)


def test_what_it_cannot_do_is_told(make_run: Callable[..., Path]) -> None:
    run = make_run()
    model = Ablate(str(run), device="cpu")
    [request] = requests_of(model, [("what", {})], [None])
    two = SimpleNamespace(args=(*request.args[:2], lambda doc: [Image.new("RGB", (2, 2))] * 2, *request.args[3:]))
    with pytest.raises(UserError, match=r"task, document 0: expected one image or none, got 2 \(Image, Image\)"):
        model.generate_until([two])
    with pytest.raises(UserError, match="several rounds"):
        model.generate_until_multi_round([request])
    with pytest.raises(UserError, match="batch_size is 'auto'"):
        Ablate(str(run), batch_size="auto")
