"""Training conversations: true to the scene, and balanced."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy import stats

from ablate.demo import questions as q
from ablate.demo.catalogue import Catalogue
from ablate.demo.scenes import WORDS, Scene
from ablate.evaluation import benchmarks

N_SAMPLES = 3000
Sample = tuple[Scene, list[list[q.Turn]]]


def make(catalogue: Catalogue, count: int, n_conversations: int = 2, prompts: str = "bare") -> list[Sample]:
    return [
        q.training_sample(catalogue, np.random.default_rng([7, i]), n_conversations, q.PROMPTS[prompts])
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def samples(photos: Catalogue) -> list[Sample]:
    return make(photos, N_SAMPLES)


@pytest.fixture(scope="module")
def turns(samples: list[Sample]) -> list[q.Turn]:
    return [turn for _, conversations in samples for turns in conversations for turn in turns]


def fair(hits: int, of: int) -> bool:
    """Whether a coin that falls so often may be fair (p > 0.001)."""
    return stats.binomtest(hits, of).pvalue > 1e-3


def test_answers_are_true(samples: list[Sample]) -> None:
    """Checked from the picture's geometry and nothing else."""
    for scene, conversations in samples:
        at = {thing.name: thing for thing in scene.things}
        for turn in (turn for turns in conversations for turn in turns):
            assert turn.answer == _truth(turn.body, scene, at), (turn, scene)


def _truth(body: str, scene: Scene, at: dict) -> str:
    names = list(at)
    if body == q.CAPTION_QUESTION:
        return q.caption(scene)
    if body == q.SIGN_QUESTION:
        assert scene.sign is not None
        return scene.sign.word
    if scene.degradation != "none":
        return q.UNANSWERABLE
    if match := re.fullmatch(r"Is there an? (\w+) in the image\?", body):
        return "Yes" if match[1] in at else "No"
    if match := re.fullmatch(r"The (\w+) is (left of|right of|above|below) the (\w+)\.", body):
        subject = scene.sign if match[1] == "sign" else at[match[1]]
        return str(_stands(subject, match[2], at[match[3]]))
    if match := re.fullmatch(r"What is (?:to the )?(left of|right of|above|below) the (\w+)\?", body):
        (answer,) = [name for name in names if name != match[2] and _stands(at[name], match[1], at[match[2]])]
        return answer
    if body == q.GREY_QUESTION:
        (answer,) = [name for name in names if at[name].grey]
        return answer
    if body == q.LARGEST_QUESTION:
        return max(names, key=lambda name: at[name].area)
    extremes = {"left": (min, "x"), "right": (max, "x"), "top": (min, "y"), "bottom": (max, "y")}
    for side, question in q.SIDE_QUESTIONS.items():
        if body == question:
            choose, axis = extremes[side]
            return choose(names, key=lambda name: getattr(at[name], axis))
    assert body in (q.NAME_QUESTION, *q.VIZWIZ_QUESTIONS)
    (answer,) = names
    return answer


def test_captions_name_everything_once_and_come_last(samples: list[Sample]) -> None:
    for scene, conversations in samples:
        for turns in conversations:
            captions = [turn.answer for turn in turns if turn.body == q.CAPTION_QUESTION]
            assert len(captions) == (scene.degradation == "none")
            if captions:
                assert turns[-1].answer == captions[0]
                words = ["sign", scene.sign.word] if scene.sign else []
                assert sorted(captions[0].split()) == sorted([*scene.names, *words])


def _stands(subject, relation: str, anchor) -> bool:
    """By the centres, and by a margin: a quarter of the picture at least."""
    across, down = subject.x - anchor.x, subject.y - anchor.y
    return {"left of": -across, "right of": across, "above": -down, "below": down}[relation] > 0.2


@pytest.mark.parametrize("answers", [("Yes", "No"), ("True", "False")])
def test_coins_are_fair_wherever_they_stand(samples: list[Sample], answers: tuple[str, str]) -> None:
    by_place: dict[int, Counter] = defaultdict(Counter)
    for _, conversations in samples:
        for turns in conversations:
            for place, turn in enumerate(turns):
                if turn.answer in answers:
                    by_place[place][turn.answer] += 1
    assert len(by_place) >= 2
    for place, counts in by_place.items():
        assert fair(counts[answers[0]], counts.total()), (place, counts)


