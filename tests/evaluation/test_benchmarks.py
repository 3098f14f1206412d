"""Every benchmark through one door: questions, prompts, options, figures, and bad input."""

import bz2
import gzip
import io
import json
import lzma
import math
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablate.core.errors import UserError
from ablate.demo import TASKS
from ablate.evaluation import benchmarks
from ablate.evaluation.benchmarks import Answer, Benchmark, Judged, Question

OFFICIAL = ("vqav2", "gqa", "textvqa", "pope", "vizwiz", "vsr")
SHORT = "Answer the question using a single word or phrase."
Small = Callable[..., Benchmark]


def judge(benchmark: Benchmark, answers: list[Answer]) -> Judged:
    values = np.array([benchmark.judge(q, answer) for q, answer in zip(benchmark.questions, answers, strict=True)])
    return Judged(benchmark.questions, values[:, 0], values[:, 1])


def perfect(benchmark: Benchmark) -> list[Answer]:
    if benchmark.answering == "likelihood":
        return [
            Answer(probability=float(question.answers[0].lower() == benchmark.choices[0].lower()))
            for question in benchmark.questions
        ]
    return [Answer(question.answers[0]) for question in benchmark.questions]


# -- The registry -----------------------------------------------------------------------------------------------------


def test_the_six_and_the_demo_are_registered() -> None:
    assert set(benchmarks.names()) == set(OFFICIAL) | set(TASKS) | {"textvqa_llava", "textvqa_cobra"}


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'benchmark "vqa2".*vqav2'):
        benchmarks.create("vqa2", tmp_path)


def test_a_name_can_be_taken_once() -> None:
    with pytest.raises(UserError, match='"gqa" is registered twice'):
        benchmarks.benchmark("gqa")(type(benchmarks.create("gqa", ".")))


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("option", ["mode", "answering", "prompt"])
def test_an_unknown_option_is_answered_with_the_choices(name: str, option: str) -> None:
    with pytest.raises(UserError, match='"offical"'):
        benchmarks.create(name, ".", **{option: "offical"})


@pytest.mark.parametrize(("task", "of"), list(zip(TASKS, OFFICIAL, strict=True)))
def test_a_demo_task_is_its_benchmark_at_another_root(task: str, of: str, roots: dict[str, Path], small: Small) -> None:
    demo, original = benchmarks.create(task, roots[of]), small(of)
    assert isinstance(demo, type(original))
    assert demo.name == task
    assert [replace(question, image_id="") for question in demo.questions] == [
        replace(question, image_id="") for question in original.questions
    ]
    # Two sets of one's own may number their photos alike: they are never taken for the same photo.
    assert [q.image_id for q in demo.questions] == [f"{task}/{q.image_id}" for q in original.questions]
    assert demo.n_expected == len(demo.questions)
    assert demo.answering == ("likelihood" if of in ("pope", "vsr") else "generate")


# -- Questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFICIAL)
def test_questions_are_whole(name: str, small: Small) -> None:
    questions = small(name).questions
    assert len({question.id for question in questions}) == len(questions)
    assert all(
        question.image.is_file() and question.answers and question.text in question.body for question in questions
    )
    assert math.isclose(sum(question.weight for question in questions), len(questions))


def test_bodies(small: Small) -> None:
    first = {name: small(name).questions[0].body for name in OFFICIAL}
    assert first["vqav2"] == f"Is it a dog?\n{SHORT}"
    assert first["gqa"] == f"What colour is the car?\n{SHORT}"
    assert first["textvqa"] == f"what is the Brand?\n{SHORT}"
    assert first["pope"] == f"Is there a thing 0 in the image?\n{SHORT}"
    assert first["vizwiz"] == (
        f"What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}"
    )
    assert first["vsr"] == (
        'Based on the image, is this statement "True" or "False"? The cat is on the mat 0.\n'
        'Respond with "True" or "False" directly.'
    )


def test_bare_prompts_are_the_question_alone(small: Small) -> None:
    for name in OFFICIAL:
        assert all(question.body == question.text for question in small(name, prompt="bare").questions)


