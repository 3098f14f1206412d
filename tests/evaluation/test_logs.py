"""Logs of other packages, in the very layouts that they write: joined without doubt, or refused with the reason."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablate.cli import main
from ablate.core import config as config_io
from ablate.core.errors import UserError
from ablate.core.files import write_json
from ablate.evaluation.benchmarks import Benchmark, Question
from ablate.evaluation.official import benchmark_for, read_results, score
from ablate.runs.config import RunConfig
from ablate.runs.folder import RunFiles, write_result
from ablate.tables.ablation import ablation_table
from ablate.tables.results import collect

SHORT = "Answer the question using a single word or phrase."
SPLITS = ("random", "popular", "adversarial")
Record = dict[str, Any]


def answer_of(question: Question) -> str:
    """Another text for every question, so that a row in the wrong place shows."""
    return f"No, {question.id}" if sum(map(ord, question.id)) % 2 else f"yes {question.id}"


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read(benchmark: Benchmark, path: Path) -> dict[str, str | None]:
    return {qid: answer.text for qid, answer in read_results(benchmark, path).items()}


def right(questions: list[Question]) -> dict[str, str]:
    return {question.id: answer_of(question) for question in questions}


# -- LLaVA: model_vqa_loader.py ---------------------------------------------------------------------------------------


def llava(qid: str | int, prompt: str, text: str) -> Record:
    return {
        "question_id": qid, "prompt": prompt, "text": text, "answer_id": "ngXHdM4mxRb3iMMbLdd7mq",
        "model_id": "llava-v1.5-7b", "metadata": {},
    }  # fmt: skip


def llava_log(benchmark: Benchmark) -> list[Record]:
    """As LLaVA's question files have the ids: POPE's count through the splits, TextVQA's are the images'."""
    questions = benchmark.questions
    if benchmark.name == "pope":
        by_split = [q for split in ("adversarial", "popular", "random") for q in questions if q.types["split"] == split]
        return [llava(n, f"{q.text}\n{SHORT}", answer_of(q)) for n, q in enumerate(by_split)]
    if benchmark.name == "textvqa":
        ocr = "Reference OCR token: NOKIA, 2"
        return [llava(q.image.stem, f"{q.text.capitalize()}\n{ocr}\n{SHORT}", answer_of(q)) for q in questions]
    if benchmark.name == "vqav2":
        return [llava(int(q.id), f"{q.text}\n{SHORT}", answer_of(q)) for q in questions]
    return [llava(q.id, f"{q.text}\n{SHORT}", answer_of(q)) for q in questions]


# -- lmms-eval: evaluation_tracker.py ---------------------------------------------------------------------------------


def lmms_eval_log(benchmark: Benchmark, release: str, questions: list[Question] | None = None) -> list[Record]:
    """0.2.4 keeps the document; later releases drop it, and lists of one answer. POPE's task `pope` has all splits."""
    records = []
    for doc_id, question in enumerate(questions or benchmark.questions):
        text, prompt = answer_of(question), f"{question.text}\n{SHORT}"
        target = question.answers[0] if len(question.answers) == 1 else "answer"
        record: Record = {"doc_id": doc_id, "target": target}
        if release == "0.2.4":
            record |= {
                "doc": {"question": question.text},
                "arguments": {"0": "max_new_tokens"},
                "resps": [[text]],
                "filtered_resps": [text],
            }
        else:
            record |= {"filtered_resps": [text] if release == "0.5.0" else text, "token_counts": [None]}
        record |= {"doc_hash": "5e88", "prompt_hash": "4898", "target_hash": "da28"}
        if benchmark.name == "pope":
            number = int(question.id.partition("/")[2])
            detail = {"question_id": number, "score": 1.0, "prediction": text.lower(), "ground_truth": target}
            record |= {"pope_accuracy": detail, "pope_f1_score": detail}
        elif benchmark.name == "textvqa":
            record |= {"exact_match": 0.3, "submission": {"question_id": int(question.id), "answer": text.lower()}}
        elif benchmark.name == "vizwiz":
            record |= {"exact_match": 0.3, "submission": {"image": question.id, "answer": text.lower()}}
        else:
            record |= {"exact_match": 0.3}
        records.append(record | {"input": prompt})
    return records


