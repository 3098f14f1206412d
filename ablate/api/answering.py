"""Answers of a trained run: `load(run).answer(image, question)`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack, overload

import torch
from PIL import Image

from ablate.core.errors import UserError
from ablate.model import VLM
from ablate.runs.config import RunConfig
from ablate.runs.weights import load_run
from datamodules.batches.collate import Batch, Row, collate
from datamodules.images.decode import read_image, to_rgb
from datamodules.text.conversation import ConversationEncoder
from datamodules.text.tokenizer import Tokenizer

# A file, an image in memory, or a question without one.
ImageLike = str | Path | Image.Image | None

_T = TypeVar("_T")
_Many = list[_T] | tuple[_T, ...]  # not Sequence: a str is one

BATCH_SIZE = 16
MAX_NEW_TOKENS = 128


class Sampling(TypedDict, total=False):
    """The options of `TrainedModel.answer`, which explains them."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    batch_size: int


def load(run: str | Path, *, device: str = "auto") -> TrainedModel:
    """A trained run, ready to answer.

    Args:
        run: a run's folder, or a weights file or checkpoint in it.
        device: such as "cpu" or "cuda:1"; "auto" is this process's GPU if there is one.

    Raises:
        UserError: no trained run there, or no such device.
    """
    config, vlm = load_run(run)
    return TrainedModel(config, vlm, device=device)


