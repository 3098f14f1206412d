"""The six test sets: the official readers read them, and a model that does not look at the picture gains nothing."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.demo import evalsets
from ablate.demo import questions as q
from ablate.demo.catalogue import Catalogue
from ablate.demo.config import TASKS, DemoConfig
from ablate.demo.evalsets import Asked, TestImage, match, spread, unseen_flags
from ablate.evaluation import benchmarks

CONFIG = DemoConfig()
YES_NO = {"demo_pope", "demo_vsr"}


def asked(images: list[TestImage]) -> list[Asked]:
    return [each for image in images for each in image.asked]


@pytest.fixture(scope="module")
def plans(photos: Catalogue) -> dict[str, list[TestImage]]:
    return {task: evalsets.plan(task, photos, CONFIG) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_the_number_of_questions_is_as_configured(plans: dict[str, list[TestImage]], task: str) -> None:
    assert len(asked(plans[task])) == CONFIG.n_eval_questions


@pytest.mark.parametrize("task", TASKS)
def test_a_quarter_of_the_questions_is_about_unseen_objects(plans: dict[str, list[TestImage]], task: str) -> None:
    unseen = sum(len(image.asked) for image in plans[task] if image.scene.unseen)
    assert unseen == CONFIG.unseen_share * CONFIG.n_eval_questions
    for image in plans[task]:
        assert image.scene.backdrop.split == "test"
        assert all(thing.unseen is image.scene.unseen for thing in image.scene.things)


@pytest.mark.parametrize("task", TASKS)
def test_all_answers_are_equally_frequent(plans: dict[str, list[TestImage]], task: str) -> None:
    counts = Counter(each.answer for each in asked(plans[task]))
    if task == "demo_vizwiz":
        assert counts.pop(q.UNANSWERABLE) == CONFIG.n_eval_questions / 2
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize("task", ["demo_vqa", "demo_textvqa"])
def test_each_wording_has_all_answers_equally_often(plans: dict[str, list[TestImage]], task: str) -> None:
    by_wording: dict[str, Counter] = defaultdict(Counter)
    for each in asked(plans[task]):
        by_wording[each.question][each.answer] += 1
    for counts in by_wording.values():
        assert len(set(counts.values())) == 1
        assert len(counts) in (len(q.WORDS), 20)


def test_relations_have_all_answers_equally_often(plans: dict[str, list[TestImage]]) -> None:
    by_relation: dict[str, Counter] = defaultdict(Counter)
    for each in asked(plans["demo_gqa"]):
        by_relation[each.kind][each.answer] += 1
        assert each.kind == "attribute" or each.answer != each.details["subject"]
    assert by_relation.keys() == {"attribute", *q.OPPOSITE}
    assert all(len(set(counts.values())) == 1 for counts in by_relation.values())


@pytest.mark.parametrize("task", sorted(YES_NO))
def test_each_question_is_as_often_right_as_wrong(plans: dict[str, list[TestImage]], task: str) -> None:
    """Exactly: no function of the question, even one fitted to the test set, scores anything but 50%."""
    by_question: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for each in asked(plans[task]):
        by_question[each.kind, each.question][each.answer] += 1
    for counts in by_question.values():
        assert len(counts) == 2
        assert len(set(counts.values())) == 1


def test_vizwiz_wordings_do_not_tell_what_can_be_answered(plans: dict[str, list[TestImage]]) -> None:
    by_wording: dict[str, Counter] = defaultdict(Counter)
    for each in asked(plans["demo_vizwiz"]):
        by_wording[each.question][each.answer == q.UNANSWERABLE] += 1
    assert all(counts[True] == counts[False] for counts in by_wording.values())


@pytest.mark.parametrize("task", TASKS)
def test_a_blind_reader_of_the_training_set_does_no_better_than_a_constant(
    photos: Catalogue, plans: dict[str, list[TestImage]], task: str
) -> None:
    """It answers with the training set's most frequent answer to the very same question."""
    prior: dict[str, Counter] = defaultdict(Counter)
    for i in range(3000):
        _, conversations = q.training_sample(photos, np.random.default_rng([3, i]), 2, q.PROMPTS["official"])
        for turn in (turn for turns in conversations for turn in turns):
            prior[turn.body][turn.answer.lower()] += 1
    body = {"demo_vizwiz": q.VIZWIZ_BODY, "demo_vsr": q.VSR_BODY}.get(task, q.PLAIN_BODY)
    questions = asked(plans[task])
    hits = [
        each.answer.lower() == max(known, key=known.__getitem__, default="")
        for each in questions
        for known in [prior[body.format(question=each.question)]]
    ]
    constant = Counter(each.answer for each in questions).most_common(1)[0][1] / len(questions)
    # Three standard errors of a guess; the yes/no tasks are exact.
    slack = 0 if task in YES_NO else 3 * np.sqrt(constant * (1 - constant) / len(questions))
    assert np.mean(hits) <= constant + slack


