"""`check`: everything that is wrong with a folder, in one run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ablate.evaluation import benchmarks, check
from ablate.evaluation.benchmarks import Benchmark
from ablate.evaluation.check import Report

OFFICIAL = ("vqav2", "gqa", "textvqa", "pope", "vizwiz", "vsr")
Small = Callable[..., Benchmark]


def kinds(report: Report) -> dict[str, str]:
    return {image.name: image.kind for image in report.images}


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_whole_set_is_complete_and_sound(name: str, small: Small) -> None:
    report = check.check(small(name))
    assert report.ok
    assert report.problems == report.images == []


@pytest.mark.parametrize(
    ("name", "questions", "images"),
    [
        ("vqav2", 214_354, 40_504),
        ("gqa", 12_578, 398),
        ("textvqa", 5_000, 3_166),
        ("pope", 9_000, 500),
        ("vizwiz", 4_319, 4_319),
        ("vsr", 1_222, 715),
    ],
)
def test_a_small_copy_is_sound_but_not_complete(name: str, questions: int, images: int, roots: dict) -> None:
    report = check.check(benchmarks.create(name, roots[name]))
    assert report.sound
    assert not report.complete
    assert not report.ok
    assert report.counts["questions"][1] == questions
    assert report.counts["images"][1] == images
    assert report.counts["questions"][0] == len(benchmarks.create(name, roots[name]).questions)


def test_pope_is_counted_by_split(roots: dict[str, Path]) -> None:
    counts = check.check(benchmarks.create("pope", roots["pope"])).counts
    assert [counts[split] for split in ("random", "popular", "adversarial")] == [(2, 3000), (4, 3000), (6, 3000)]


def test_every_image_that_cannot_be_used_is_told(roots: dict[str, Path], small: Small) -> None:
    folder = roots["vizwiz"] / "val"
    missing, empty, cut, huge = sorted(folder.iterdir())
    missing.unlink()
    empty.write_bytes(b"")
    Image.effect_noise((64, 64), 50).save(cut, "JPEG")
    cut.write_bytes(cut.read_bytes()[:-200])
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    report = check.check(small("vizwiz"))
    assert kinds(report) == {
        missing.name: "missing",
        empty.name: "empty",
        cut.name: "unreadable",
        huge.name: "unreadable",
    }
    told = [str(image) for image in report.images]
    assert told[1] == f"{empty.name}: 0 bytes (questions {empty.name})"
    assert "truncated" in told[2]
    assert "pixels" in told[3]
    assert report.counts["images"] == (3, 4)
    assert not report.sound
    found = report.to_dict()
    assert list(found["images"]["missing"]) == [missing.name]
    assert set(found["images"]["unreadable"]) == {cut.name, huge.name}
    assert json.loads(json.dumps(found)) == found


def test_an_image_too_large_to_unpack_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (10_000, 9_000)).save(path)
    kind, reason = check.image_problem(path)
    assert kind == "unreadable"
    assert "10000 x 9000 pixels" in reason


def test_an_image_shared_by_questions_names_them_all(roots: dict[str, Path], small: Small) -> None:
    (roots["vqav2"] / "val2014" / "COCO_val2014_000000000011.jpg").unlink()
    (image,) = check.check(small("vqav2")).images
    assert image.questions == ("1", "2")


def test_all_problems_of_vqav2s_two_files(roots: dict[str, Path], small: Small) -> None:
    path = roots["vqav2"] / "v2_mscoco_val2014_annotations.json"
    document = json.loads(path.read_text())
    four, three, two, one = document["annotations"]
    four["answers"].pop()
    del three["answer_type"], three["question_type"]
    two["image_id"] = 99
    document["annotations"] += [one, dict(one, question_id=77)]
    path.write_text(json.dumps(document))
    told = "\n".join(check.check(small("vqav2")).problems)
    for problem in (
        "annotations[0] (question_id 4): expected the answers of 10 people, got 9",
        'annotations[1]: "question_type" is missing',
        '"answer_type" is missing',
        "annotations[2] (question_id 2): image_id 99, but its question has 11",
        f"{path}: these ids occur more than once: 1.",
        "questions without annotation: 3; annotations without question: 77",
    ):
        assert problem in told


def test_both_files_of_vqav2_missing_are_both_told(roots: dict[str, Path], small: Small) -> None:
    for path in roots["vqav2"].glob("*.json"):
        path.unlink()
    first, second = check.check(small("vqav2")).problems
    assert "annotations" in first
    assert "OpenEnded" in second


def test_problems_of_several_lines_and_files(roots: dict[str, Path], small: Small) -> None:
    with open(roots["pope"] / "coco_pope_random.json", "a") as file:
        file.write('{"question_id": 9\n[1]\n{"question_id": 9, "image": "a/b.jpg", "text": "?", "label": "yes"}\n')
    (roots["pope"] / "coco_pope_popular.json").write_bytes(b"\xff")
    (roots["pope"] / "coco_pope_adversarial.json").unlink()
    told = check.check(small("pope")).problems
    assert len(told) == 5
    for number, problem in enumerate(
        [
            "coco_pope_adversarial.json",
            "coco_pope_random.json, line 3, is not valid JSON",
            "coco_pope_random.json, line 4: expected an object",
            "coco_pope_random.json, line 5: the image must be a plain file name",
            "coco_pope_popular.json is not UTF-8 text",
        ]
    ):
        assert problem in told[number]


def test_the_ocr_file_is_checked_where_it_is(roots: dict[str, Path], small: Small) -> None:
    path = roots["textvqa"] / "llava_textvqa_val_v051_ocr.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[1:], lines[1].replace("NOKIA", "SONY")]))
    told = check.check(small("textvqa")).problems
    assert len(told) == 2
    assert "line 3: other words than a line before" in told[0]
    assert "no line for these questions: 34602" in told[1]
    path.unlink()
    assert check.check(small("textvqa")).ok


def test_the_older_name_of_textvqa_is_read(roots: dict[str, Path], small: Small) -> None:
    (roots["textvqa"] / "TextVQA_0.5.1_val.json").rename(roots["textvqa"] / "TextVQA_0.5_val.json")
    assert check.check(small("textvqa")).ok


def test_a_set_that_lacks_what_its_groups_list_is_not_complete(roots: dict[str, Path], small: Small) -> None:
    (roots["vsr"] / "groups.json").write_text(json.dumps({str(row): "seen" for row in range(6)}))
    report = check.check(small("vsr"))
    assert report.counts["questions"] == (5, 6)
    assert not report.ok


def test_an_interruption_ends_it_early_and_is_told(small: Small) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    report = check.check(small("vizwiz"), interrupt)
    assert report.unchecked == 2
    assert not report.ok


def test_collecting_does_not_change_what_is_read(small: Small) -> None:
    for name in OFFICIAL:
        benchmark = small(name)
        read, problems = benchmark.problems()
        assert [question.id for question in read] == [question.id for question in benchmark.questions]
        assert problems == []