def test_textvqa_bodies_with_ocr(small: Small) -> None:
    # Joined on image and question: the OCR file's question_id is an image's, and two questions share the first one.
    assert [q.body for q in small("textvqa", prompt="llava").questions][:2] == [
        f"What is the brand?\nReference OCR token: NOKIA, 0\n{SHORT}",
        f"What number is it?\nReference OCR token: NOKIA, 1\n{SHORT}",
    ]
    assert small("textvqa", prompt="cobra").questions[2].body == (f"Reference OCR token: NOKIA, 2\nWho is it?\n{SHORT}")


def test_vqav2_is_joined_by_id_not_by_order(small: Small) -> None:
    questions = {question.id: question for question in small("vqav2").questions}
    assert list(questions) == ["1", "2", "3", "4"]  # the annotations are in reverse
    assert questions["2"].answers == ("2",) * 5 + ("two",) * 4 + ("3",)
    assert questions["2"].types == {"answer_type": "number", "question_type": "how many"}
    assert questions["1"].image_id == questions["2"].image_id == "000000000011"


def test_pope_ids_are_unique_over_splits_and_splits_weigh_the_same(small: Small) -> None:
    questions = small("pope").questions
    assert [question.id for question in questions][:3] == ["random/1", "random/2", "popular/1"]
    by_split: dict[str, float] = {}
    for question in questions:
        by_split[question.type] = by_split.get(question.type, 0) + question.weight
    assert list(by_split.values()) == pytest.approx([4, 4, 4])


def test_photos_of_coco_are_the_same_under_both_names(small: Small) -> None:
    assert small("pope").questions[0].image_id == small("vqav2").questions[0].image_id == "000000000011"
    assert small("vsr").questions[0].image_id == "000000000017"


@pytest.mark.parametrize(("name", "n"), list(zip(OFFICIAL, (214_354, 12_578, 5_000, 9_000, 4_319, 1_222), strict=True)))
def test_a_small_copy_of_an_official_release_is_partial(name: str, n: int, roots: dict[str, Path]) -> None:
    benchmark = benchmarks.create(name, roots[name])
    assert benchmark.n_expected == n
    assert len(benchmark.questions) < n


def test_the_older_pope_has_fewer_questions(roots: dict[str, Path]) -> None:
    entry = {"image": "COCO_val2014_000000000011.jpg", "text": "Is there a dog in the image?", "label": "yes"}
    lines = [json.dumps({"question_id": number, **entry}) for number in range(2_910)]
    (roots["pope"] / "coco_pope_random.json").write_text("\n".join(lines))
    assert benchmarks.create("pope", roots["pope"]).n_expected == 8_910


def test_more_questions_than_the_release_has_are_another_split(roots: dict[str, Path]) -> None:
    line = (roots["vsr"] / "test.jsonl").read_text().splitlines()[0]
    (roots["vsr"] / "test.jsonl").write_text("\n".join([line] * 1_223))
    with pytest.raises(UserError, match=r"1,223 questions, but VSR.*1,222.*another split"):
        _ = benchmarks.create("vsr", roots["vsr"]).questions


def test_groups(roots: dict[str, Path], small: Small) -> None:
    groups = {"0": "seen", "1": "unseen", "2": "seen", "3": "unseen", "4": "seen", "5": "unseen"}
    (roots["vsr"] / "groups.json").write_text(json.dumps(groups))
    benchmark = small("vsr")
    assert [question.group for question in benchmark.questions] == ["seen", "unseen", "seen", "unseen", "seen"]
    assert benchmark.n_expected == 6  # the set has one more than the file: partial
    figures = benchmark.figures(judge(benchmark, [Answer(probability=1.0)] * 5))
    assert figures["group"] == {"seen": pytest.approx(100 / 3), "unseen": 100.0}
    (roots["vsr"] / "groups.json").write_text(json.dumps({"0": "seen"}))
    with pytest.raises(UserError, match=r"groups\.json does not list these questions: 1, 2, 3, 4"):
        _ = small("vsr").questions


def test_the_mean_is_rounded_as_the_official_scripts_round_it() -> None:
    """round(100 * sum / n, 2): with 16 or 48 questions, many scores lie half-way between two decimals."""
    rng, benchmark = random.Random(0), benchmarks.create("vqav2", "unused")
    for _ in range(2_000):
        scores = rng.choices([0.0, 0.3, 0.6, 0.9, 1.0], k=rng.choice([16, 48, 80]))
        questions = [Question(str(row), Path("x"), "x", "", "", ("",), {"answer_type": "other"}) for row in scores]
        found = benchmark.report(Judged(questions, np.array(scores), np.full(len(scores), math.nan)))
        expected = round(100 * float(sum(scores)) / len(scores), 2)
        assert found == {"overall": expected, "answer_type": {"other": expected}}


