"""What is asked about a scene, how it is put to a model, and the conversations to train on.

The six kinds of question mirror six benchmarks; the scorers' side has the same prompts, and a test compares them. A
conversation has several questions about its picture in random order. Earlier turns can help with later ones, as in
LLaVA's data, but each question is the first one often enough, and a test question is always asked alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ablate.demo.catalogue import Catalogue
from ablate.demo.scenes import DEGRADATIONS, WORDS, Scene, SceneMaker

SHORT_ANSWER = "Answer the question using a single word or phrase."
PLAIN_BODY = "{question}\n" + SHORT_ANSWER
VIZWIZ_BODY = "{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT_ANSWER
VSR_BODY = (
    'Based on the image, is this statement "True" or "False"? {question}\nRespond with "True" or "False" directly.'
)


@dataclass(frozen=True)
class Prompts:
    """The prompt of each kind of question, with `{question}` in its place."""

    plain: str
    vizwiz: str
    vsr: str


# "official": the benchmarks' own. "bare": the question alone, for language models that start from random weights and
# train for minutes. What decides the answer is then among the last few tokens: a small Mamba-2 learns in that time to
# look it up in the image's state, but not to carry it over several further words.
PROMPTS = {
    "official": Prompts(PLAIN_BODY, VIZWIZ_BODY, VSR_BODY),
    "bare": Prompts("{question}", "{question}", "{question}"),
}

NAME_QUESTION = "What is in the picture?"
LARGEST_QUESTION = "What is the largest object?"
GREY_QUESTION = "What is the black and white object?"
CAPTION_QUESTION = "Name everything."
SIGN_QUESTION = "What does the sign say?"
SIDE_QUESTIONS = {
    "left": "What is on the left side?",
    "right": "What is on the right side?",
    "top": "What is at the top?",
    "bottom": "What is at the bottom?",
}
VIZWIZ_QUESTIONS = ("What is this?", "What is this in the photo?", "Can you tell me what this is?")
UNANSWERABLE = "unanswerable"
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CORNERS = ("top left", "top right", "bottom left", "bottom right")

# Shares of the training pictures.
SCENE_SHARES = {"single": 0.14, "pair": 0.34, "corner": 0.20, "grey": 0.06, "sign": 0.18, "degraded": 0.08}


def article(name: str) -> str:
    """The name with its indefinite article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def presence_question(name: str) -> str:
    return f"Is there {article(name)} in the image?"


def relation_question(relation: str, anchor: str) -> str:
    """Ask which object has that relation to the anchor."""
    phrase = f"to the {relation}" if relation in ("left of", "right of") else relation
    return f"What is {phrase} the {anchor}?"


def statement(subject: str, relation: str, anchor: str) -> str:
    return f"The {subject} is {relation} the {anchor}."


def relations_of(corner: str) -> tuple[str, str]:
    """In which relation to an anchor in that corner the objects beside it and above or below it stand."""
    beside = "left of" if corner.endswith("right") else "right of"
    stacked = "above" if corner.startswith("bottom") else "below"
    return beside, stacked


def caption(scene: Scene) -> str:
    """Everything in the picture, from the top down and from the left: "rabbit duck", "sign exit sheep"."""
    parts: list[tuple[str, Any]] = [(f"sign {scene.sign.word}", scene.sign)] if scene.sign else []
    parts += [(thing.name, thing) for thing in scene.things]
    ordered = sorted(parts, key=lambda part: (round(part[1].y, 1), part[1].x))
    return " ".join(name for name, _ in ordered)


@dataclass(frozen=True)
class Turn:
    """One question (the whole prompt body) and its answer."""

    body: str
    answer: str


