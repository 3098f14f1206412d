"""LLaVA conversations -> token ids and labels, with loss on the answers alone.

**How the mask is exact.** A conversation is cut where learning starts and stops, and each piece is tokenized on its
own: everything up to an answer (the template's text and the user's), then the answer, then the end token by its id. No
token can straddle a cut, so which tokens are answers is known by construction, not by searching for text in a tokenized
string. It also makes training and evaluation agree: the prompt at evaluation is the same piece, so its ids are a prefix
of the training ids. The price is that a merge across the cut is never used; generation cannot use it either.

**Text is plain text.** Inside a turn nothing is special except the image marker: a literal "<|endoftext|>" or "{eos}"
typed by a user is ordinary characters.

Record: {"id": str, "image": str (optional), "conversations": [{"from": "human" | "gpt", "value": str}, ...]}
(LLaVA, arXiv 2304.08485; its `llava_v1_5_mix665k.json`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from ablate.core.config import LATER, read_yaml
from ablate.core.errors import UserError, unknown_name
from datamodules import IGNORE_INDEX, IMAGE_TOKEN_ID
from datamodules.errors import BadSample
from datamodules.text.tokenizer import Tokenizer

IMAGE_MARKER = "<image>"
EOS = "{eos}"
ROLES = ("human", "gpt")
IMAGE_PLACES = ("where_it_stands", "first")


@dataclass
class PromptTemplate:
    """The text around the turns. `{eos}` stands for the tokenizer's end token.

    A conversation is `system`, then for each pair of turns
    `user_prefix` question `user_suffix` `assistant_prefix` | `answer_lead` answer `{eos}` | rest of `assistant_suffix`,
    where the part between the bars carries loss.

    Attributes:
        system: before everything.
        user_prefix, user_suffix: around a question.
        assistant_prefix: between a question and its answer.
        answer_lead: begins the answer and is learned with it: a blank for templates whose prompt ends without one
            ("ASSISTANT:"), because byte-level tokenizers join a blank to the word after it.
        assistant_suffix: starts with `{eos}`, the learned end token.
        image: where the visual tokens stand: "where_it_stands", at `<image>`, or "first", before everything.
        questions: whether questions are part of it. Without, a sample is an image and one answer, its caption.
    """

    user_prefix: str = ""
    user_suffix: str = ""
    assistant_prefix: str = ""
    answer_lead: str = ""
    assistant_suffix: str = EOS
    system: str = ""
    image: str = field(default="where_it_stands", metadata=LATER)
    questions: bool = field(default=True, metadata=LATER)

    def __post_init__(self) -> None:
        if self.image not in IMAGE_PLACES:
            raise unknown_name("image place", self.image, IMAGE_PLACES)
        if not self.questions and self.image != "first":
            raise UserError('questions: false leaves the place of the image out as well: set image: "first".')
        if not self.assistant_suffix.startswith(EOS):
            raise UserError(
                f"assistant_suffix is {self.assistant_suffix!r}; it must start with {EOS!r}, the token that ends an "
                "answer, or a model trained with it would never stop."
            )
        if EOS in self.answer_lead:
            raise UserError(f"answer_lead is {self.answer_lead!r}; it cannot contain {EOS!r}.")


def _packaged_templates() -> dict[str, PromptTemplate]:
    folder = Path(__file__).parent / "templates"
    return {path.stem: PromptTemplate(**read_yaml(path)) for path in sorted(folder.glob("*.yaml"))}


# By the name of their file in datamodules/templates/.
TEMPLATES = _packaged_templates()
COBRA, LLAVA_V1 = TEMPLATES["cobra"], TEMPLATES["llava_v1"]


def get_template(name: str) -> PromptTemplate:
    """The template of that name in `TEMPLATES`.

    Raises:
        UserError: there is none; the message lists the choices.
    """
    if name not in TEMPLATES:
        raise unknown_name("prompt template", name, TEMPLATES)
    return TEMPLATES[name]


@dataclass
class Encoded:
    """One conversation as tokens.

    Attributes:
        input_ids: token ids; the image is `num_visual_tokens` consecutive `IMAGE_TOKEN_ID`s.
        labels: the id where it is learned (answers with their end token), `IGNORE_INDEX` elsewhere. Not shifted.
        cut: text tokens left off to keep to `max_length`.
    """

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    cut: int = 0

    def extend(self, ids: list[int], *, learned: bool) -> None:
        self.input_ids += ids
        self.labels += ids if learned else [IGNORE_INDEX] * len(ids)


class _Mark(Enum):
    """What a prompt contains besides text."""

    EOS = "eos"
    IMAGE = "image"


_Piece = str | _Mark


@dataclass
class ConversationEncoder:
    """Turns records into token ids and labels, and questions into prompts, by one template.

    Attributes:
        num_visual_tokens: tokens that an image becomes.
        max_length: longest sequence, visual tokens included; None = any.
    """

    tokenizer: Tokenizer
    template: PromptTemplate
    num_visual_tokens: int
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length <= self.num_visual_tokens:
            raise UserError(
                f"max_length is {self.max_length}, but an image alone takes {self.num_visual_tokens} tokens and is "
                "never cut. Raise max_length or choose a connector with fewer visual tokens."
            )

    def encode(self, record: Mapping[str, Any], *, has_image: bool, key: str) -> Encoded:
        """Token ids and labels of a whole conversation.

        Args:
            record: a LLaVA record. Its turns alternate, human first, and end with an answer.
            has_image: whether an image comes with it. It goes where a human turn says `<image>`, or else first.
            key: names the sample in errors.

        Raises:
            BadSample: no answer, wrong order of roles, an empty turn, a marker without an image or more than one, or
                nothing left to learn within `max_length`.
        """
        turns = _read_turns(record, key)
        if turns[-1][0] != "gpt":
            raise BadSample(key, "the conversation ends without an answer")
        encoded = self._encode_turns(turns, has_image=has_image, key=key)
        encoded.extend(self._prompt_ids(self._after_answer()), learned=False)
        if self.max_length is not None:
            _cut(encoded, self.max_length, key)
        return encoded

    def prompt_ids(self, question: str | Mapping[str, Any], *, has_image: bool, key: str = "prompt") -> list[int]:
        """Token ids that ask for an answer: a prefix of what `encode` gives for the same conversation.

        Args:
            question: the text of one human turn, or a record; its last answer, if it ends with one, is left out.

        Raises:
            BadSample: as `encode`, but for `max_length`, which is not applied to prompts.
        """
        record = {"conversations": [{"from": "human", "value": question}]} if isinstance(question, str) else question
        turns = _read_turns(record, key)
        if turns[-1][0] == "gpt":
            turns.pop()
        return self._encode_turns(turns, has_image=has_image, key=key).input_ids

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer directly after a prompt, with the end token: what `encode` gives for it there."""
        return [*self.tokenizer.encode(self.template.answer_lead + answer), self.tokenizer.eos_id]

    def _encode_turns(self, turns: list[tuple[str, str]], *, has_image: bool, key: str) -> Encoded:
        turns = _place_image(turns, has_image, key)
        template = self.template
        if not template.questions and not (has_image and len(turns) <= 2):
            raise BadSample(key, "the template leaves questions out: it takes an image and one answer, its caption")
        first = has_image and template.image == "first"
        encoded = Encoded()
        before: list[_Piece] = [*([_Mark.IMAGE] if first else []), *_template_pieces(template.system)]
        for role, text in turns:
            if role == "gpt":
                encoded.extend(self._prompt_ids(before), learned=False)
                encoded.extend(self.tokenizer.encode(template.answer_lead + text), learned=True)
                encoded.extend([self.tokenizer.eos_id], learned=True)
                before = self._after_answer()
            elif template.questions:
                before += _template_pieces(template.user_prefix)
                before += [text.replace(IMAGE_MARKER, "").strip()] if first else _body_pieces(text, has_image)
                before += _template_pieces(template.user_suffix + template.assistant_prefix)
        if turns[-1][0] == "human":
            encoded.extend(self._prompt_ids(before), learned=False)
        return encoded

    def _after_answer(self) -> list[_Piece]:
        """What follows the learned end token."""
        return _template_pieces(self.template.assistant_suffix.removeprefix(EOS))

    def _prompt_ids(self, pieces: list[_Piece]) -> list[int]:
        """Tokenize pieces, neighbouring texts as one, so that only images and end tokens cut the text."""
        ids: list[int] = []
        text = ""
        for piece in [*pieces, None]:
            if isinstance(piece, str):
                text += piece
                continue
            ids += self.tokenizer.encode(text) if text else []
            text = ""
            if piece is _Mark.EOS:
                ids.append(self.tokenizer.eos_id)
            elif piece is _Mark.IMAGE:
                ids += [IMAGE_TOKEN_ID] * self.num_visual_tokens
        return ids