# -- Scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_mode_scores_between_0_and_1(name: str, small: Small) -> None:
    for mode in small(name).modes:
        for answering in small(name).answering_modes:
            benchmark = small(name, mode=mode, answering=answering)
            answers = [Answer(probability=0.7) if answering == "likelihood" else Answer("Yes, 2 dogs.\n")]
            for question in benchmark.questions:
                judgement = benchmark.judge(question, answers[0])
                assert 0 <= judgement.score <= 1
                assert math.isnan(judgement.positive) or 0 <= judgement.positive <= 1


@pytest.mark.parametrize("name", ["gqa", "textvqa", "pope", "vsr"])
def test_right_answers_score_100(name: str, small: Small) -> None:
    benchmark = small(name)
    assert benchmark.report(judge(benchmark, perfect(benchmark)))["overall"] == pytest.approx(100)


def test_vqav2_figures(small: Small) -> None:
    benchmark = small("vqav2")
    figures = benchmark.report(judge(benchmark, [Answer(text) for text in ("Yes", "two", "t-shirt", "yes")]))
    assert figures["overall"] == 97.5  # 1, 1 (9 of 10 say 2), 1, 0.9
    assert figures["answer_type"] == {"number": 100.0, "other": 100.0, "yes/no": 95.0}
    assert figures["question_type"] == {"how many": 100.0, "is it": 95.0, "what is": 100.0}


def test_gqa_figures(small: Small) -> None:
    benchmark = small("gqa")
    figures = benchmark.report(judge(benchmark, [Answer(text) for text in ("red", "no", "shirt", "no")]))
    assert figures["overall"] == 50
    assert (figures["open"], figures["binary"]) == (50.0, 50.0)


def test_pope_figures_are_means_over_splits(small: Small) -> None:
    benchmark = small("pope")
    figures = benchmark.report(judge(benchmark, [Answer(probability=0.9)] * 2 + [Answer(probability=0.1)] * 10))
    assert figures["random"] == {
        "accuracy": 50.0,
        "precision": 50.0,
        "recall": 100.0,
        "f1": pytest.approx(200 / 3),
        "yes_ratio": 100.0,
    }
    # Nothing said yes: zeros, not a division by zero.
    assert figures["popular"] == {"accuracy": 50.0, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0}
    assert figures["mean"]["f1"] == pytest.approx(200 / 9)
    assert figures["overall"] == figures["mean"]["accuracy"] == 50.0


def test_pope_overall_is_the_weighted_mean_of_the_scores(small: Small) -> None:
    benchmark = small("pope", answering="generate")
    result = judge(benchmark, [Answer("Yes")] + [Answer("no")] * 11)
    assert benchmark.figures(result)["overall"] == pytest.approx(result.mean())


def test_vsr_with_one_side_only_has_no_auc(small: Small) -> None:
    benchmark = small("vsr")
    result = judge(benchmark, [Answer(probability=0.9)] * 5)
    assert benchmark.figures(result)["roc_auc"] == 50.0
    assert "roc_auc" not in benchmark.figures(result.where(lambda question: question.answers == ("True",)))
    assert "roc_auc" not in small("vsr", answering="generate").figures(result)


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_a_probability_must_be_one(probability: float) -> None:
    with pytest.raises(UserError, match="probability"):
        Answer(probability=probability)


def test_an_answer_is_text_or_probability() -> None:
    with pytest.raises(UserError, match="either"):
        Answer()
    with pytest.raises(UserError, match="either"):
        Answer("yes", 0.5)


def test_a_probability_says_nothing_about_an_open_question(small: Small) -> None:
    benchmark = small("gqa")
    with pytest.raises(UserError, match="scored on text"):
        benchmark.judge(benchmark.questions[0], Answer(probability=0.5))


# -- Bad input --------------------------------------------------------------------------------------------------------

FILES = {
    "vqav2": "v2_mscoco_val2014_annotations.json",
    "gqa": "testdev_balanced_questions.json",
    "textvqa": "TextVQA_0.5.1_val.json",
    "pope": "coco_pope_popular.json",
    "vizwiz": "val.json",
    "vsr": "test.jsonl",
}