class TurnMaker:
    """Questions about training scenes with their answers.

    Args:
        catalogue: for the classes and their themes.
        rng: decides the wording and every coin.
        prompts: what stands around the questions.
    """

    def __init__(self, catalogue: Catalogue, rng: np.random.Generator, prompts: Prompts) -> None:
        self.catalogue, self.rng, self.prompts = catalogue, rng, prompts

    def name(self, question: str, answer: str) -> Turn:
        """Ask for an object's name, or for a word."""
        return Turn(self.prompts.plain.format(question=question), answer)

    def vizwiz(self, answer: str) -> Turn:
        """Ask for an object's name as a blind person would."""
        return Turn(self.prompts.vizwiz.format(question=str(self.rng.choice(VIZWIZ_QUESTIONS))), answer)

    def presence(self, present: tuple[str, ...]) -> list[Turn]:
        """Ask for up to two objects that are there, and for as many that are not: yes and no are equally frequent."""
        there = [present[i] for i in self.rng.permutation(len(present))[:2]]
        asked = [(name, "Yes") for name in there]
        while len(asked) < 2 * len(there):
            absent = self._absent((*present, *(name for name, _ in asked)), themes_of=present)
            asked.append((absent, "No"))
        return [self.name(presence_question(name), answer) for name, answer in asked]

    def spatial(self, first: str, second: str, relation: str, count: int = 1) -> list[Turn]:
        """Statements on how `first` stands to `second` (in truth: `relation`), each true or false with equal chance.

        Args:
            count: of at most four: either object is the subject, with either relation.
        """
        opposite = OPPOSITE[relation]
        every = [
            (first, relation, second),
            (second, opposite, first),
            (first, opposite, second),
            (second, relation, first),
        ]
        chosen = self.rng.permutation(4)[:count]
        return [self._statement(*every[i], true=i < 2) for i in chosen]

    def sign_spatial(self, name: str, on_top: bool) -> Turn:
        """A statement on whether the sign is above or below an object, true or false with equal chance."""
        above = bool(self.rng.random() < 0.5)
        return self._statement("sign", "above" if above else "below", name, true=above == on_top)

    def shuffled(self, turns: list[Turn]) -> list[Turn]:
        return [turns[i] for i in self.rng.permutation(len(turns))]

    def _statement(self, subject: str, relation: str, anchor: str, *, true: bool) -> Turn:
        body = self.prompts.vsr.format(question=statement(subject, relation, anchor))
        return Turn(body, "True" if true else "False")

    def _absent(self, taken: tuple[str, ...], themes_of: tuple[str, ...]) -> str:
        """An object that is not among `taken`: every second time of the theme of one in `themes_of`."""
        names = [name for name in self.catalogue.classes if name not in taken]
        if self.rng.random() < 0.5:
            themes = {self.catalogue.theme[name] for name in themes_of}
            names = [name for name in names if self.catalogue.theme[name] in themes] or names
        return str(self.rng.choice(names))


def training_sample(
    catalogue: Catalogue, rng: np.random.Generator, n_conversations: int, prompts: Prompts
) -> tuple[Scene, list[list[Turn]]]:
    """A training scene and conversations about it: its questions in random order, and a caption.

    Args:
        rng: the sample's own generator; the sample depends on nothing else.
        n_conversations: how many; they differ in order, wording and every coin.
        prompts: what stands around the questions, one of `PROMPTS`.
    """
    kind = str(rng.choice(list(SCENE_SHARES), p=list(SCENE_SHARES.values())))
    maker, talk = SceneMaker(catalogue, rng, "train"), TurnMaker(catalogue, rng, prompts)
    scene, ask = _TRAINING[kind](catalogue, rng, maker, talk)
    conversations = []
    for _ in range(n_conversations):
        conversations.append(talk.shuffled(ask()))
        if scene.degradation == "none":
            # As in LLaVA's mix: a caption. Last, because it gives every answer away.
            conversations[-1].append(talk.name(CAPTION_QUESTION, caption(scene)))
    return scene, conversations


_Sample = tuple[Scene, Callable[[], list[Turn]]]


def _pick(catalogue: Catalogue, rng: np.random.Generator, count: int) -> list[str]:
    return [str(name) for name in rng.choice(catalogue.classes, size=count, replace=False)]


