import pickle

import pytest
import tokenizers
from tokenizers import models

from ablate.core.errors import UserError
from datamodules.text.tokenizer import Tokenizer


def test_special_tokens_in_text_are_plain_text(tokenizer):
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_pickled_tokenizer_still_reads_plain_text(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("x<|endoftext|>") == tokenizer.encode("x<|endoftext|>")
    assert (again.eos_id, again.pad_id, again.vocab_size) == (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size)
    assert again.digest == tokenizer.digest


def test_ids(tokenizer):
    assert tokenizer.eos_id != tokenizer.pad_id
    assert max(tokenizer.encode("any text \u00e9 \U0001f600")) < tokenizer.vocab_size
    assert tokenizer.decode([tokenizer.eos_id]) == "<|endoftext|>"
    assert tokenizer.decode([*tokenizer.encode("red"), tokenizer.eos_id], skip_special=True) == "red"


def test_pad_is_the_end_token_where_there_is_no_padding_token():
    inner = tokenizers.Tokenizer(models.BPE(vocab={"<|endoftext|>": 0, "a": 1}, merges=[]))
    assert Tokenizer(inner).pad_id == 0


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="ablate data demo"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_file_of_another_kind(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        Tokenizer.from_file(path)


def test_vocabulary_without_the_end_token(tokenizer_file):
    with pytest.raises(UserError, match="</s>"):
        Tokenizer.from_file(tokenizer_file, eos_token="</s>")