def test_a_question_does_not_tell_its_answer(turns: list[q.Turn], photos: Catalogue) -> None:
    """For each object that is asked for: as often present as absent."""
    presence: dict[str, Counter] = defaultdict(Counter)
    for turn in turns:
        if turn.answer in ("Yes", "No"):
            presence[turn.body][turn.answer] += 1
    assert len(presence) == len(photos.classes)
    pvalues = [stats.binomtest(counts["Yes"], counts.total()).pvalue for counts in presence.values()]
    assert min(pvalues) > 1e-3 / len(pvalues)


@pytest.mark.parametrize(
    "question",
    [q.NAME_QUESTION, q.LARGEST_QUESTION, q.GREY_QUESTION, *q.SIDE_QUESTIONS.values(), *q.VIZWIZ_QUESTIONS],
)
def test_all_objects_are_equally_often_the_answer(samples: list[Sample], photos: Catalogue, question: str) -> None:
    # Each picture once: its conversations ask the same, and the test wants independent draws.
    once = {
        (picture, turn.answer)
        for picture, (_, conversations) in enumerate(samples)
        for turns in conversations
        for turn in turns
        if turn.body == question and turn.answer != q.UNANSWERABLE
    }
    counts = Counter(answer for _, answer in once)
    observed = [counts[name] for name in photos.classes]
    assert sum(observed) == counts.total() > 60
    assert stats.chisquare(observed).pvalue > 1e-3


def test_words_are_equally_frequent(samples: list[Sample]) -> None:
    counts = Counter(scene.sign.word for scene, _ in samples if scene.sign)
    assert counts.keys() == set(WORDS)
    assert stats.chisquare([counts[word] for word in WORDS]).pvalue > 1e-3


@pytest.mark.parametrize("n_conversations", [1, 2, 3])
def test_half_of_vizwiz_is_unanswerable(photos: Catalogue, n_conversations: int) -> None:
    samples = make(photos, N_SAMPLES, n_conversations)
    turns = [turn for _, conversations in samples for turns in conversations for turn in turns]
    asked = [turn.answer for turn in turns if turn.body in q.VIZWIZ_QUESTIONS]
    # The clean half is a random number, not a coin's: allow for its variance.
    share = np.mean([answer == q.UNANSWERABLE for answer in asked])
    assert abs(share - 0.5) < 4 * np.sqrt(0.5 / len(asked))


def test_training_shows_nothing_that_is_held_out(samples: list[Sample]) -> None:
    for scene, _ in samples:
        assert scene.backdrop.split == "train"
        assert not scene.unseen
        assert not any(thing.unseen for thing in scene.things)


def test_a_sample_depends_on_its_number_alone(photos: Catalogue) -> None:
    assert make(photos, 20)[13] == make(photos, 14)[13]
    assert make(photos, 1)[0] != q.training_sample(photos, np.random.default_rng([8, 0]), 2, q.PROMPTS["bare"])


def test_it_works_with_drawn_shapes(shapes: Catalogue) -> None:
    for scene, conversations in make(shapes, 200):
        assert all(conversations)
        assert set(scene.names) <= set(shapes.classes)


@pytest.mark.parametrize(("name", "kind"), [("demo_vqa", "plain"), ("demo_vizwiz", "vizwiz"), ("demo_vsr", "vsr")])
@pytest.mark.parametrize("prompts", ["official", "bare"])
def test_prompts_are_those_of_the_benchmarks(tmp_path, photos: Catalogue, name: str, kind: str, prompts: str) -> None:
    """What is trained is what is asked: the two sides are written apart, since data cannot import evaluation."""
    from ablate.demo import evalsets
    from ablate.demo.config import DemoConfig

    images = evalsets.plan(name, photos, DemoConfig(n_eval_questions=24))
    evalsets.write_annotations(name, tmp_path, images, 64)
    prompt = {} if prompts == "official" else {"prompt": "bare"}
    for question in benchmarks.create(name, tmp_path, images=False, **prompt).questions:
        assert question.body == getattr(q.PROMPTS[prompts], kind).format(question=question.text)
