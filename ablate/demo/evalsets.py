"""The six test sets: balanced by construction, written in the official layouts of the benchmarks they mirror.

Balance means that a reader of the question alone, who knows everything about how the sets are made, does no better than
the best constant answer: in every task all answers are equally frequent, for each wording, and for the yes/no and
true/false tasks for each object and each statement too.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy.optimize import linear_sum_assignment

from ablate.demo import questions as q
from ablate.demo.catalogue import Catalogue
from ablate.demo.config import DemoConfig
from ablate.demo.scenes import DEGRADATIONS, WORDS, Degradation, Scene, SceneMaker

POPE_SPLITS = ("random", "popular", "adversarial")
FORBIDDEN = 1e9
"""The cost of a forbidden assignment."""
MAX_DRAWS = 100


class Unbalanced(Exception):
    """The draw so far cannot be completed to a balanced set."""


@dataclass(frozen=True)
class Asked:
    """One test question.

    Attributes:
        question: as the official file has it, without the rest of the prompt.
        answer: the correct one.
        kind: the wording, relation or split it belongs to; `details` has what else its file needs.
    """

    question: str
    answer: str
    kind: str
    details: dict = field(default_factory=dict)


@dataclass(frozen=True)
class TestImage:
    """A test picture and what is asked about it."""

    __test__ = False  # not a test, despite the name that pytest matches

    scene: Scene
    asked: tuple[Asked, ...]


def plan(task: str, catalogue: Catalogue, config: DemoConfig) -> list[TestImage]:
    """The pictures and questions of one of `config.TASKS`; the same for the same seed."""
    number = list(PLANS).index(task)
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, 1, number]))
    for _ in range(MAX_DRAWS):
        try:
            return PLANS[task](catalogue, config.n_eval_questions, config.unseen_share, rng)
        except Unbalanced:  # in a small set a draw may leave no way; the next one will not
            continue
    raise AssertionError(f"no balanced {task} was found in {MAX_DRAWS} draws")


# -- Balance -----------------------------------------------------------------------------------------------------------


def spread(items: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """`count` of the items, each floor or ceil(count / len(items)) times, in random order."""
    times, rest = divmod(count, len(items))
    chosen = list(items) * times + [items[i] for i in rng.permutation(len(items))[:rest]]
    return [chosen[i] for i in rng.permutation(count)]


def match(
    pool: Sequence[str],
    allowed: Sequence[Callable[[str], bool]],
    rng: np.random.Generator,
    liked: Sequence[Callable[[str], bool]] | None = None,
) -> list[str]:
    """Give every place one item of the pool that it allows, at random, using no item twice.

    Args:
        pool: at least as many items as there are places.
        allowed: for each place, whether it can take an item.
        liked: for each place, whether it should: as many places as possible get such an item.

    Raises:
        Unbalanced: there is no way to do it.
    """
    cost = rng.random((len(allowed), len(pool)))
    if liked is not None:
        cost += 1e3 * np.array([[not likes(item) for item in pool] for likes in liked])
    cost += FORBIDDEN * np.array([[not may(item) for item in pool] for may in allowed])
    places, items = linear_sum_assignment(cost)
    if cost[places, items].max() >= FORBIDDEN:
        raise Unbalanced
    return [pool[i] for i in items]


def match_others(pool: Sequence[str], taken: Sequence[tuple[str, ...]], rng: np.random.Generator) -> list[str]:
    """As `match`: every place takes what it does not hold yet."""
    return match(pool, [_not_in(held) for held in taken], rng)


def _not_in(held: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda item: item not in held


def _in(held: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda item: item in held


def unseen_flags(answers: Sequence[str], share: float, rng: np.random.Generator) -> list[bool]:
    """Mark a share of the places, evenly over the answers."""
    order = sorted(range(len(answers)), key=lambda i: (answers[i], rng.random()))
    phase = rng.random()
    flags = [False] * len(answers)
    for rank, i in enumerate(order):
        flags[i] = int((rank + 1) * share + phase) > int(rank * share + phase)
    return flags


# -- Plans -------------------------------------------------------------------------------------------------------------


def _plain(question: str, answer: str, kind: str, **details: str) -> Asked:
    return Asked(question, answer, kind, details)


def _plan_vqa(catalogue: Catalogue, count: int, share: float, rng: np.random.Generator) -> list[TestImage]:
    """A quarter of the questions each: what is in the picture, on the left, on the right, and the largest."""
    names, n = catalogue.classes, count // 4
    images = []
    single = spread(names, n, rng)
    for name, unseen in zip(single, unseen_flags(single, share, rng), strict=True):
        scene = SceneMaker(catalogue, rng, "test", unseen).single(name)
        images.append(TestImage(scene, (_plain(q.NAME_QUESTION, name, "name"),)))
    left = spread(names, n, rng)
    right = match_others(spread(names, n, rng), [(name,) for name in left], rng)
    # Every class is the largest equally often: possible, since each is on twice as many sides as it has turns.
    turns = [name for name in names for _ in range(-(-n // len(names)))]
    largest = match(turns, [_in(pair) for pair in zip(left, right, strict=True)], rng)
    rows = zip(left, right, largest, unseen_flags(left, share, rng), strict=True)
    for first, second, big, unseen in rows:
        scene = SceneMaker(catalogue, rng, "test", unseen).unequal_pair(first, second, "h", big)
        asked = (
            _plain(q.SIDE_QUESTIONS["left"], first, "left"),
            _plain(q.SIDE_QUESTIONS["right"], second, "right"),
            _plain(q.LARGEST_QUESTION, big, "largest"),
        )
        images.append(TestImage(scene, asked))
    return images


def _plan_gqa(catalogue: Catalogue, count: int, share: float, rng: np.random.Generator) -> list[TestImage]:
    """A third of the questions on the black-and-white object, two thirds on relations to an anchor, two an image."""
    names, n = catalogue.classes, count // 3
    images = []
    grey = spread(names, n, rng)
    for name, unseen in zip(grey, unseen_flags(grey, share, rng), strict=True):
        other = str(rng.choice(q.colourful_classes(catalogue, name, unseen)))
        axis = "h" if rng.random() < 0.5 else "v"
        scene = SceneMaker(catalogue, rng, "test", unseen).black_and_white(name, other, axis)
        images.append(TestImage(scene, (_plain(q.GREY_QUESTION, name, "attribute", subject=name),)))
    for corner in q.CORNERS:
        images += _plan_corner(catalogue, corner, n // 4, share, rng)
    return images


def _plan_corner(catalogue: Catalogue, corner: str, n: int, share: float, rng: np.random.Generator) -> list[TestImage]:
    names = catalogue.classes
    sideways, upright = q.relations_of(corner)
    anchors = spread(names, n, rng)
    beside = match_others(spread(names, n, rng), [(name,) for name in anchors], rng)
    stacked = match_others(spread(names, n, rng), list(zip(anchors, beside, strict=True)), rng)
    images = []
    for anchor, first, second, unseen in zip(anchors, beside, stacked, unseen_flags(anchors, share, rng), strict=True):
        scene = SceneMaker(catalogue, rng, "test", unseen).corner(anchor, first, second, corner)
        asked = tuple(
            _plain(q.relation_question(relation, anchor), answer, relation, subject=anchor)
            for relation, answer in ((sideways, first), (upright, second))
        )
        images.append(TestImage(scene, asked))
    return images


def _plan_textvqa(catalogue: Catalogue, count: int, share: float, rng: np.random.Generator) -> list[TestImage]:
    """One sign an image; every second one beside an object. Unseen: set in another typeface."""
    words = spread(WORDS, count, rng)
    companions = spread(catalogue.classes, count, rng)
    images = []
    for i, unseen in enumerate(unseen_flags(words, share, rng)):
        maker, on_top = SceneMaker(catalogue, rng, "test", unseen), bool(rng.random() < 0.5)
        scene = maker.sign(words[i], companions[i] if i % 2 else None, on_top=on_top)
        images.append(TestImage(scene, (_plain(q.SIGN_QUESTION, words[i], "sign"),)))
    return images


def _plan_pope(catalogue: Catalogue, count: int, share: float, rng: np.random.Generator) -> list[TestImage]:
    """The same images in all three splits; in each split one present and one absent object an image.

    The popular half of the classes is in more images than the other half: every image has one object of each half, and
    every second image another popular one. Absent objects are any ("random"), popular ones ("popular"), or of the theme
    of an object in the image ("adversarial"). So that the object's name tells nothing, each name is asked for as often
    where it is present as where it is absent, in every split.
    """
    n = count // 6
    names = [str(name) for name in rng.permutation(catalogue.classes)]
    popular, rare = names[: len(names) // 2], names[len(names) // 2 :]
    first, second = spread(popular, n, rng), spread(rare, n, rng)
    extra = match_others(spread(popular, n, rng), [(name,) for name in first], rng)
    present = [(a, b, c) if i % 2 else (a, b) for i, (a, b, c) in enumerate(zip(first, second, extra, strict=True))]
    # Of each image's first two objects one is asked for in "random", the other one in "adversarial".
    pairs = list(zip(first, second, strict=True))
    turns = [name for name in names for _ in range(-(-n // len(names)))]
    half = match(turns, [_in(pair) for pair in pairs], rng)
    other = [b if name == a else a for name, (a, b) in zip(half, pairs, strict=True)]
    yes = {"random": half, "popular": first, "adversarial": other}
    theme = catalogue.theme
    no = {split: match_others(yes[split], present, rng) for split in ("random", "popular")}
    near = [_theme_in({theme[name] for name in held}, theme) for held in present]
    no["adversarial"] = match(yes["adversarial"], [_not_in(held) for held in present], rng, liked=near)
    images = []
    for i, unseen in enumerate(unseen_flags(first, share, rng)):
        scene = _pope_scene(SceneMaker(catalogue, rng, "test", unseen), present[i], rng)
        asked = [
            _plain(q.presence_question(name), answer, split, subject=name)
            for split in POPE_SPLITS
            for name, answer in ((yes[split][i], "yes"), (no[split][i], "no"))
        ]
        images.append(TestImage(scene, tuple(asked)))
    return images


def _theme_in(themes: set[str], theme: dict[str, str]) -> Callable[[str], bool]:
    return lambda item: theme[item] in themes


def _pope_scene(maker: SceneMaker, names: tuple[str, ...], rng: np.random.Generator) -> Scene:
    first, second, *third = (names[i] for i in rng.permutation(len(names)))
    if not third:
        return maker.pair(first, second, "h" if rng.random() < 0.5 else "v")
    return maker.corner(first, second, third[0], str(rng.choice(q.CORNERS)))


def _plan_vizwiz(catalogue: Catalogue, count: int, share: float, rng: np.random.Generator) -> list[TestImage]:
    """Half of the pictures show one object; in the other half it cannot be recognized, and the answer is
    "unanswerable".
    """
    images = []
    for degraded in (False, True):
        names = spread(catalogue.classes, count // 2, rng)
        wordings = spread(q.VIZWIZ_QUESTIONS, count // 2, rng)
        damage = spread(DEGRADATIONS, count // 2, rng)
        for i, unseen in enumerate(unseen_flags(names, share, rng)):
            maker = SceneMaker(catalogue, rng, "test", unseen)
            scene = maker.degraded(names[i], cast(Degradation, damage[i])) if degraded else maker.single(names[i])
            answer = q.UNANSWERABLE if degraded else names[i]
            images.append(TestImage(scene, (Asked(wordings[i], answer, scene.degradation),)))
    return [images[i] for i in rng.permutation(count)]


def _plan_vsr(catalogue: Catalogue, count: int, share: float, rng: np.random.Generator) -> list[TestImage]:
    """Every statement twice: once about a picture where it is true, once about one where it is false.

    Half of them are about two objects side by side, half about a sign above or below an object.
    """
    n = count // 8
    first = spread(catalogue.classes, n, rng)
    second = match_others(spread(catalogue.classes, n, rng), [(name,) for name in first], rng)
    relation, opposite = "left of", "right of"
    images = []
    for a, b, unseen in zip(first, second, unseen_flags(first, share, rng), strict=True):
        told = [(a, relation, b), (b, opposite, a)] if rng.random() < 0.5 else [(a, opposite, b), (b, relation, a)]
        told[1] = told[1] if rng.random() < 0.5 else (told[0][2], told[0][1], told[0][0])
        for order in ((a, b), (b, a)):
            scene = SceneMaker(catalogue, rng, "test", unseen).pair(*order, "h")
            asked = tuple(_statement(*each, true=(each[1] == relation) == (each[0] == order[0])) for each in told)
            images.append(TestImage(scene, asked))
    names = spread(catalogue.classes, n, rng)
    for name, unseen in zip(names, unseen_flags(names, share, rng), strict=True):
        for on_top in (True, False):
            scene = SceneMaker(catalogue, rng, "test", unseen).sign(str(rng.choice(WORDS)), name, on_top=on_top)
            truth = {"above": on_top, "below": not on_top}
            images.append(
                TestImage(scene, tuple(_statement("sign", said, name, true=true) for said, true in truth.items()))
            )
    return [images[i] for i in rng.permutation(len(images))]


def _statement(subject: str, relation: str, anchor: str, *, true: bool) -> Asked:
    text = q.statement(subject, relation, anchor)
    details = {"subj": subject, "obj": anchor}
    return Asked(text, "True" if true else "False", relation, details)


PLANS: dict[str, Callable[[Catalogue, int, float, np.random.Generator], list[TestImage]]] = {
    "demo_vqa": _plan_vqa,
    "demo_gqa": _plan_gqa,
    "demo_textvqa": _plan_textvqa,
    "demo_pope": _plan_pope,
    "demo_vizwiz": _plan_vizwiz,
    "demo_vsr": _plan_vsr,
}


# -- Official layouts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How a task's files are written.

    Attributes:
        images: the folder of the pictures.
        image_name: the file name of picture `number` (from 1).
        write: writes the annotation files and returns the ids of all questions with their pictures' numbers.
    """

    images: str
    image_name: Callable[[int], str]
    write: Callable[[Path, list[TestImage], "Layout", int], dict[str, int]]