def _single(catalogue: Catalogue, rng: np.random.Generator, maker: SceneMaker, talk: TurnMaker) -> _Sample:
    (name,) = _pick(catalogue, rng, 1)
    # So that half of all questions in VizWiz's words are unanswerable: as many as there are degraded pictures.
    vizwiz_share = SCENE_SHARES["degraded"] / SCENE_SHARES["single"]

    def ask() -> list[Turn]:
        naming = talk.vizwiz(name) if rng.random() < vizwiz_share else talk.name(NAME_QUESTION, name)
        return [naming, *talk.presence((name,))]

    return maker.single(name), ask


def _pair(catalogue: Catalogue, rng: np.random.Generator, maker: SceneMaker, talk: TurnMaker) -> _Sample:
    first, second = _pick(catalogue, rng, 2)
    axis = "h" if rng.random() < 0.5 else "v"
    sides, relation = (("left", "right"), "left of") if axis == "h" else (("top", "bottom"), "above")
    unequal = rng.random() < 0.6
    largest = str(rng.choice([first, second]))

    def ask() -> list[Turn]:
        # Either names or yes and no: a name that has been said answers the other questions without the picture.
        if rng.random() < 0.5:
            return [*talk.spatial(first, second, relation, 3), *talk.presence((first, second))]
        turns = [talk.name(SIDE_QUESTIONS[side], name) for side, name in zip(sides, (first, second), strict=True)]
        return [*turns, talk.name(LARGEST_QUESTION, largest)] if unequal else turns

    scene = maker.unequal_pair(first, second, axis, largest) if unequal else maker.pair(first, second, axis)
    return scene, ask


def _corner(catalogue: Catalogue, rng: np.random.Generator, maker: SceneMaker, talk: TurnMaker) -> _Sample:
    anchor, beside, stacked = _pick(catalogue, rng, 3)
    corner = str(rng.choice(CORNERS))
    placed = tuple(zip(relations_of(corner), (beside, stacked), strict=True))

    def ask() -> list[Turn]:
        if rng.random() < 0.5:
            return [talk.name(relation_question(relation, anchor), name) for relation, name in placed]
        statements = [turn for relation, name in placed for turn in talk.spatial(name, anchor, relation)]
        return [*statements, *talk.presence((anchor, beside, stacked))]

    return maker.corner(anchor, beside, stacked, corner), ask


def _grey(catalogue: Catalogue, rng: np.random.Generator, maker: SceneMaker, talk: TurnMaker) -> _Sample:
    (grey,) = _pick(catalogue, rng, 1)
    other = str(rng.choice(colourful_classes(catalogue, grey, unseen=False)))
    axis = "h" if rng.random() < 0.5 else "v"
    # No other question: which objects can stand beside a grey one is not balanced, and would show in the answers.
    return maker.black_and_white(grey, other, axis), lambda: [talk.name(GREY_QUESTION, grey)]


def _sign(catalogue: Catalogue, rng: np.random.Generator, maker: SceneMaker, talk: TurnMaker) -> _Sample:
    word = str(rng.choice(WORDS))
    companion = tuple(_pick(catalogue, rng, 1)) if rng.random() < 0.5 else ()
    on_top = bool(rng.random() < 0.5)

    def ask() -> list[Turn]:
        reading = [talk.name(SIGN_QUESTION, word)]
        return [*reading, talk.sign_spatial(companion[0], on_top), *talk.presence(companion)] if companion else reading

    return maker.sign(word, *companion, on_top=on_top), ask


def _degraded(catalogue: Catalogue, rng: np.random.Generator, maker: SceneMaker, talk: TurnMaker) -> _Sample:
    (name,) = _pick(catalogue, rng, 1)
    scene = maker.degraded(name, DEGRADATIONS[int(rng.integers(len(DEGRADATIONS)))])
    return scene, lambda: [talk.vizwiz(UNANSWERABLE)]


_TRAINING = {
    "single": _single,
    "pair": _pair,
    "corner": _corner,
    "grey": _grey,
    "sign": _sign,
    "degraded": _degraded,
}


def colourful_classes(catalogue: Catalogue, apart_from: str, unseen: bool) -> list[str]:
    """The classes that can stand beside a black-and-white object without being taken for one."""
    return [name for name in catalogue.classes if name != apart_from and catalogue.colourful(name, unseen)]
