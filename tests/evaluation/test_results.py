"""Results files of any model: what they may look like, what is refused, and what comes out."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablate.errors import UserError
from ablate.evaluation.benchmarks import Answer
from ablate.evaluation.results import Scored, benchmark_for, mode_names, read_results, score
from ablate.evaluation.submissions import write_submission

OFFICIAL = ("vqav2", "gqa", "textvqa", "pope", "vizwiz", "vsr")
LINES = ("pope", "vsr")
POPE_SIZES = {"random": 2, "popular": 4, "adversarial": 6}

# Right and wrong answers to the tiny benchmarks of conftest.py.
ENTRIES: dict[str, list[dict[str, Any]]] = {
    "vqav2": [
        {"question_id": 1, "answer": "Yes"},
        {"question_id": 2, "answer": "two"},
        {"question_id": 3, "answer": "t-shirt"},
        {"question_id": 4, "answer": "yes"},
    ],
    "gqa": [
        {"questionId": "201", "prediction": "red"},
        {"questionId": "202", "prediction": "no"},
        {"questionId": "203", "prediction": "T-shirt"},
        {"questionId": "204", "prediction": "No."},
    ],
    "textvqa": [
        {"question_id": 34602, "answer": "Nokia"},
        {"question_id": 34603, "answer": "1000"},
        {"question_id": 34604, "answer": "joe 's"},
    ],
    "pope": [
        {"question_id": number + 1, "split": split, "answer": "Yes, it is." if number % 3 else "No"}
        for split, size in POPE_SIZES.items()
        for number in range(size)
    ],
    "vizwiz": [
        {"image": f"VizWiz_val_0000000{number}.jpg", "answer": answer}
        for number, answer in enumerate(("red", "unanswerable.", "blue", "Unanswerable"))
    ],
    "vsr": [{"index": row, "p_true": p} for row, p in enumerate((0.9, 0.2, 0.6, 0.6, 0.1))],
}
ID_FIELD = {"vqav2": "question_id", "gqa": "questionId", "textvqa": "question_id", "vizwiz": "image", "vsr": "index"}


def write(path: Path, name: str, entries: Any) -> Path:
    text = "".join(json.dumps(entry) + "\n" for entry in entries) if name in LINES else json.dumps(entries)
    path.write_text(text, encoding="utf-8")
    return path


def scored(name: str, root: Path, path: Path, mode: str | None = None) -> Scored:
    benchmark = benchmark_for(name, root, mode)
    return score(benchmark, read_results(benchmark, path), mode or mode_names(benchmark)[0])


@pytest.mark.parametrize(
    ("name", "mode", "overall"),
    [
        ("vqav2", None, 97.5),
        ("vqav2", "official_2021", 97.5),  # 1, 1 (9 of 10 say 2), 1 (agreed, to the letter), 0.9
        ("vqav2", "official_2016", 72.5),  # "t shirt" is not what ten people wrote; "2" is matched by five
        ("vqav2", "vlm_evaluation", 97.5),
        ("gqa", None, 75.0),
        ("gqa", "llava", 75.0),
        ("gqa", "vlm_evaluation", 50.0),
        ("gqa", "official", 25.0),
        ("textvqa", None, 100.0),
        ("pope", None, 100 / 3),
        ("pope", "generate", 100 / 3),
        ("pope", "official", 100 / 3),
        ("pope", "lmms_eval", 100 * (1 / 4 + 1 / 6) / 3),  # "yes, it is." is neither
        ("vizwiz", None, 97.5),
        ("vizwiz", "official", 97.5),
        ("vsr", None, 60.0),
        ("vsr", "likelihood", 60.0),
    ],
)
def test_scores(name: str, mode: str | None, overall: float, roots: dict[str, Path], tmp_path: Path) -> None:
    found = scored(name, roots[name], write(tmp_path / "results", name, ENTRIES[name]), mode).to_dict()
    assert found["scores"]["overall"] == pytest.approx(overall)
    assert list(found) == [
        "benchmark", "mode", "n", "n_expected", "partial", "scores", "baselines", "counts", "intervals", "split"
    ]  # fmt: skip
    assert found["benchmark"] == name
    assert found["mode"] == mode or mode is None
    assert found["n"] == len(ENTRIES[name]) < found["n_expected"]
    assert found["partial"]
    assert found["scores"]["interval"]["low"] <= found["scores"]["overall"] <= found["scores"]["interval"]["high"]
    assert 0 < found["baselines"]["constant"] <= found["baselines"]["majority"] <= 100
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_vsr_has_every_figure(roots: dict[str, Path], tmp_path: Path) -> None:
    figures = scored("vsr", roots["vsr"], write(tmp_path / "r", "vsr", ENTRIES["vsr"])).to_dict()["scores"]
    assert figures["accuracy"] == figures["overall"] == pytest.approx(60)
    assert figures["roc_auc"] == pytest.approx(75)  # true: .9 .2 .6; false: .6 .1 -> 4.5 of 6
    assert figures["ap"] == pytest.approx(100 * (1 / 3 + 1 / 3 * 2 / 3 + 1 / 3 * 3 / 4))
    assert figures["relation"] == {"left of": 100.0, "on": 50.0, "under": 50.0}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        (
            "vqav2",
            {
                "overall": 4,
                "answer_type": {"number": 1, "other": 1, "yes/no": 2},
                "question_type": {"how many": 1, "is it": 2, "what is": 1},
            },
        ),
        (
            "gqa",
            {
                "overall": 4,
                "binary": 2,
                "open": 2,
                "structural": {"query": 2, "verify": 2},
                "semantic": {"attr": 4},
                "detailed": {"attrColor": 1, "place": 1, "relS": 1, "verifyColor": 1},
            },
        ),
        ("textvqa", {"overall": 3}),
        ("pope", {"overall": 12, "split": {"adversarial": 6, "popular": 4, "random": 2}}),
        (
            "vizwiz",
            {
                "overall": 4,
                "answer_type": {"other": 1, "unanswerable": 2, "yes/no": 1},
                "answerable": 2,
                "unanswerable": 2,
            },
        ),
        ("vsr", {"overall": 5, "relation": {"left of": 1, "on": 2, "under": 2}}),
    ],
)
def test_every_part_has_its_number_and_interval(
    name: str, counts: dict[str, Any], roots: dict[str, Path], tmp_path: Path
) -> None:
    found = scored(name, roots[name], write(tmp_path / "r", name, ENTRIES[name])).to_dict()
    assert found["counts"] == counts
    assert found["split"]
    for kind, parts in counts.items():
        values = [(found["scores"][kind], found["intervals"][kind])]
        if isinstance(parts, dict):
            values = [(found["scores"][kind][value], found["intervals"][kind][value]) for value in parts]
        for figure, interval in values:
            assert 0 <= interval["low"] <= figure + 1e-9
            assert figure - 1e-9 <= interval["high"] <= 100


@pytest.mark.parametrize("name", OFFICIAL)
def test_no_image_and_no_order_is_needed(name: str, roots: dict[str, Path], tmp_path: Path) -> None:
    for image in roots[name].rglob("*.jpg"):
        image.unlink()
    path = write(tmp_path / "results", name, ENTRIES[name])
    backwards = write(tmp_path / "backwards", name, ENTRIES[name][::-1])
    assert scored(name, roots[name], path).to_dict() == scored(name, roots[name], backwards).to_dict()


@pytest.mark.parametrize("name", ["vqav2", "gqa", "textvqa", "vizwiz", "vsr"])
def test_the_annotations_may_be_named_themselves(name: str, roots: dict[str, Path], tmp_path: Path) -> None:
    path = write(tmp_path / "results", name, ENTRIES[name])
    whole = scored(name, roots[name], path).to_dict()
    (file,) = [each for each in roots[name].iterdir() if each.suffix in (".json", ".jsonl") and "ocr" not in each.name
               and "OpenEnded" not in each.name]  # fmt: skip
    assert scored(name, file, path).to_dict() == whole
    # Alone, and under any name.
    elsewhere = tmp_path / "elsewhere" / "annotations.json"
    elsewhere.parent.mkdir()
    file.rename(elsewhere)
    assert scored(name, elsewhere, path).to_dict() == whole


def test_vqav2_annotations_alone_may_not_repeat_a_question(roots: dict[str, Path], tmp_path: Path) -> None:
    document = json.loads((roots["vqav2"] / "v2_mscoco_val2014_annotations.json").read_text())
    document["annotations"].append(document["annotations"][0])
    alone = tmp_path / "alone.json"
    alone.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"alone\.json: these ids occur more than once: 4"):
        scored("vqav2", alone, write(tmp_path / "results", "vqav2", ENTRIES["vqav2"]))


def test_one_file_of_pope_is_one_split(roots: dict[str, Path], tmp_path: Path) -> None:
    popular = [entry for entry in ENTRIES["pope"] if entry["split"] == "popular"]
    path = write(tmp_path / "results", "pope", popular)
    found = scored("pope", roots["pope"] / "coco_pope_popular.json", path).to_dict()
    assert (found["n"], found["n_expected"], found["partial"]) == (4, 9_000, True)
    assert found["scores"]["mean"] == found["scores"]["popular"]
    assert "random" not in found["scores"]
    assert scored("pope", roots["pope"], path).to_dict() == found
    nameless = (roots["pope"] / "coco_pope_popular.json").rename(tmp_path / "questions.json")
    with pytest.raises(
        UserError, match=r"questions\.json: its name must say which split.*random, popular, adversarial"
    ):
        scored("pope", nameless, path)


def test_the_older_pope_is_whole_with_2_910(roots: dict[str, Path], tmp_path: Path) -> None:
    entries = []
    for split, size in (("random", 2_910), ("popular", 3_000), ("adversarial", 3_000)):
        line = {"image": "COCO_val2014_000000000011.jpg", "text": "Is there a dog?", "label": "yes"}
        lines = [json.dumps({"question_id": number, **line}) for number in range(1, size + 1)]
        (roots["pope"] / f"coco_pope_{split}.json").write_text("\n".join(lines))
        entries += [{"question_id": number, "split": split, "answer": "yes"} for number in range(1, size + 1)]
    found = scored("pope", roots["pope"], write(tmp_path / "r", "pope", entries)).to_dict()
    assert (found["n"], found["n_expected"], found["partial"]) == (8_910, 8_910, False)
    assert found["scores"]["overall"] == pytest.approx(100)


@pytest.mark.parametrize("folder", [".", "annotations"])
def test_vqav2s_annotations_are_enough_to_score(folder: str, roots: dict[str, Path], tmp_path: Path) -> None:
    root, path = roots["vqav2"], write(tmp_path / "results", "vqav2", ENTRIES["vqav2"])
    whole = scored("vqav2", root, path).to_dict()
    (root / "v2_OpenEnded_mscoco_val2014_questions.json").unlink()
    (root / folder).mkdir(exist_ok=True)
    (root / "v2_mscoco_val2014_annotations.json").rename(root / folder / "v2_mscoco_val2014_annotations.json")
    assert scored("vqav2", root, path).to_dict() == whole


# -- Ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFICIAL)
def test_missing_unknown_and_repeated_ids_are_told_together(name: str, roots: dict[str, Path], tmp_path: Path) -> None:
    missing, repeated, *rest = ENTRIES[name]
    unknown = dict(repeated)
    unknown[ID_FIELD.get(name, "question_id")] = "no_such" if name in ("gqa", "vizwiz") else 999
    path = write(tmp_path / "results", name, [repeated, repeated, *rest, unknown])
    benchmark = benchmark_for(name, roots[name])
    with pytest.raises(UserError) as caught:
        read_results(benchmark, path)
    said = str(caught.value)
    assert str(path) in said
    assert f"1 without an answer: {benchmark.result_id(missing)}" in said
    assert f"1 not in the annotations: {benchmark.result_id(unknown)}" in said
    assert f"1 answered more than once: {benchmark.result_id(repeated)}" in said


@pytest.mark.parametrize("name", OFFICIAL)
def test_ids_of_another_split_are_told_so(name: str, roots: dict[str, Path], tmp_path: Path) -> None:
    field = ID_FIELD.get(name, "question_id")
    others = [entry | {field: f"9{entry[field]}"} for entry in ENTRIES[name]]
    path = write(tmp_path / "results", name, others)
    with pytest.raises(UserError, match=r"(?s)results .*Not one of its ids is known: is it of another split"):
        scored(name, roots[name], path)


def test_many_ids_are_counted_and_the_first_listed(roots: dict[str, Path], tmp_path: Path) -> None:
    strangers = [{"question_id": 1000 + number, "answer": "yes"} for number in range(250)]
    path = write(tmp_path / "results", "vqav2", ENTRIES["vqav2"] + strangers)
    with pytest.raises(UserError, match=r"250 not in the annotations: 1000, 1001, .*1099 and 150 more"):
        scored("vqav2", roots["vqav2"], path)


def test_part_of_a_split_of_pope_is_not_a_split(roots: dict[str, Path], tmp_path: Path) -> None:
    path = write(tmp_path / "results", "pope", ENTRIES["pope"][:-1])
    with pytest.raises(UserError, match="1 without an answer: adversarial/6"):
        scored("pope", roots["pope"], path)


# -- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: b"", "is empty"),
        (lambda data: data[:9] + b"\xff" + data[9:], "is not UTF-8 text: byte 9"),
    ],
)
def test_a_spoilt_file_is_named(name: str, spoil: Any, message: str, roots: dict[str, Path], tmp_path: Path) -> None:
    path = write(tmp_path / "results.any", name, ENTRIES[name])
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=rf"results\.any.*{message}"):
        scored(name, roots[name], path)


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_other_kind_of_json_says_the_same(name: str, roots: dict[str, Path], tmp_path: Path) -> None:
    plain = scored(name, roots[name], write(tmp_path / "results", name, ENTRIES[name])).to_dict()
    path = tmp_path / "results.any"
    for text in (
        "".join(json.dumps(entry) + "\n" for entry in ENTRIES[name]),
        json.dumps(ENTRIES[name]),
        json.dumps(ENTRIES[name], indent=2),
        json.dumps({"model": "x", "results": ENTRIES[name]}),
    ):
        for data in (text.encode(), text.encode("utf-16"), gzip.compress(text.encode())):
            path.write_bytes(data)
            assert scored(name, roots[name], path).to_dict() == plain


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("vqav2", {"question_id": 1}, r'results, entry 0: "answer" is missing; found question_id'),
        ("vqav2", {"question_id": 1, "answer": 2}, r'entry 0: "answer" must be text, got a whole number \(2\)'),
        ("vqav2", {"question_id": True, "answer": ""}, r'"question_id" must be a whole number or text'),
        ("vqav2", {"id": 1}, r'entry 0: "question_id" is missing.*"answer" is missing'),
        ("vqav2", [], r"entry 0: expected an object with question_id, answer"),
        ("gqa", {"questionId": "201", "answer": "red"}, r'"prediction" is missing'),
        ("vizwiz", {"image": "x.jpg", "answer": None}, r'"answer" must be text, got null'),
        ("pope", {"question_id": 1, "answer": "yes"}, r'line 1: "split" is missing'),
        ("pope", {"question_id": 1, "split": "easy", "answer": "yes"}, r'line 1: "split" must be one of .random'),
        ("vsr", {"index": 0, "answer": "True"}, r'line 1: "p_true" is missing'),
        ("vsr", {"index": 0, "p_true": 1.5}, r"line 1: A probability must lie in \[0, 1\], got 1\.5"),
        ("vsr", {"index": 0, "p_true": float("nan")}, r"line 1: A probability must lie in \[0, 1\], got nan"),
        ("vsr", {"index": 0, "p_true": "0.5"}, r'"p_true" must be a number'),
    ],
)
def test_a_wrong_entry_is_named(name: str, entry: Any, message: str, roots: dict[str, Path], tmp_path: Path) -> None:
    path = write(tmp_path / "results", name, [entry, *ENTRIES[name][1:]])
    with pytest.raises(UserError, match=message):
        scored(name, roots[name], path)


def test_every_wrong_entry_is_told(roots: dict[str, Path], tmp_path: Path) -> None:
    path = write(tmp_path / "results", "gqa", [{"questionId": "201"}, ENTRIES["gqa"][1], 7])
    with pytest.raises(UserError, match=r'(?s)entry 0: "prediction" is missing.*entry 2: expected an object'):
        scored("gqa", roots["gqa"], path)


def test_results_that_are_no_list(roots: dict[str, Path], tmp_path: Path) -> None:
    path = write(tmp_path / "results", "gqa", {"201": "red"})
    with pytest.raises(UserError, match=r"results: expected a list of objects with questionId, prediction, got a dict"):
        scored("gqa", roots["gqa"], path)


def test_an_unknown_mode_is_answered_with_the_choices(roots: dict[str, Path]) -> None:
    with pytest.raises(
        UserError, match=r'mode of pope "generat".*Did you mean generate.*likelihood, lmms_eval, official'
    ):
        benchmark_for("pope", roots["pope"], "generat")
    with pytest.raises(UserError, match=r"official_2016, official_2021"):
        benchmark_for("vqav2", roots["vqav2"], "official")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["question_id", "questionId", "answer", "prediction", "image", "index", "p_true", "split", "id"]
)


@pytest.mark.parametrize("name", OFFICIAL)
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    data=st.binary(max_size=30) | ANYTHING.map(lambda value: json.dumps(value).encode())
    | st.lists(st.dictionaries(FIELDS, ANYTHING, max_size=4), max_size=3).map(lambda value: json.dumps(value).encode())
    | st.dictionaries(FIELDS, ANYTHING, max_size=4).map(lambda value: json.dumps(value).encode())
)  # fmt: skip
def test_whatever_the_file_holds_the_error_is_a_message(name: str, data: bytes, roots: dict, tmp_path: Path) -> None:
    path = tmp_path / "results"
    path.write_bytes(data)
    with pytest.raises(UserError, match="results"):
        scored(name, roots[name], path)


# -- Odd, but right ----


def as_text(value: Any) -> Any:
    return str(value)


def as_number(value: Any) -> Any:
    return int(value) if str(value).isdigit() else value


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize(
    "change",
    [
        lambda entry, field: entry | {field: as_text(entry[field])},
        lambda entry, field: entry | {field: as_number(entry[field])},
        lambda entry, field: {"model": "x", "confidence": [0.5], **entry},
        lambda entry, field: dict(reversed(entry.items())),
    ],
    ids=["text ids", "number ids", "more fields", "other order"],
)
def test_ids_of_either_type_and_more_fields(name: str, change: Any, roots: dict[str, Path], tmp_path: Path) -> None:
    plain = scored(name, roots[name], write(tmp_path / "plain", name, ENTRIES[name])).to_dict()
    changed = [change(entry, ID_FIELD.get(name, "question_id")) for entry in ENTRIES[name]]
    assert scored(name, roots[name], write(tmp_path / "changed", name, changed)).to_dict() == plain


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data + b"\n\n",
        lambda data: data.rstrip(b"\n"),
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b'": ', b'":'),
    ],
    ids=["BOM", "blank last lines", "no last newline", "CRLF", "no spaces"],
)
def test_bytes_that_say_the_same(name: str, change: Any, roots: dict[str, Path], tmp_path: Path) -> None:
    path = write(tmp_path / "results", name, ENTRIES[name])
    plain = scored(name, roots[name], path).to_dict()
    path.write_bytes(change(path.read_bytes()))
    assert scored(name, roots[name], path).to_dict() == plain


# -- What we write ----

WRITTEN = [
    ("vqav2", "generate", {"question_id": 1, "answer": "said 0\n\u2028."}),
    ("gqa", "generate", {"questionId": "201", "prediction": "said 0\n\u2028."}),
    ("textvqa", "generate", {"question_id": 34602, "answer": "said 0\n\u2028."}),
    ("pope", "generate", {"question_id": 1, "split": "random", "answer": "said 0\n\u2028."}),
    ("pope", "likelihood", {"question_id": 1, "split": "random", "answer": "No"}),
    ("vizwiz", "generate", {"image": "VizWiz_val_00000000.jpg", "answer": "said 0\n\u2028."}),
    ("vsr", "likelihood", {"index": 0, "p_true": 0.0}),
    ("vsr", "generate", {"index": 0, "answer": "said 0\n\u2028."}),
]


@pytest.mark.parametrize(("name", "answering", "first"), WRITTEN)
def test_the_files_that_we_write_are_read_as_they_were(
    name: str, answering: str, first: dict[str, Any], roots: dict[str, Path], tmp_path: Path
) -> None:
    benchmark = benchmark_for(name, roots[name], answering if name in LINES else None)
    n = len(benchmark.questions)
    answers = {
        question.id: Answer(probability=row / n) if answering == "likelihood" else Answer(f"said {row}\n\u2028.")
        for row, question in enumerate(benchmark.questions)
    }
    path = write_submission(tmp_path, benchmark, benchmark.questions, answers)
    assert path.suffix == (".jsonl" if name in LINES else ".json")
    text = path.read_text(encoding="utf-8")
    entries = [json.loads(line) for line in text.rstrip("\n").split("\n")] if name in LINES else json.loads(text)
    assert list(entries[0].items()) == list(first.items())
    if (name, answering) == ("pope", "likelihood"):  # has the likelier choice alone
        answers = {qid: Answer(benchmark.choice(answer.probability)) for qid, answer in answers.items()}
    assert read_results(benchmark, path) == answers


# -- What else is read ------------------------------------------------------------------------------------------------


def test_likelihood_and_generate(roots: dict[str, Path], tmp_path: Path) -> None:
    said = [{"index": row, "answer": "True." if entry["p_true"] >= 0.5 else "false"} for row, entry in
            enumerate(ENTRIES["vsr"])]  # fmt: skip
    found = scored("vsr", roots["vsr"], write(tmp_path / "said", "vsr", said), "generate").to_dict()
    assert found["scores"]["overall"] == pytest.approx(60)
    assert "roc_auc" not in found["scores"]

    likely = [dict(entry, answer=None, p_yes=0.9) for entry in ENTRIES["pope"]]
    found = scored("pope", roots["pope"], write(tmp_path / "likely", "pope", likely), "likelihood").to_dict()
    assert found["scores"]["mean"]["yes_ratio"] == 100
    chosen = [dict(entry, answer="Yes") for entry in ENTRIES["pope"]]
    assert scored("pope", roots["pope"], write(tmp_path / "c", "pope", chosen), "likelihood").to_dict() == found
    chosen[0]["answer"] = "Maybe"
    with pytest.raises(UserError, match=r'line 1: "answer" must be one of .yes., .no., got .maybe.'):
        scored("pope", roots["pope"], write(tmp_path / "c", "pope", chosen), "likelihood")


@pytest.mark.parametrize("name", OFFICIAL)
def test_our_own_predictions_are_read(name: str, roots: dict[str, Path], tmp_path: Path) -> None:
    benchmark = benchmark_for(name, roots[name], "likelihood" if name in LINES else None)
    lines, answers = [], {}
    for number, question in enumerate(benchmark.questions):
        probability = number / len(benchmark.questions)
        likely = benchmark.answering == "likelihood"
        answers[question.id] = Answer(probability=probability) if likely else Answer(question.answers[0])
        line = {"id": question.id, "prediction": question.answers[0], "score": 1.0}
        lines.append(line | ({benchmark.probability_key: probability} if likely else {}))
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_results(benchmark, path) == answers