def write_annotations(task: str, folder: Path, images: list[TestImage], side: int) -> None:
    """Write a task's annotation files and `groups.json` ({question id: "seen" or "unseen"}); the pictures are not.

    Args:
        folder: of the task; its pictures go to `folder / layout.images / layout.image_name(number)`.
        side: of the pictures in pixels, which some layouts state.
    """
    layout = LAYOUTS[task]
    ids = layout.write(folder, images, layout, side)
    groups = {each: "unseen" if images[number - 1].scene.unseen else "seen" for each, number in ids.items()}
    _write_json(folder / "groups.json", groups)


def _numbered(images: list[TestImage]) -> list[tuple[int, int, Asked]]:
    """(picture's number, question's number, question), both from 1 and unique."""
    rows = [(number, asked) for number, image in enumerate(images, start=1) for asked in image.asked]
    return [(number, i, asked) for i, (number, asked) in enumerate(rows, start=1)]


# VQAv2's own types: the longest of its list of beginnings that a question has.
_VQA_TYPES = {"name": "what is in the", "left": "what is on the", "right": "what is on the", "largest": "what is the"}


def _write_vqa(folder: Path, images: list[TestImage], layout: Layout, side: int) -> dict[str, int]:
    head = {
        "info": {"description": "Ablate's demo_vqa, in the layout of VQAv2; not VQAv2.", "version": "1"},
        "data_type": "mscoco",
        "data_subtype": "val2014",
        "license": {"name": "see licences.md", "url": ""},
    }
    asked, answered, ids = [], [], {}
    for number, i, each in _numbered(images):
        ids[str(i)] = number
        asked.append({"image_id": number, "question": each.question, "question_id": i})
        answered.append(
            {
                "question_id": i,
                "image_id": number,
                "question_type": _VQA_TYPES[each.kind],
                "answer_type": "other",
                "multiple_choice_answer": each.answer,
                "answers": [{"answer_id": k, "answer": each.answer, "answer_confidence": "yes"} for k in range(1, 11)],
            }
        )
    _write_json(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json",
        {**head, "task_type": "Open-Ended", "questions": asked},
    )
    _write_json(folder / "v2_mscoco_val2014_annotations.json", {**head, "annotations": answered})
    return ids


