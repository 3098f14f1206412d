"""Answers from Python: one or many, together or alone, whole or in pieces."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ablate
from ablate.api.answering import TrainedModel, by_length
from ablate.core.errors import UserError
from datamodules.batches.collate import Row

QUESTIONS = ["what is it ?", "is the car red ?", "a", "is it a dog ? is the car red ? what ?"]


@pytest.fixture
def model(make_run) -> TrainedModel:
    return ablate.load(make_run(), device="cpu")


@pytest.fixture
def pictures(tmp_path):
    images = [Image.fromarray(np.full((40, 30, 3), shade, np.uint8)) for shade in (20, 120, 220)]
    images[0].save(tmp_path / "dark.png")
    return [tmp_path / "dark.png", images[1], images[2].convert("RGBA"), None]


def test_one_question_has_one_answer_and_lists_have_lists(model, pictures):
    alone = [model.answer(image, question) for image, question in zip(pictures, QUESTIONS, strict=True)]
    assert all(isinstance(answer, str) for answer in alone)
    for size in (1, 2, 16):
        assert model.answer(pictures, QUESTIONS, batch_size=size) == alone
    assert model.answer(tuple(pictures), tuple(QUESTIONS)) == alone
    assert model.answer([], []) == []
    assert model.answer([pictures[0]], QUESTIONS[0]) == alone[:1]


def test_one_image_serves_all_questions_and_one_question_all_images(model, pictures):
    assert model.answer(pictures[1], QUESTIONS) == [model.answer(pictures[1], question) for question in QUESTIONS]
    assert model.answer(pictures, "what is it ?") == [model.answer(image, "what is it ?") for image in pictures]


def test_a_path_may_be_text_and_an_image_is_the_file(model, pictures):
    file = pictures[0]
    first = model.answer(file, QUESTIONS[1], max_new_tokens=6)
    assert model.answer(str(file), QUESTIONS[1], max_new_tokens=6) == first
    assert model.answer(Image.open(file), QUESTIONS[1], max_new_tokens=6) == first


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}, {"max_new_tokens": 0}, {"max_new_tokens": 9}])
def test_pieces_join_to_the_answer(model, pictures, options):
    for image, question in zip(pictures, QUESTIONS, strict=True):
        assert "".join(model.stream(image, question, **options)) == model.answer(image, question, **options)


def test_pieces_come_one_by_one_and_leave_the_callers_mode_alone(model, pictures):
    model.vlm.train()
    options = {"max_new_tokens": 12, "temperature": 3.0}
    seed = next(seed for seed in range(100) if len(model.answer(None, "what ?", **options, seed=seed).split()) > 1)
    pieces = model.stream(None, "what ?", **options, seed=seed)
    assert next(pieces)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert model.vlm.language.training
    assert list(pieces)


@given(texts=st.lists(st.text("aé漢🙂 \n", min_size=1, max_size=3), max_size=6))
def test_pieces_of_any_text_join_to_it(texts):
    """Tokens that are single bytes, as a byte-level tokenizer has them: characters end in later tokens."""
    tokens = list("".join(texts).encode())
    model = object.__new__(TrainedModel)
    model.device = torch.device("cpu")
    model.batch, model.prompt = (lambda rows: {}), (lambda question, image: None)
    model.text = lambda ids: bytes(ids).decode(errors="replace").strip()
    model.tokenizer = type("Tokenizer", (), {"eos_id": 256})
    model.vlm = type("VLM", (), {"stream": lambda self, batch, **_: ([(0, token)] for token in tokens)})()
    pieces = list(model.stream(None, ""))
    assert "".join(pieces) == model.text(tokens)
    assert all(pieces)


def test_the_seed_decides_what_is_drawn(model):
    ask = [model.answer(None, "what ?", temperature=3.0, max_new_tokens=12, seed=seed) for seed in (1, 1, 2)]
    assert ask[0] == ask[1] != ask[2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((np.zeros((3, 3, 3)), "what"), "question 0: the image is of type ndarray.*PIL.Image.fromarray"),
        (([None, None], ["a"]), "Got 2 images and 1 questions"),
        ((None, 3), "question 0 is of type int: expected a text"),
        ((None, [b"what"]), "question 0 is of type bytes"),
        (("nowhere.png", "what"), "Cannot read the image nowhere.png"),
        ((None, "<image> what"), "image"),
    ],
)
def test_what_cannot_be_asked_is_said(model, given, said):
    with pytest.raises(UserError, match=said):
        model.answer(*given)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "many"])
def test_batches_have_a_size(model, size):
    with pytest.raises(UserError, match="batch_size is"):
        model.answer(None, "what", batch_size=size)


def test_no_run_no_model(tmp_path):
    with pytest.raises(UserError, match="is not a run's folder"):
        ablate.load(tmp_path)


def test_it_says_what_it_is(model):
    assert repr(model) == "TrainedModel(linear, seed 0, cpu)"


@given(lengths=st.lists(st.integers(0, 9), max_size=20), size=st.integers(1, 7))
def test_batches_hold_every_row_once_in_order_of_length(lengths, size):
    rows = [Row("", [0] * length, []) for length in lengths]
    batches = by_length(rows, size)
    places = [place for batch in batches for place in batch]
    assert sorted(places) == list(range(len(rows)))
    assert [lengths[place] for place in places] == sorted(lengths, reverse=True)
    assert all(len(batch) == size for batch in batches[:-1])