def test_pope_negatives(photos: Catalogue, plans: dict[str, list[TestImage]]) -> None:
    images = plans["demo_pope"]
    frequency = Counter(name for image in images for name in image.scene.names)
    popular = {each.details["subject"] for each in asked(images) if each.kind == "popular"}
    rare = set(photos.classes) - popular
    assert len(popular) == len(rare)
    assert min(frequency[name] for name in popular) >= max(frequency[name] for name in rare)
    near = 0
    for image in images:
        themes = {photos.theme[name] for name in image.scene.names}
        for each in image.asked:
            assert (each.details["subject"] in image.scene.names) == (each.answer == "yes")
            near += (
                each.kind == "adversarial" and each.answer == "no" and photos.theme[each.details["subject"]] in themes
            )
    assert near >= 0.9 * len(images)


@pytest.mark.parametrize("task", TASKS)
def test_the_official_readers_read_them(tmp_path: Path, photos: Catalogue, task: str) -> None:
    images = evalsets.plan(task, photos, CONFIG)
    evalsets.write_annotations(task, tmp_path, images, 64)
    layout = evalsets.LAYOUTS[task]
    (tmp_path / layout.images).mkdir()
    for number in range(1, len(images) + 1):
        (tmp_path / layout.images / layout.image_name(number)).write_bytes(b"picture")
    benchmark = benchmarks.create(task, tmp_path)
    # POPE's files are one a split: compare regardless of the order.
    read = sorted((each.text, each.answers[0], each.image.name, each.group) for each in benchmark.questions)
    written = sorted(
        (each.question, each.answer, layout.image_name(number), "unseen" if image.scene.unseen else "seen")
        for number, image in enumerate(images, start=1)
        for each in image.asked
    )
    assert read == written
    assert benchmark.n_expected == CONFIG.n_eval_questions
    right = [
        benchmark.judge(each, benchmarks.Answer(text=each.answers[0].capitalize())).score
        for each in benchmark.questions
    ]
    assert min(right) == 1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("count", [24, 48, 120])
def test_other_sizes_and_classes(catalogue: Catalogue, task: str, count: int) -> None:
    for seed in range(3):
        images = evalsets.plan(task, catalogue, DemoConfig(n_eval_questions=count, seed=seed))
        counts = Counter(each.answer for each in asked(images))
        counts.pop(q.UNANSWERABLE, None)
        assert len(asked(images)) == count
        assert len(counts) == 2 or max(counts.values()) <= 6 + count / min(len(catalogue.classes), len(counts))


@pytest.mark.parametrize("task", TASKS)
def test_a_plan_depends_on_the_seed_alone(photos: Catalogue, task: str) -> None:
    assert evalsets.plan(task, photos, CONFIG) == evalsets.plan(task, photos, DemoConfig(num_workers=3))
    assert evalsets.plan(task, photos, CONFIG) != evalsets.plan(task, photos, DemoConfig(seed=1))


@given(st.integers(1, 9), st.integers(0, 60), st.integers(0, 99))
def test_spread_is_even(kinds: int, count: int, seed: int) -> None:
    items = [str(i) for i in range(kinds)]
    counts = Counter(spread(items, count, np.random.default_rng(seed)))
    assert counts.total() == count
    assert max(counts[item] for item in items) - min(counts[item] for item in items) <= 1


@settings(deadline=None)
@given(st.integers(0, 99))
def test_match_uses_every_item_once_and_only_where_it_may(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool = spread(["a", "b", "c", "d"], 16, rng)
    held = spread(["a", "b", "c", "d"], 16, rng)
    given = evalsets.match_others(pool, [(name,) for name in held], rng)
    assert sorted(given) == sorted(pool)
    assert all(ours != theirs for ours, theirs in zip(given, held, strict=True))


def test_match_without_a_way_is_noticed() -> None:
    with pytest.raises(evalsets.Unbalanced):
        match(["a", "a"], [lambda _: True, lambda item: item == "b"], np.random.default_rng(0))


@given(st.integers(1, 200), st.floats(0, 1), st.integers(0, 99))
def test_unseen_flags_mark_a_share(count: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    flags = unseen_flags(spread(["a", "b", "c"], count, rng), share, rng)
    assert abs(sum(flags) - share * count) <= 1 + 1e-6