def _write_gqa(folder: Path, images: list[TestImage], layout: Layout, side: int) -> dict[str, int]:
    questions, ids = {}, {}
    for number, i, each in _numbered(images):
        name = f"{i:08d}"
        ids[name] = number
        attribute = each.kind == "attribute"
        questions[name] = {
            "semantic": [
                {"operation": "select", "dependencies": [], "argument": each.details["subject"]},
                {"operation": "query" if attribute else "relate", "dependencies": [0], "argument": each.kind},
            ],
            "entailed": [],
            "equivalent": [name],
            "question": each.question,
            "imageId": f"{number:07d}",
            "isBalanced": True,
            "groups": {"global": "object", "local": each.kind},
            "answer": each.answer,
            "semanticStr": f"{each.kind}: {each.details['subject']}",
            "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
            "types": {
                "detailed": "categoryThat" if attribute else "categoryRelS",
                "semantic": "attr" if attribute else "rel",
                "structural": "query",
            },
            "fullAnswer": f"It is {q.article(each.answer)}.",
        }
    _write_json(folder / "testdev_balanced_questions.json", questions)
    return ids


def _write_textvqa(folder: Path, images: list[TestImage], layout: Layout, side: int) -> dict[str, int]:
    data, ids = [], {}
    for number, i, each in _numbered(images):
        ids[str(i)] = number
        data.append(
            {
                "question_id": i,
                "question": each.question,
                "question_tokens": each.question.rstrip("?").lower().split(),
                "image_id": layout.image_name(number).removesuffix(".jpg"),
                "image_width": side,
                "image_height": side,
                "image_classes": ["Sign"],
                "flickr_original_url": "",
                "flickr_300k_url": "",
                "answers": [each.answer] * 10,
                "set_name": "val",
            }
        )
    whole = {"dataset_name": "demo_textvqa", "dataset_type": "val", "dataset_version": "0.5.1", "data": data}
    _write_json(folder / "TextVQA_0.5.1_val.json", whole)
    return ids


