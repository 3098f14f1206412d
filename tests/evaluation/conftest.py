"""Tiny benchmarks in the official layouts, written to a temporary folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ablate.evaluation import benchmarks

COCO = "COCO_val2014_{:012d}.jpg"


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_json_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def write_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (7 * number % 256, 0, 0)).save(folder / name)


def humans(*counted: tuple[str, int]) -> list[dict[str, Any]]:
    """humans(("dog", 3), ("cat", 7)): ten answers as VQAv2 and VizWiz have them."""
    texts = [text for text, count in counted for _ in range(count)]
    return [
        {"answer": text, "answer_confidence": "yes", "answer_id": number} for number, text in enumerate(texts, start=1)
    ]


def write_vqav2(root: Path) -> None:
    asked = [
        (1, 11, "Is it a dog?", "is it", "yes/no", humans(("yes", 8), ("no", 2))),
        (2, 11, "How many dogs?", "how many", "number", humans(("2", 5), ("two", 4), ("3", 1))),
        (3, 12, "What is it?", "what is", "other", humans(("t-shirt", 10))),
        (4, 13, "Is it red?", "is it", "yes/no", humans(("no", 7), ("yes", 3))),
    ]
    write_json(
        root / "v2_OpenEnded_mscoco_val2014_questions.json",
        {
            "info": {},
            "task_type": "Open-Ended",
            "data_type": "mscoco",
            "data_subtype": "val2014",
            "license": {},
            "questions": [{"question_id": qid, "image_id": image, "question": text} for qid, image, text, *_ in asked],
        },
    )
    write_json(
        root / "v2_mscoco_val2014_annotations.json",
        {
            "annotations": [
                {
                    "question_id": qid,
                    "image_id": image,
                    "question_type": question_type,
                    "answer_type": answer_type,
                    "multiple_choice_answer": answers[0]["answer"],
                    "answers": answers,
                }
                for qid, image, _, question_type, answer_type, answers in reversed(asked)
            ]
        },
    )
    write_images(root / "val2014", [COCO.format(image) for image in (11, 12, 13)])


def write_gqa(root: Path) -> None:
    asked = {
        "201": ("n1", "What colour is the car?", "red", "query", "attrColor"),
        "202": ("n1", "Is the car red?", "yes", "verify", "verifyColor"),
        "203": ("n2", "Who wears the t-shirt?", "t-shirt", "query", "relS"),
        "204": ("n3", "Is it indoors?", "no", "verify", "place"),
    }
    write_json(
        root / "testdev_balanced_questions.json",
        {
            qid: {
                "semantic": [],
                "entailed": [],
                "equivalent": [qid],
                "question": text,
                "imageId": image,
                "isBalanced": True,
                "groups": {"global": None, "local": "x"},
                "answer": answer,
                "semanticStr": "",
                "annotations": {},
                "types": {"detailed": detailed, "semantic": "attr", "structural": structural},
                "fullAnswer": answer,
            }
            for qid, (image, text, answer, structural, detailed) in asked.items()
        },
    )
    write_images(root / "images", ["n1.jpg", "n2.jpg", "n3.jpg"])


def write_textvqa(root: Path) -> None:
    asked = [
        (34602, "0054c91397f2fe05", "what is the Brand?", ["nokia"] * 8 + ["nokia lumia"] * 2),
        (34603, "0054c91397f2fe05", "what number is it?", ["1,000"] * 10),
        (34604, "005635e119b9f32f", "who is it?", ["joe's"] * 5 + ["joe"] * 5),
    ]
    write_json(
        root / "TextVQA_0.5.1_val.json",
        {
            "dataset_name": "textvqa",
            "dataset_type": "val",
            "dataset_version": "0.5.1",
            "data": [
                {"question_id": qid, "question": text, "image_id": image, "answers": answers, "set_name": "val"}
                for qid, image, text, answers in asked
            ],
        },
    )
    write_json_lines(
        root / "llava_textvqa_val_v051_ocr.jsonl",
        [
            {
                "question_id": image,
                "image": f"{image}.jpg",
                "text": f"{text.capitalize()}\nReference OCR token: NOKIA, {number}\n"
                "Answer the question using a single word or phrase.",
                "category": "default",
            }
            for number, (_, image, text, _) in enumerate(asked)
        ],
    )
    write_images(root / "train_images", ["0054c91397f2fe05.jpg", "005635e119b9f32f.jpg"])


def write_pope(root: Path) -> None:
    for split, size in (("random", 2), ("popular", 4), ("adversarial", 6)):
        write_json_lines(
            root / f"coco_pope_{split}.json",
            [
                {
                    "question_id": number + 1,
                    "image": COCO.format(11 + number // 2),
                    "text": f"Is there a thing {number} in the image?",
                    "label": "no" if number % 2 else "yes",
                }
                for number in range(size)
            ],
        )
    write_images(root / "val2014", [COCO.format(image) for image in (11, 12, 13)])


def write_vizwiz(root: Path) -> None:
    asked = [
        ("VizWiz_val_00000000.jpg", "What is this?", 1, "other", humans(("red", 8), ("maroon", 2))),
        ("VizWiz_val_00000001.jpg", "Is it on?", 1, "yes/no", humans(("unanswerable", 6), ("yes", 4))),
        ("VizWiz_val_00000002.jpg", "What is it?", 0, "unanswerable", humans(("unanswerable", 7), ("blue", 3))),
        ("VizWiz_val_00000003.jpg", "Which one?", 0, "unanswerable", humans(("unanswerable", 10))),
    ]
    write_json(
        root / "val.json",
        [
            {"image": image, "question": text, "answerable": answerable, "answer_type": kind, "answers": answers}
            for image, text, answerable, kind, answers in asked
        ],
    )
    write_images(root / "val", [image for image, *_ in asked])


def write_vsr(root: Path) -> None:
    captions = [("on", 1), ("on", 1), ("under", 0), ("under", 1), ("left of", 0)]
    write_json_lines(
        root / "test.jsonl",
        [
            {
                "image": f"{17 + row // 2:012d}.jpg",
                "image_link": "",
                "caption": f"The cat is {relation} the mat {row}.",
                "label": label,
                "relation": relation,
                "subj": "cat",
                "obj": "mat",
                "annotator_id": 1,
                "vote_true_validator_id": "[1]",
                "vote_false_validator_id": "[]",
            }
            for row, (relation, label) in enumerate(captions)
        ],
    )
    write_images(root / "images", [f"{image:012d}.jpg" for image in (17, 18, 19)])


WRITERS: dict[str, Callable[[Path], None]] = {
    "vqav2": write_vqav2,
    "gqa": write_gqa,
    "textvqa": write_textvqa,
    "pope": write_pope,
    "vizwiz": write_vizwiz,
    "vsr": write_vsr,
}


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    """A folder in the official layout for each of the six benchmarks."""
    for name, write in WRITERS.items():
        write(tmp_path / "data" / name)
    return {name: tmp_path / "data" / name for name in WRITERS}


@pytest.fixture
def small(roots: dict[str, Path]) -> Callable[..., benchmarks.Benchmark]:
    """small("pope", mode="lmms_eval"): the tiny copy of a benchmark, complete as it is."""

    def create(name: str, **options: Any) -> benchmarks.Benchmark:
        return benchmarks.create(name, roots[name], **({"expected": None} | options))

    return create
