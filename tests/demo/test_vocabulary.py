"""A pruned tokenizer: the same tokens for the texts that it was made for, and no text that it cannot encode."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from ablate.demo.vocabulary import pruned
from datamodules.text.tokenizer import Tokenizer

CORPUS = [
    "What is in the picture? rabbit",
    "Is there a guitar in the image? Yes",
    "The sign is above the penguin. True",
    "the theme of the thing there, thus and then thinner",
    "mushroom mushrooms room rooms; picture pictures",
]


@pytest.fixture(scope="module")
def source() -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer.to_str()


TEXTS = st.lists(st.sampled_from(" ".join(CORPUS).split(" ")), max_size=8).map(" ".join)


@given(texts=st.lists(TEXTS, max_size=5))
def test_the_texts_have_the_tokens_that_they_had(source: str, texts: list[str]) -> None:
    before = tokenizers.Tokenizer.from_str(source)
    after = tokenizers.Tokenizer.from_str(pruned(source, texts))
    for text in texts:
        assert after.encode(text).tokens == before.encode(text).tokens
    used = {token for text in texts for token in before.encode(text).tokens}
    assert after.get_vocab_size() <= before.get_vocab_size()
    if not used:
        assert after.get_vocab_size() == 2 + 256


@given(text=st.text(max_size=20))
def test_any_text_comes_back(source: str, text: str) -> None:
    after = tokenizers.Tokenizer.from_str(pruned(source, CORPUS[:1]))
    assert after.decode(after.encode(text).ids) == text


def test_special_tokens_stay_special(source: str, tmp_path) -> None:
    (tmp_path / "tokenizer.json").write_text(pruned(source, CORPUS[:2]))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert {tokenizer.eos_id, tokenizer.pad_id} == {0, 1}
    assert tokenizer.eos_id not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode([tokenizer.eos_id], skip_special=True) == ""


def test_the_order_of_texts_changes_nothing(source: str) -> None:
    assert pruned(source, CORPUS) == pruned(source, reversed(CORPUS))
    ids = json.loads(pruned(source, CORPUS))["model"]["vocab"].values()
    assert sorted(ids) == list(range(len(ids)))