def _write_pope(folder: Path, images: list[TestImage], layout: Layout, side: int) -> dict[str, int]:
    ids = {}
    for split in POPE_SPLITS:
        rows: list[dict[str, Any]] = []
        for number, image in enumerate(images, start=1):
            for each in (asked for asked in image.asked if asked.kind == split):
                # Official ids start again at 1 in every file.
                ids[f"{split}/{len(rows) + 1}"] = number
                name = layout.image_name(number)
                rows.append({"question_id": len(rows) + 1, "image": name, "text": each.question, "label": each.answer})
        _write_json_lines(folder / f"coco_pope_{split}.json", rows)
    return ids


def _write_vizwiz(folder: Path, images: list[TestImage], layout: Layout, side: int) -> dict[str, int]:
    entries, ids = [], {}
    for number, image in enumerate(images, start=1):
        (each,) = image.asked
        name = layout.image_name(number)
        ids[name] = number
        answerable = each.answer != q.UNANSWERABLE
        entries.append(
            {
                "image": name,
                "question": each.question,
                "answers": [{"answer": each.answer, "answer_confidence": "yes"}] * 10,
                "answer_type": "other" if answerable else "unanswerable",
                "answerable": int(answerable),
            }
        )
    _write_json(folder / "val.json", entries)
    return ids