def edit(file: Path, place: list[str | int], change: Callable[[Any], Any]) -> None:
    """Replace what stands at a place of a JSON document by what `change` makes of it."""
    document = {"": json.loads(file.read_text())}
    holder, key = document, ""
    for step in place:
        holder, key = holder[key], step
    holder[key] = change(holder[key])
    file.write_text(json.dumps(document[""]))


def without(key: str) -> Callable[[dict], dict]:
    return lambda old: {name: value for name, value in old.items() if name != key}


def to(value: Any) -> Callable[[Any], Any]:
    return lambda old: value


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_missing_file_is_named_with_what_is_there(name: str, roots: dict[str, Path], small: Small) -> None:
    (roots[name] / FILES[name]).unlink()
    (roots[name] / "something.txt").touch()
    with pytest.raises(UserError, match=rf"{FILES[name]}.*something\.txt"):
        _ = small(name).questions


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_missing_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No folder"):
        _ = benchmarks.create(name, tmp_path / "nowhere").questions


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_file_cut_short(name: str, share: float, roots: dict[str, Path], small: Small) -> None:
    path = roots[name] / FILES[name]
    data = path.read_bytes().rstrip()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=FILES[name]) as caught:
        _ = small(name).questions
    assert "cut short" in str(caught.value)


@pytest.mark.parametrize("name", OFFICIAL)
def test_not_utf_8(name: str, roots: dict[str, Path], small: Small) -> None:
    path = roots[name] / FILES[name]
    path.write_bytes(path.read_bytes()[:20] + b"\xff" + path.read_bytes()[20:])
    with pytest.raises(UserError, match=rf"{FILES[name]} is not UTF-8 text: byte 20 is 0xff \(line 1\)"):
        _ = small(name).questions


# -- Files as they come -----------------------------------------------------------------------------------------------


def zipped(data: bytes, *names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, data)
    return file.getvalue()