def pope_log(benchmark: Benchmark, split: str) -> list[Record]:
    """POPE's own answer file, one for each split: README, "Evaluation"."""
    questions = [question for question in benchmark.questions if question.types["split"] == split]
    return [{"question": question.text.lower(), "answer": answer_of(question)} for question in questions]


NAMES = ("vqav2", "gqa", "textvqa", "pope", "vizwiz", "vsr")
LOGS: dict[str, Callable[[Benchmark], list[Record]]] = {
    "llava": llava_log,
    **{
        f"lmms-eval {release}": (lambda benchmark, release=release: lmms_eval_log(benchmark, release))
        for release in ("0.2.4", "0.5.0", "0.7")
    },
}
ALL = [(name, log) for name in NAMES for log in LOGS]


@pytest.fixture
def loaded(roots: dict[str, Path]) -> Callable[[str], Benchmark]:
    return lambda name: benchmark_for(name, roots[name], "generate" if name in ("pope", "vsr") else None)


# -- Taken ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "log"), ALL)
def test_every_row_finds_its_question(name: str, log: str, loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded(name)
    records, expected = LOGS[log](benchmark), right(benchmark.questions)
    assert read(benchmark, write(tmp_path / "log.jsonl", records)) == expected
    for seed in range(5):  # rows of several processes come in any order
        random.Random(seed).shuffle(records)
        assert read(benchmark, write(tmp_path / "log.jsonl", records)) == expected
    (tmp_path / "log.json").write_text(json.dumps(records))
    assert read(benchmark, tmp_path / "log.json") == expected


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("named", [True, False])
def test_popes_own_files_are_of_one_split(split: str, named: bool, loaded: Any, roots: Any, tmp_path: Path) -> None:
    benchmark = loaded("pope")
    path = write(tmp_path / (f"answers_{split}.json" if named else "answers.json"), pope_log(benchmark, split))
    expected = right([question for question in benchmark.questions if question.types["split"] == split])
    assert read(benchmark, path) == expected
    alone = benchmark_for("pope", roots["pope"] / f"coco_pope_{split}.json", "generate")
    assert read(alone, path) == expected
    scored = score(benchmark, read_results(benchmark, path), "generate")
    assert scored.partial


@pytest.mark.parametrize(("task", "split"), [("pope_random", "random"), ("pope_pop", "popular"),
                                              ("pope_adv", "adversarial")])  # fmt: skip
def test_lmms_evals_tasks_name_popes_splits(task: str, split: str, loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded("pope")
    questions = [question for question in benchmark.questions if question.types["split"] == split]
    records = lmms_eval_log(benchmark, "0.7", questions)
    random.Random(0).shuffle(records)
    assert read(benchmark, write(tmp_path / f"20250811_samples_{task}.jsonl", records)) == right(questions)


@pytest.mark.parametrize("order", [SPLITS, SPLITS[::-1], ("popular", "random", "adversarial")])
def test_lmms_evals_pope_has_the_splits_one_after_the_other(order: Any, loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded("pope")
    questions = [q for split in order for q in benchmark.questions if q.types["split"] == split]
    path = write(tmp_path / "samples_pope.jsonl", lmms_eval_log(benchmark, "0.7", questions))
    assert read(benchmark, path) == right(questions)


def test_the_category_tells_popes_split(loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded("pope")
    records = lmms_eval_log(benchmark, "0.2.4")
    for record, question in zip(records, benchmark.questions, strict=True):
        split, _, number = question.id.partition("/")
        record["doc"] = {"id": "7", "question_id": number, "question": question.text, "category": split}
        record["doc_id"] = 0  # not needed
    random.Random(0).shuffle(records)
    assert read(benchmark, write(tmp_path / "samples_pope.jsonl", records)) == right(benchmark.questions)


@pytest.mark.parametrize("field", ["text", "answer"])
def test_ids_are_enough_where_the_split_is_known(field: str, loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded("pope")
    questions = [question for question in benchmark.questions if question.types["split"] == "popular"]
    records = [{"question_id": int(q.id.partition("/")[2]), field: answer_of(q)} for q in questions][::-1]
    assert read(benchmark, write(tmp_path / "my_popular_answers.jsonl", records)) == right(questions)
    with pytest.raises(UserError, match=r"with no split in the row or the file's name"):
        read(benchmark, write(tmp_path / "answers.jsonl", records))


def test_gqas_right_answers_tell_the_place_where_no_question_is_kept(loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded("gqa")
    records = lmms_eval_log(benchmark, "0.7")
    for record in records:
        del record["input"]
    assert read(benchmark, write(tmp_path / "log.jsonl", records[::-1])) == right(benchmark.questions)
    records[1]["target"], records[0]["target"] = records[0]["target"], records[1]["target"]
    with pytest.raises(UserError, match="cannot be joined"):
        read(benchmark, write(tmp_path / "log.jsonl", records))


def test_textvqas_rows_of_one_image_are_told_apart_by_the_question(loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded("textvqa")
    records = llava_log(benchmark)
    assert records[0]["question_id"] == records[1]["question_id"]
    assert read(benchmark, write(tmp_path / "log.jsonl", records[::-1])) == right(benchmark.questions)


# -- Refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "log"), ALL)
def test_missing_rows_are_refused(name: str, log: str, loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded(name)
    records = LOGS[log](benchmark)
    for left_out in range(len(records)):
        path = write(tmp_path / "log.jsonl", [*records[:left_out], *records[left_out + 1 :]])
        with pytest.raises(UserError, match=r"(?s)log\.jsonl.*(1 without an answer|cannot be joined)"):
            read(benchmark, path)


def refuse(benchmark: Benchmark, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(benchmark, path)
    said = str(caught.value)
    assert path.name in said
    return said


@pytest.mark.parametrize(("name", "log"), ALL)
def test_rows_that_come_twice_are_refused(name: str, log: str, loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded(name)
    records = LOGS[log](benchmark)
    for twice in range(len(records)):
        said = refuse(benchmark, write(tmp_path / "log.jsonl", [*records, records[twice]]))
        assert re.search("answered more than once|occur more than once|cannot be joined|do not tell which", said)


@pytest.mark.parametrize(("name", "log"), ALL)
def test_rows_of_another_benchmark_are_refused(name: str, log: str, loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded(name)
    records = LOGS[log](benchmark)
    if log == "llava":
        foreign = llava("999999", f"Why is the sky blue?\n{SHORT}", "yes")
    else:
        foreign = records[0] | {"doc_id": len(records), "input": "Why is the sky blue?", "target": "air",
                                "doc": {"question": "Why is the sky blue?"}}  # fmt: skip
        foreign |= {"submission": {"question_id": 999_999, "image": "no_such.jpg"}}
    for place in range(len(records) + 1):
        refuse(benchmark, write(tmp_path / "log.jsonl", [*records[:place], foreign, *records[place:]]))
    refuse(benchmark, write(tmp_path / "log.jsonl", [foreign]))


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize(("name", "other"), [(a, b) for a in NAMES for b in NAMES if a != b])
def test_the_log_of_one_benchmark_is_not_anothers(name: str, other: str, log: str, loaded: Any, tmp_path: Path) -> None:
    refuse(loaded(name), write(tmp_path / "log.jsonl", LOGS[log](loaded(other))))


def test_popes_own_files_are_refused_out_of_order(loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded("pope")
    records = pope_log(benchmark, "adversarial")
    records[1], records[3] = records[3], records[1]
    said = refuse(benchmark, write(tmp_path / "answers_adversarial.json", records))
    assert "compared with adversarial" in said
    assert "line 2 asks 'is there a thing 3" in said
    assert "which must be that of the questions" in said


def test_popes_splits_that_cannot_be_told_apart_are_refused(loaded: Any, roots: Any, tmp_path: Path) -> None:
    for split in SPLITS:  # three files with the same questions
        lines = (roots["pope"] / "coco_pope_adversarial.json").read_text()
        (roots["pope"] / f"coco_pope_{split}.json").write_text(lines)
    benchmark = loaded("pope")
    records = pope_log(benchmark, "popular")
    assert "fits 3 ways" in refuse(benchmark, write(tmp_path / "answers.json", records))
    named = write(tmp_path / "answers_popular.json", records)
    assert set(read(benchmark, named)) == {q.id for q in benchmark.questions if q.types["split"] == "popular"}


@pytest.mark.parametrize("name", ["gqa", "vqav2", "vizwiz", "vsr"])
@pytest.mark.parametrize("log", ["llava", "lmms-eval 0.7"])
def test_a_question_that_is_not_the_ids_is_refused(name: str, log: str, loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded(name)
    records = LOGS[log](benchmark)
    key = "prompt" if log == "llava" else "input"
    records[0][key], records[2][key] = records[2][key], records[0][key]
    assert " asks " in refuse(benchmark, write(tmp_path / "log.jsonl", records))


def test_another_right_answer_is_refused(loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded("gqa")
    records = lmms_eval_log(benchmark, "0.7")
    records[0]["target"] = "blue"
    assert "has the right answer 'blue'" in refuse(benchmark, write(tmp_path / "log.jsonl", records))


def test_a_place_alone_is_no_proof(loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded("vqav2")
    records = [{"doc_id": n, "filtered_resps": ["yes"], "target": ""} for n in range(len(benchmark.questions))]
    assert "its place alone is no proof" in refuse(benchmark, write(tmp_path / "log.jsonl", records))


@pytest.mark.parametrize("responses", [["a", "b"], [["a"], ["b"]], [], 7, None, [[3.5, True]]])
def test_several_responses_are_refused(responses: Any, loaded: Any, tmp_path: Path) -> None:
    benchmark = loaded("gqa")
    records = lmms_eval_log(benchmark, "0.7")
    records[2]["filtered_resps"] = responses
    assert "line 3: expected one response" in refuse(benchmark, write(tmp_path / "log.jsonl", records))


def test_a_text_has_no_probability(roots: dict[str, Path], loaded: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", llava_log(loaded("vsr")))
    with pytest.raises(UserError, match="score it with --mode generate"):
        read(benchmark_for("vsr", roots["vsr"], "likelihood"), path)


def test_popes_question_file_is_no_log(roots: dict[str, Path], loaded: Any) -> None:
    refuse(loaded("pope"), roots["pope"] / "coco_pope_random.json")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)
KEYS = ["doc_id", "filtered_resps", "resps", "doc", "target", "input", "question_id", "text", "prompt", "answer",
        "question", "category", "submission"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(records=st.lists(st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=6) | ANYTHING, max_size=4))
def test_whatever_a_log_holds_the_error_is_a_message(name: str, records: list, loaded: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log\.jsonl"):
        read(loaded(name), write(tmp_path / "log.jsonl", records))


# -- Into the table ---------------------------------------------------------------------------------------------------


def test_answers_that_lmms_eval_asked_for_enter_the_table(loaded, roots, make_run, tmp_path, capsys):
    run = make_run("asked")
    write_json(RunFiles(run).training, {"train": {}, "cost": {}})
    write_result(RunFiles(run), config_io.load(RunConfig, [RunFiles(run).config]), {}, 0.0)
    log = write(tmp_path / "samples_gqa.jsonl", lmms_eval_log(loaded("gqa"), "0.7"))
    command = ["score", "gqa", "--predictions", str(log), "--annotations", str(roots["gqa"]), "--run", str(run)]
    for _ in range(2):  # again is the same
        assert main([*command, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
    table = ablation_table(collect([run]))
    assert table.tasks == ("gqa",)
    assert table.rows[0].cells["gqa"].mean == pytest.approx(printed["scores"]["overall"] / 100)
    assert any("answers read from samples_gqa.jsonl" in note for note in table.notes)
    (folder,) = run.glob("read-*")
    lines = (folder / "predictions" / "gqa.jsonl").read_text()
    (folder / "predictions" / "gqa.jsonl").write_text(lines + "\n")
    assert "§" in ablation_table(collect([run])).rows[0].marks  # edited
