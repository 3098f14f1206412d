"""What is asked about a scene, how it is put to a model, and the conversations to train on.

The six kinds of question mirror six benchmarks; the prompt of each is the benchmark's own (the scorers' side has the
same ones, and a test compares them). In a conversation no turn gives away a later turn's answer: otherwise a model
could learn to read the answer from the text instead of from the picture.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from datamodules.demo.catalogue import Catalogue
from datamodules.demo.scenes import DEGRADATIONS, WORDS, Scene, SceneMaker

SHORT_ANSWER = "Answer the question using a single word or phrase."
PLAIN_BODY = "{question}\n" + SHORT_ANSWER
VIZWIZ_BODY = "{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT_ANSWER
VSR_BODY = (
    'Based on the image, is this statement "True" or "False"? {question}\nRespond with "True" or "False" directly.'
)


@dataclass(frozen=True)
class Prompts:
    """What stands around a question of each kind, with `{question}` where it goes."""

    plain: str
    vizwiz: str
    vsr: str


# "official": the benchmarks' own. "bare": as few tokens as will do, for language models that start from nothing and
# budgets of minutes.
PROMPTS = {
    "official": Prompts(PLAIN_BODY, VIZWIZ_BODY, VSR_BODY),
    "bare": Prompts("{question}", "{question}", "{question} True or False?"),
}

NAME_QUESTION = "What is in the picture?"
LARGEST_QUESTION = "What is the largest object?"
GREY_QUESTION = "What is the black and white object?"
CAPTION_QUESTION = "Describe the picture."
SIGN_QUESTION = "What does the sign say?"
SIDE_QUESTIONS = {
    "left": "What is on the left side?",
    "right": "What is on the right side?",
    "top": "What is at the top?",
    "bottom": "What is at the bottom?",
}
VIZWIZ_QUESTIONS = ("What is this?", "What is this in the photo?", "Can you tell me what this is?")
UNANSWERABLE = "unanswerable"
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CORNERS = ("top left", "top right", "bottom left", "bottom right")

# Shares of the training pictures.
SCENE_SHARES = {"single": 0.22, "pair": 0.22, "corner": 0.24, "grey": 0.10, "sign": 0.14, "degraded": 0.08}
# A single scene's conversation asks for the object's name with this probability: always, but not after
# "Is there a ...? Yes".
NAMED_SHARE = 0.75


def article(name: str) -> str:
    """The name with its indefinite article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def presence_question(name: str) -> str:
    return f"Is there {article(name)} in the image?"


def relation_question(relation: str, anchor: str) -> str:
    """Which object stands in that relation to the anchor?"""
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
    """Everything in the picture with its place, from the top down: "rabbit top left, duck bottom right"."""
    parts = [(f"sign {scene.sign.word}", scene.sign)] if scene.sign else []
    parts += [(thing.name, thing) for thing in scene.things]
    ordered = sorted(parts, key=lambda part: (round(part[1].y, 1), part[1].x))
    return ", ".join(" ".join([name, *_place(each.x, each.y)]) for name, each in ordered)


def _place(x: float, y: float) -> list[str]:
    """Where a point is in the picture, in words; nothing for its middle."""
    upright = ["top"] if y < 0.4 else ["bottom"] if y > 0.6 else []
    sideways = ["left"] if x < 0.4 else ["right"] if x > 0.6 else []
    return upright + sideways


@dataclass(frozen=True)
class Turn:
    """One question (the whole prompt body) and its answer."""

    body: str
    answer: str


@dataclass
class _Context:
    """What the turns so far have told: the objects that were named, and whose places are known."""

    mentioned: set[str]
    placed: set[frozenset[str]]


_Ask = Callable[[_Context], Turn | None]