def text_size(record: Any) -> tuple[int, int]:
    """Characters and turns of a record, for length estimates: (0, 0) for what is not a conversation."""
    turns = record.get("conversations") if isinstance(record, Mapping) else None
    if not isinstance(turns, list):
        return 0, 0
    values = [turn.get("value") for turn in turns if isinstance(turn, Mapping)]
    return sum(len(value) for value in values if isinstance(value, str)), len(turns)


def check_conversation(record: Any, *, has_image: bool, key: str) -> None:
    """Whether `ConversationEncoder.encode` accepts a record, for any template and length.

    Raises:
        BadSample: as `encode`.
    """
    turns = _read_turns(record, key)
    _place_image(turns, has_image, key)
    if turns[-1][0] != "gpt":
        raise BadSample(key, "the conversation ends without an answer")


def _read_turns(record: Mapping[str, Any], key: str) -> list[tuple[str, str]]:
    """(role, text without outer blanks) of every turn; roles alternate and start with human."""
    turns = record.get("conversations") if isinstance(record, Mapping) else None
    if not isinstance(turns, list) or not turns:
        raise BadSample(key, 'it has no "conversations" list, or an empty one')
    read = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise BadSample(key, f'turn {number} is not {{"from": ..., "value": text}}')
        role, text = turn.get("from"), turn["value"].strip()
        expected = ROLES[number % 2]
        if role != expected:
            raise BadSample(key, f'turn {number} is from "{role}", expected "{expected}" (human and gpt alternate)')
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadSample(key, f"turn {number} holds half of a surrogate pair, which is not text") from None
        if role == "gpt" and not text:
            raise BadSample(key, f"turn {number} is an empty answer")
        read.append((role, text))
    return read