def tarred(data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("val.json")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def as_lines(data: bytes) -> bytes:
    """A list as JSON Lines; what is JSON Lines already as it is."""
    return data if b"}\n{" in data else b"".join(json.dumps(entry).encode() + b"\n" for entry in json.loads(data))


def as_list(data: bytes) -> bytes:
    return data if data.startswith(b"[") else json.dumps([json.loads(line) for line in data.splitlines()]).encode()


def wrapped(data: bytes) -> bytes:
    return json.dumps({"version": 1, "data": json.loads(as_list(data))}).encode()


def bare(data: bytes) -> bytes:
    """The list alone, of an object that has one."""
    [entries] = [value for value in json.loads(data).values() if isinstance(value, list)]
    return json.dumps(entries).encode()


SAYS_THE_SAME: dict[str, Callable[[bytes], bytes]] = {
    "UTF-8 with a mark": lambda data: data.decode().encode("utf-8-sig"),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "UTF-16 little-endian without a mark": lambda data: data.decode().encode("utf-16-le"),
    "UTF-16 big-endian without a mark": lambda data: data.decode().encode("utf-16-be"),
    "UTF-32": lambda data: data.decode().encode("utf-32"),
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zip": lambda data: zipped(data, "folder/", "folder/val.json", "__MACOSX/folder/._val.json"),
    "gzip of UTF-16": lambda data: gzip.compress(data.decode().encode("utf-16")),
}
LISTS = {
    **dict.fromkeys(("pope", "vsr", "vizwiz"), (as_list, as_lines, wrapped)),
    **dict.fromkeys(("vqav2", "textvqa"), (bare,)),
}


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("how", SAYS_THE_SAME)
def test_files_that_say_the_same_give_the_same_questions(
    how: str, name: str, roots: dict[str, Path], small: Small
) -> None:
    expected, path = small(name).questions, roots[name] / FILES[name]
    path.write_bytes(SAYS_THE_SAME[how](path.read_bytes()))
    assert small(name).questions == expected
    if how in ("gzip", "bzip2", "xz", "zip"):  # also by the name that they then have
        path.rename(path.with_name(path.name + {"gzip": ".gz", "bzip2": ".bz2", "xz": ".xz", "zip": ".zip"}[how]))
        assert small(name).questions == expected


@pytest.mark.parametrize(("name", "how"), [(name, how) for name in LISTS for how in LISTS[name]])
def test_a_list_is_read_however_it_is_kept(
    name: str, how: Callable[[bytes], bytes], roots: dict[str, Path], small: Small
) -> None:
    expected, path = small(name).questions, roots[name] / FILES[name]
    path.write_bytes(how(path.read_bytes()))
    assert small(name).questions == expected
    questions, problems = small(name).problems()
    assert ([question.id for question in questions], problems) == ([question.id for question in expected], [])


NAMED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is empty. Was its download cut short"),
    "white space": (lambda data: b" \n\n", "is empty"),
    "white space in UTF-16": (lambda data: " \n".encode("utf-16"), "is empty"),
    "zeros": (lambda data: bytes(len(data)), "zero bytes and nothing else"),
    "git-lfs": (
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "git-lfs pointer.*git lfs pull",
    ),
    "git-annex": (lambda data: b"/annex/objects/SHA256E-s1--a.json\n", "git-annex pointer.*git annex get"),
    "HTML": (lambda data: b"\n <!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page.*download the file"),
    "HTML without type": (lambda data: b"<HTML><head></head></HTML>", "a web page"),
    "HTML with a mark": (lambda data: b"\xef\xbb\xbf<html></html>", "a web page"),
    "XML": (lambda data: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML, perhaps a server"),
    "Parquet": (lambda data: b"PAR1" + data + b"PAR1", "Parquet table.*export it as JSON"),
    "pickle": (lambda data: pickle.dumps(data.decode()), "Python pickle"),
    "tar": (tarred, "tar archive.*unpack it"),
    "tar.gz": (lambda data: gzip.compress(tarred(data)), "tar archive.*unpack it"),
    "zstandard": (lambda data: b"\x28\xb5\x2f\xfd" + data, "zstandard archive.*unpack it"),
    "AppleDouble": (lambda data: b"\x00\x05\x16\x07\x00\x02" + data, "macOS"),
    "image": (lambda data: b"\xff\xd8\xff\xe0" + data, "an image"),
    "cut gzip": (lambda data: gzip.compress(data)[:-20], "damaged gzip file.*cut short"),
    "cut zip": (lambda data: zipped(data, "val.json")[:-30], "damaged zip file.*cut short"),
    "zip of two": (lambda data: zipped(data, "train.json", "val.json"), "zip file with 2 JSON files.*train.json, val"),
    "zip of none": (lambda data: zipped(data, "readme.txt"), "zip file with 0 JSON files.*readme.txt"),
    "cut UTF-16": (lambda data: data.decode().encode("utf-16")[:-1], "looks like utf-16 and is damaged"),
    "Latin-1": (lambda data: data[:9] + b"\xe9" + data[9:], "is not UTF-8 text: byte 9"),
    "a number": (lambda data: b"7", "expected"),
    "null": (lambda data: b"null", "expected"),
    "an object of something else": (lambda data: b'{"a": 1, "b": {"c": []}}', "expected|is missing"),
}


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("how", NAMED)
def test_a_file_of_another_kind_is_named_for_what_it_is(
    how: str, name: str, roots: dict[str, Path], small: Small
) -> None:
    spoil, said = NAMED[how]
    path = roots[name] / FILES[name]
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{FILES[name]}.*({said})"):
        _ = small(name).questions


@pytest.mark.parametrize("name", ["vqav2", "gqa", "textvqa"])
def test_json_lines_instead_of_one_document(name: str, roots: dict[str, Path], small: Small) -> None:
    path = roots[name] / FILES[name]
    path.write_text(f"{path.read_text()}\n{path.read_text()}\n")
    with pytest.raises(UserError, match=rf"{FILES[name]} looks like JSON Lines"):
        _ = small(name).questions


def test_gqa_as_a_list_has_no_ids(roots: dict[str, Path], small: Small) -> None:
    path = roots["gqa"] / FILES["gqa"]
    path.write_text(json.dumps(list(json.loads(path.read_text()).values())))
    with pytest.raises(UserError, match=r"expected an object \{question id: question\}.*use the release's own"):
        _ = small("gqa").questions


def test_vqav2s_two_files_swapped_are_not_taken_for_one_another(roots: dict[str, Path], small: Small) -> None:
    questions = roots["vqav2"] / "v2_OpenEnded_mscoco_val2014_questions.json"
    annotations = roots["vqav2"] / "v2_mscoco_val2014_annotations.json"
    questions.write_bytes(annotations.read_bytes())
    with pytest.raises(UserError, match=r'questions\.json: "questions" is missing; found annotations'):
        _ = small("vqav2").questions


def test_nine_answers(roots: dict[str, Path], small: Small) -> None:
    for name, place, entry in (
        ("vqav2", ["annotations", 1, "answers"], r"annotations\[1\] \(question_id 3\)"),
        ("textvqa", ["data", 2, "answers"], r"data\[2\] \(question_id 34604\)"),
        ("vizwiz", [3, "answers"], r"entry 3 \(VizWiz_val_00000003\.jpg\)"),
    ):
        edit(roots[name] / FILES[name], place, lambda answers: answers[:9])
        with pytest.raises(UserError, match=rf"{FILES[name]}, {entry}: expected the answers of 10 people, got 9"):
            _ = small(name).questions


@pytest.mark.parametrize(
    ("name", "place", "change", "message"),
    [
        ("vqav2", ["annotations", 0], without("answers"), r'annotations\[0\]: "answers" is missing'),
        ("vqav2", ["annotations", 0, "question_id"], to("4"), r'"question_id" must be a whole number, got text'),
        ("vqav2", ["annotations", 0, "image_id"], to(99), r"image_id 99, but its question has 13"),
        ("vqav2", ["annotations", 0, "answers", 4], to(7), r"answer 4 must be text, got a whole number"),
        ("vqav2", ["annotations"], lambda old: [*old, old[0]], r"annotations\.json: these ids occur more than once: 4"),
        ("vqav2", [], without("annotations"), r'"annotations" is missing; found nothing'),
        ("gqa", ["202"], without("answer"), r'entry "202": "answer" is missing'),
        ("gqa", ["202", "types"], without("structural"), r'entry "202", types: "structural" is missing'),
        ("gqa", [], lambda old: list(old.values()), r"expected an object"),
        ("textvqa", ["data", 1, "image_id"], to(5), r'data\[1\]: "image_id" must be text'),
        ("textvqa", ["data"], lambda old: [*old, old[0]], r"ids occur more than once: 34602"),
        ("vizwiz", [1, "answerable"], to(2), r'entry 1 .*"answerable" must be one of 0, 1, got 2'),
        ("vizwiz", [1, "answerable"], to(True), r'"answerable" must be a whole number, got true or false'),
        ("vizwiz", [2, "image"], to("../../secret.jpg"), r"entry 2 .*plain file name"),
        ("vizwiz", [], lambda old: [*old, old[0]], r"ids occur more than once: VizWiz_val_00000000\.jpg"),
        (
            "vizwiz",
            [],
            lambda old: {"data": old, "more": old},
            r"expected a list of objects .*with data, more",
        ),
    ],
)
def test_a_wrong_entry_is_named(
    name: str,
    place: list[str | int],
    change: Callable[[Any], Any],
    message: str,
    roots: dict[str, Path],
    small: Small,
) -> None:
    edit(roots[name] / FILES[name], place, change)
    with pytest.raises(UserError, match=message):
        _ = small(name).questions


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        (
            "pope",
            '{"question_id": 9, "image": "x.jpg", "text": "?", "label": "maybe"}',
            r"line 5: \"label\" must be one of",
        ),
        ("pope", '{"question_id": 1, "image": "x.jpg", "text": "?", "label": "yes"}', r"more than once: popular/1"),
        ("pope", '{"question_id": 9, "image": "x.jpg", "text": "?"}', r'line 5: "label" is missing'),
        ("pope", "[1]", r"line 5: expected an object"),
        (
            "vsr",
            '{"image": "x.jpg", "caption": "?", "label": "1", "relation": "on"}',
            r'line 6: "label" must be a whole',
        ),
        ("vsr", '{"image": "a/b.jpg", "caption": "?", "label": 1, "relation": "on"}', r"line 6: .*plain file name"),
        ("vsr", '{"image": ', r"line 6, is not valid JSON"),
    ],
)
def test_a_wrong_line_is_named(name: str, line: str, message: str, roots: dict[str, Path], small: Small) -> None:
    with open(roots[name] / FILES[name], "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=message):
        _ = small(name).questions


def test_annotations_of_another_split(roots: dict[str, Path], small: Small) -> None:
    edit(roots["vqav2"] / FILES["vqav2"], ["annotations", 0, "question_id"], to(77))
    with pytest.raises(UserError, match=r"do not belong together.*without annotation: 4;.*without question: 77"):
        _ = small("vqav2").questions


@pytest.mark.parametrize(
    ("name", "field", "split"),
    [
        ("vqav2", "data_subtype", "train2014"),
        ("vqav2", "data_subtype", "test2015"),
        ("textvqa", "dataset_type", "test"),
    ],
)
def test_a_file_that_says_it_is_of_another_split(
    name: str, field: str, split: str, roots: dict[str, Path], small: Small
) -> None:
    edit(roots[name] / FILES[name], [], lambda old: old | {field: split})
    with pytest.raises(UserError, match=rf'{FILES[name]} is of the split "{split}".* are of val'):
        _ = benchmarks.create(name, roots[name]).questions
    assert small(name).questions  # a set of one's own may be of any


def test_ocr_file_without_a_question(roots: dict[str, Path], small: Small) -> None:
    path = roots["textvqa"] / "llava_textvqa_val_v051_ocr.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]))
    assert len(small("textvqa").questions) == 3
    with pytest.raises(UserError, match=r"no line for these questions.*34602"):
        _ = small("textvqa", prompt="llava").questions


# -- Missing images ---------------------------------------------------------------------------------------------------


def test_all_missing_images_are_listed(roots: dict[str, Path], small: Small) -> None:
    (roots["vizwiz"] / "val" / "VizWiz_val_00000001.jpg").unlink()
    (roots["vizwiz"] / "val" / "VizWiz_val_00000003.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 4 images .*00001\.jpg \(missing; .*00003\.jpg \(0 bytes; questions"):
        _ = small("vizwiz").questions
    assert len(small("vizwiz", images=False).questions) == 4
    partial = small("vizwiz", partial=True, expected=4)
    assert [question.id for question in partial.questions] == ["VizWiz_val_00000000.jpg", "VizWiz_val_00000002.jpg"]
    assert partial.n_expected == 4


def test_a_partial_set_without_any_image_is_an_error(roots: dict[str, Path], small: Small) -> None:
    for image in (roots["gqa"] / "images").iterdir():
        image.unlink()
    with pytest.raises(UserError, match="3 of 3 images"):
        _ = small("gqa", partial=True).questions


def test_pope_with_two_splits_is_partial_on_request_only(roots: dict[str, Path], small: Small) -> None:
    (roots["pope"] / "coco_pope_popular.json").unlink()
    with pytest.raises(UserError, match=r"coco_pope_popular\.json"):
        _ = small("pope").questions
    partial = small("pope", partial=True, expected=12)
    result = judge(partial, [Answer(probability=0.9)] * 8)
    assert partial.figures(result)["overall"] == pytest.approx(result.mean()) == 50


def test_images_are_found_in_any_of_the_usual_folders(roots: dict[str, Path], small: Small) -> None:
    (roots["pope"] / "val2014").rename(roots["pope"] / "images")
    assert small("pope").questions[0].image.parent.name == "images"


@pytest.mark.parametrize("name", OFFICIAL)
def test_modes_of_a_package_whose_rules_changed_name_the_releases(name: str) -> None:
    kind = type(benchmarks.create(name, "."))
    assert all("lmms-eval" in kind.follows[mode] for mode in kind.modes if mode.startswith("lmms_eval"))


@pytest.mark.parametrize(
    ("said", "truths", "now", "july", "before"),
    [
        ("Black.", ["black"] * 10, 1, 0, 1),  # the example of lmms-eval's change of 2025-08-11
        ("1,000", ["1000"] * 10, 1, 0, 1),
        ("joe's", ["joe's"] * 10, 1, 1, 0),  # the EvalAI processor writes "joe 's"
        ("coke,pepsi", ["coke pepsi"] * 9 + ["tea"], 1, 1, 0),
        ("dog", ["Dog"] * 9 + ["cat"], 1, 1, 1),
    ],
)
def test_vqav2_as_each_lmms_eval_scores_it(said: str, truths: list[str], now: int, july: int, before: int) -> None:
    asked = Question("1", Path("x"), "x", "?", "?", tuple(truths))
    for mode, expected in (("lmms_eval", now), ("lmms_eval_2025_07", july), ("lmms_eval_2024", before)):
        assert benchmarks.create("vqav2", ".", mode=mode).judge(asked, Answer(said)).score == expected, mode