class ConversationMaker:
    """Conversations about training scenes: turns in random order, each left out where an earlier one gives it away.

    Args:
        catalogue: for the classes and their themes.
        rng: decides the order, the wording and every coin.
        per_image: how many conversations a picture has.
        prompts: what stands around the questions.
    """

    def __init__(self, catalogue: Catalogue, rng: np.random.Generator, per_image: int, prompts: Prompts) -> None:
        self.catalogue, self.rng, self.per_image, self.prompts = catalogue, rng, per_image, prompts

    def conversation(self, asks: list[_Ask]) -> list[Turn]:
        """The turns of `asks` in random order; at least one."""
        context = _Context(set(), set())
        order = [asks[i] for i in self.rng.permutation(len(asks))]
        turns = (ask(context) for ask in order)
        return [turn for turn in turns if turn is not None]

    def name(self, question: str, answer: str, prompt: str = "", tells: frozenset[str] = frozenset()) -> _Ask:
        """Ask for an object's name.

        Args:
            prompt: what stands around the question, `prompts.plain` if empty.
            tells: the pair of objects whose places the answer gives away.
        """

        def ask(context: _Context) -> Turn | None:
            if answer in context.mentioned:
                return None
            context.mentioned.add(answer)
            if tells:
                context.placed.add(tells)
            return Turn((prompt or self.prompts.plain).format(question=question), answer)

        return ask

    def relation(self, relation: str, anchor: str, answer: str) -> _Ask:
        """Ask which object stands in a relation to an anchor."""
        ask_name = self.name(relation_question(relation, anchor), answer, tells=frozenset((anchor, answer)))

        def ask(context: _Context) -> Turn | None:
            turn = ask_name(context)
            if turn is not None:
                context.mentioned.add(anchor)
            return turn

        return ask

    def presence(self, present: tuple[str, ...]) -> _Ask:
        """Ask whether some object is there; yes and no are equally likely, whatever was said before."""

        def ask(context: _Context) -> Turn | None:
            unsaid = [name for name in present if name not in context.mentioned]
            # The coin is thrown only where both sides can still be asked: else what was said would tell the answer.
            if not unsaid:
                return None
            if self.rng.random() < 0.5:
                name, answer = str(self.rng.choice(unsaid)), "Yes"
            else:
                name, answer = self._absent(present, context.mentioned), "No"
            context.mentioned.add(name)
            return Turn(self.prompts.plain.format(question=presence_question(name)), answer)

        return ask

    def spatial(self, first: str, second: str, relation: str) -> _Ask:
        """A statement on how `first` stands to `second` (in truth: `relation`), true or false with equal chance."""

        def ask(context: _Context) -> Turn | None:
            pair = frozenset((first, second))
            if pair in context.placed:
                return None
            context.placed.add(pair)
            context.mentioned |= pair
            true = self.rng.random() < 0.5
            said = relation if true else OPPOSITE[relation]
            subject, anchor = first, second
            if self.rng.random() < 0.5:
                subject, anchor, said = second, first, OPPOSITE[said]
            body = self.prompts.vsr.format(question=statement(subject, said, anchor))
            return Turn(body, "True" if true else "False")

        return ask

    def _absent(self, present: tuple[str, ...], mentioned: set[str]) -> str:
        """An object that is not there: one of the theme of one that is, every second time."""
        names = [name for name in self.catalogue.classes if name not in present and name not in mentioned]
        if self.rng.random() < 0.5:
            themes = {self.catalogue.theme[name] for name in present}
            names = [name for name in names if self.catalogue.theme[name] in themes] or names
        return str(self.rng.choice(names))


def training_sample(
    catalogue: Catalogue, rng: np.random.Generator, n_conversations: int, prompts: Prompts
) -> tuple[Scene, list[list[Turn]]]:
    """A training scene and conversations about it.

    Args:
        rng: the sample's own generator; the sample depends on nothing else.
        n_conversations: how many at most; each starts with nothing said.
        prompts: what stands around the questions, one of `PROMPTS`.
    """
    kind = str(rng.choice(list(SCENE_SHARES), p=list(SCENE_SHARES.values())))
    if kind in ("grey", "degraded"):
        n_conversations = 1  # there is one thing to ask
    maker, talk = SceneMaker(catalogue, rng, "train"), ConversationMaker(catalogue, rng, n_conversations, prompts)
    scene, asks = _TRAINING[kind](catalogue, rng, maker, talk)
    conversations = [talk.conversation(asks()) for _ in range(n_conversations)]
    if scene.degradation == "none":
        # As in LLaVA's mix: a caption, at the end of each conversation because it gives everything away.
        told = Turn(prompts.plain.format(question=CAPTION_QUESTION), caption(scene))
        conversations = [[*turns, told] for turns in conversations]
    return scene, conversations


_Sample = tuple[Scene, Callable[[], list[_Ask]]]