def _write_vsr(folder: Path, images: list[TestImage], layout: Layout, side: int) -> dict[str, int]:
    rows, ids = [], {}
    for number, i, each in _numbered(images):
        ids[str(i - 1)] = number  # the release has no ids: the row, from 0
        label = int(each.answer == "True")
        rows.append(
            {
                "image": layout.image_name(number),
                "image_link": "",
                "caption": each.question,
                "label": label,
                "relation": each.kind,
                "subj": each.details["subj"],
                "obj": each.details["obj"],
                "annotator_id": 0,
                "vote_true_validator_id": "[]",
                "vote_false_validator_id": "[]",
            }
        )
    _write_json_lines(folder / "test.jsonl", rows)
    return ids


def _coco(number: int) -> str:
    return f"COCO_val2014_{number:012d}.jpg"


LAYOUTS = {
    "demo_vqa": Layout("val2014", _coco, _write_vqa),
    "demo_gqa": Layout("images", lambda number: f"{number:07d}.jpg", _write_gqa),
    "demo_textvqa": Layout("train_images", lambda number: f"{number:016x}.jpg", _write_textvqa),
    "demo_pope": Layout("val2014", _coco, _write_pope),
    "demo_vizwiz": Layout("val", lambda number: f"VizWiz_val_{number - 1:08d}.jpg", _write_vizwiz),
    "demo_vsr": Layout("images", lambda number: f"{number:012d}.jpg", _write_vsr),
}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def _write_json_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