class TrainedModel:
    """A vision-language model with the tokenizer and the prompt template that it was trained with.

    Attributes:
        config: the run's.
        vlm: on `device`, in evaluation mode.
        tokenizer: the run's.
        encoder: makes prompts in the run's template.
        device: a `torch.device`.
    """

    def __init__(self, config: RunConfig, vlm: VLM, *, device: str = "auto") -> None:
        self.config, self.device = config, find_device(device)
        self.vlm = vlm.to(self.device).eval()
        self.tokenizer = Tokenizer.from_file(config.tokenizer)
        self.encoder = ConversationEncoder(self.tokenizer, config.data.prompt_template, vlm.num_visual_tokens)

    def __repr__(self) -> str:
        blind = ", blind" if self.config.blind else ""
        return f"TrainedModel({self.config.connector.name}, seed {self.config.seed}{blind}, {self.device})"

    @overload
    def answer(self, images: ImageLike, questions: str, **options: Unpack[Sampling]) -> str: ...

    @overload
    def answer(
        self, images: _Many[ImageLike], questions: str | _Many[str], **options: Unpack[Sampling]
    ) -> list[str]: ...

    @overload
    def answer(self, images: ImageLike, questions: _Many[str], **options: Unpack[Sampling]) -> list[str]: ...

    def answer(
        self,
        images: ImageLike | _Many[ImageLike],
        questions: str | _Many[str],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
    ) -> str | list[str]:
        """Answer a question about an image, or many in batches.

        Args:
            images: a file, a PIL image (any mode), or None for a question without one; or a list of these, one for
                each question. One image serves all questions of a list.
            questions: the user's turn; or a list of these, one for each image. One question is asked of all images of a
                list.
            max_new_tokens: the longest answer, in tokens.
            temperature: 0 takes the most likely token; above, tokens are drawn from softmax(logits / temperature).
            top_p: draw among the most likely tokens that together have this probability.
            seed: of the drawing. Drawn answers also depend on the batch; at temperature 0 answers do not.
            batch_size: questions at once.

        Returns:
            the answer, a str; a list of them where either argument is a list.

        Raises:
            UserError: an image that cannot be read, lists of different lengths, or an option out of range.
        """
        pairs = _pairs(images, questions)
        check_batch_size(batch_size)
        rows = [self.prompt(question, image, key=f"question {n}") for n, (image, question) in enumerate(pairs)]
        generator = torch.Generator(self.device).manual_seed(seed)
        answers = [""] * len(rows)
        for places in by_length(rows, batch_size):
            generated = self.vlm.generate(
                self.batch([rows[place] for place in places]),
                max_new_tokens=max_new_tokens,
                eos_id=self.tokenizer.eos_id,
                temperature=temperature,
                top_p=top_p,
                generator=generator,
            )
            for place, ids in zip(places, generated, strict=True):
                answers[place] = self.text(ids)
        return answers if _is_many(images) or _is_many(questions) else answers[0]

    def stream(
        self,
        image: ImageLike,
        question: str,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The pieces of `answer(image, question)` while it is made; joined, they are that answer.

        Raises:
            UserError: as `answer`.
        """
        steps = self.vlm.stream(
            self.batch([self.prompt(question, image)]),
            max_new_tokens=max_new_tokens,
            eos_id=self.tokenizer.eos_id,
            temperature=temperature,
            top_p=top_p,
            generator=torch.Generator(self.device).manual_seed(seed),
        )
        ids: list[int] = []
        shown = ""
        for step in steps:
            ids += [token for _, token in step]
            text = self.text(ids)
            # A character of several tokens ends in U+FFFD until its last one.
            if text.startswith(shown) and not text.endswith("\ufffd"):
                if text != shown:
                    yield text[len(shown) :]
                shown = text
        if rest := self.text(ids)[len(shown) :]:
            yield rest

    # -- Parts, for callers with a loop of their own ------------------------------------------------------------------

    def prompt(self, question: str, image: ImageLike = None, *, key: str = "question") -> Row:
        """A question in the run's template, up to where the answer begins. `key` names it in errors."""
        ids = self.encoder.prompt_ids(question, has_image=image is not None, key=key)
        return Row(key, ids, [], self.towers(image, key=key))

    def towers(self, image: ImageLike, *, key: str = "image") -> list[torch.Tensor] | None:
        """The image as each of the encoder's towers takes it, (3, H, W) float32; None for no image."""
        if image is None:
            return None
        if isinstance(image, Image.Image):
            image = to_rgb(image, key=key)
        elif isinstance(image, str | Path):
            image = read_image(image)
        else:
            raise UserError(
                f"{key}: the image is of type {type(image).__name__}; expected a file, a PIL image or None. Of an "
                "array, PIL.Image.fromarray makes one."
            )
        return [transform(image) for transform in self.vlm.encoder.transforms]

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Rows as one batch on the model's device."""
        batch = collate(rows, pad_id=self.tokenizer.pad_id)
        moved = {name: value.to(self.device) if torch.is_tensor(value) else value for name, value in batch.items()}
        if "images" in batch:
            moved["images"] = [tower.to(self.device) for tower in batch["images"]]
        return moved

    def text(self, ids: Sequence[int]) -> str:
        """An answer's text, without special tokens and the spaces around it."""
        return self.tokenizer.decode(ids, skip_special=True).strip()


def find_device(name: str) -> torch.device:
    """A device by its name; "auto": this process's GPU if there is one.

    Raises:
        UserError: no such device.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device is {name!r}: expected auto, cpu, cuda or cuda:N. ({error})") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device is {name}, but PyTorch finds no CUDA device: use cpu or auto.")
        torch.cuda.set_device(device)  # kernels are launched on the current device, whatever their tensors' is
    return device


def by_length(rows: Sequence[Row], batch_size: int, places: Sequence[int] | None = None) -> list[list[int]]:
    """Places of rows in batches of about one length, the longest first: little padding, and memory runs out early."""
    places = range(len(rows)) if places is None else places
    ordered = sorted(places, key=lambda place: len(rows[place].input_ids), reverse=True)
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def check_batch_size(given: int | str) -> int:
    if isinstance(given, bool) or not str(given).isdigit() or int(given) < 1:
        raise UserError(f"batch_size is {given!r}: expected a number from 1 on.")
    return int(given)


def _is_many(given: Any) -> bool:
    return isinstance(given, list | tuple)


def _pairs(images: Any, questions: Any) -> list[tuple[ImageLike, str]]:
    if _is_many(images) and _is_many(questions) and len(images) != len(questions):
        raise UserError(
            f"Got {len(images)} images and {len(questions)} questions: expected one question for each image, or one "
            "image or question for all."
        )
    count = len(images) if _is_many(images) else len(questions) if _is_many(questions) else 1
    all_images = list(images) if _is_many(images) else [images] * count
    all_questions = list(questions) if _is_many(questions) else [questions] * count
    for n, question in enumerate(all_questions):
        if not isinstance(question, str):
            raise UserError(f"question {n} is of type {type(question).__name__}: expected a text.")
    return list(zip(all_images, all_questions, strict=True))