def _pick(catalogue: Catalogue, rng: np.random.Generator, count: int) -> list[str]:
    return [str(name) for name in rng.choice(catalogue.classes, size=count, replace=False)]


def _single(catalogue: Catalogue, rng: np.random.Generator, maker: SceneMaker, talk: ConversationMaker) -> _Sample:
    (name,) = _pick(catalogue, rng, 1)
    # So that half of all questions in VizWiz's words are unanswerable: as many as there are degraded pictures.
    vizwiz_share = SCENE_SHARES["degraded"] / (NAMED_SHARE * SCENE_SHARES["single"] * talk.per_image)

    def asks() -> list[_Ask]:
        if rng.random() < vizwiz_share:
            naming = talk.name(str(rng.choice(VIZWIZ_QUESTIONS)), name, talk.prompts.vizwiz)
        else:
            naming = talk.name(NAME_QUESTION, name)
        return [naming, talk.presence((name,))]

    return maker.single(name), asks


def _pair(catalogue: Catalogue, rng: np.random.Generator, maker: SceneMaker, talk: ConversationMaker) -> _Sample:
    first, second = _pick(catalogue, rng, 2)
    axis = "h" if rng.random() < 0.5 else "v"
    sides, relation = (("left", "right"), "left of") if axis == "h" else (("top", "bottom"), "above")
    both = frozenset((first, second))
    unequal = rng.random() < 0.6
    largest = str(rng.choice([first, second]))

    def asks() -> list[_Ask]:
        presence = talk.presence((first, second))
        if rng.random() < 0.5:
            return [talk.spatial(first, second, relation), presence]
        naming = [talk.name(SIDE_QUESTIONS[s], n, tells=both) for s, n in zip(sides, (first, second), strict=True)]
        if unequal and rng.random() < 0.67:
            naming[int(rng.integers(2))] = talk.name(LARGEST_QUESTION, largest)
        return [*naming, presence]

    scene = maker.unequal_pair(first, second, axis, largest) if unequal else maker.pair(first, second, axis)
    return scene, asks


def _corner(catalogue: Catalogue, rng: np.random.Generator, maker: SceneMaker, talk: ConversationMaker) -> _Sample:
    anchor, beside, stacked = _pick(catalogue, rng, 3)
    corner = str(rng.choice(CORNERS))
    sideways, upright = relations_of(corner)

    def asks() -> list[_Ask]:
        presence = [talk.presence((anchor, beside, stacked)) for _ in range(2)]
        if rng.random() < 0.6:
            return [talk.relation(sideways, anchor, beside), talk.relation(upright, anchor, stacked), *presence]
        return [talk.spatial(beside, anchor, sideways), talk.spatial(stacked, anchor, upright), *presence]

    return maker.corner(anchor, beside, stacked, corner), asks


def _grey(catalogue: Catalogue, rng: np.random.Generator, maker: SceneMaker, talk: ConversationMaker) -> _Sample:
    (grey,) = _pick(catalogue, rng, 1)
    other = str(rng.choice(colourful_classes(catalogue, grey, unseen=False)))
    axis = "h" if rng.random() < 0.5 else "v"
    # No other question: which objects can stand beside a grey one is not balanced, and would show in the answers.
    return maker.black_and_white(grey, other, axis), lambda: [talk.name(GREY_QUESTION, grey)]


def _sign(catalogue: Catalogue, rng: np.random.Generator, maker: SceneMaker, talk: ConversationMaker) -> _Sample:
    word = str(rng.choice(WORDS))
    companion = _pick(catalogue, rng, 1)[0] if rng.random() < 0.5 else None

    def asks() -> list[_Ask]:
        reading = [talk.name(SIGN_QUESTION, word)]
        return reading if companion is None else [*reading, talk.presence((companion,))]

    return maker.sign(word, companion), asks


def _degraded(catalogue: Catalogue, rng: np.random.Generator, maker: SceneMaker, talk: ConversationMaker) -> _Sample:
    (name,) = _pick(catalogue, rng, 1)
    scene = maker.degraded(name, DEGRADATIONS[int(rng.integers(len(DEGRADATIONS)))])
    return scene, lambda: [talk.name(str(rng.choice(VIZWIZ_QUESTIONS)), UNANSWERABLE, talk.prompts.vizwiz)]


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