def _place_image(turns: list[tuple[str, str]], has_image: bool, key: str) -> list[tuple[str, str]]:
    """Put the marker first where an image has none, and check that markers and images agree."""
    if any(IMAGE_MARKER in text for role, text in turns if role == "gpt"):
        raise BadSample(key, f"an answer contains {IMAGE_MARKER}; images belong to questions")
    markers = sum(text.count(IMAGE_MARKER) for _, text in turns)
    if markers > 1:
        raise BadSample(key, f"{markers} {IMAGE_MARKER} markers; a sample has one image")
    if markers and not has_image:
        raise BadSample(key, f"it says {IMAGE_MARKER} but has no image")
    if has_image and not markers:
        role, text = turns[0]
        turns = [(role, f"{IMAGE_MARKER}\n{text}".rstrip()), *turns[1:]]
    if any(role == "human" and not text for role, text in turns):
        raise BadSample(key, "an empty question")
    return turns


def _body_pieces(text: str, has_image: bool) -> list[_Piece]:
    if not has_image or IMAGE_MARKER not in text:
        return [text]
    before, after = text.split(IMAGE_MARKER)
    return [before, _Mark.IMAGE, after]


def _template_pieces(text: str) -> list[_Piece]:
    first, *rest = text.split(EOS)
    pieces: list[_Piece] = [first]
    for part in rest:
        pieces += [_Mark.EOS, part]
    return pieces


def _cut(encoded: Encoded, max_length: int, key: str) -> None:
    """Cut text off the end, never visual tokens."""
    cut = max(0, len(encoded.input_ids) - max_length)
    if not cut:
        return
    if IMAGE_TOKEN_ID in encoded.input_ids[max_length:]:
        raise BadSample(key, f"its image ends after max_length ({max_length}) and visual tokens are never cut")
    if all(label == IGNORE_INDEX for label in encoded.labels[:max_length]):
        raise BadSample(key, f"no answer token is left within max_length ({max_length})")
    encoded.input_ids = encoded.input_ids[:max_length]
    encoded.labels = encoded.labels[:max_length]
    encoded.cut = cut
