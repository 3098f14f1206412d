"""A thin layer over `tokenizers.Tokenizer` that never parses special tokens in plain text."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from ablate.core.errors import UserError

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"


class Tokenizer:
    """Text <-> token ids.

    Text is always plain text: "<|endoftext|>" inside a user's question becomes ordinary characters, so it can neither
    end a turn nor reset a document. Special tokens are put in by id (`eos_id`).

    Attributes:
        eos_id: the token that ends an answer.
        pad_id: fills up shorter rows; `<|padding|>` where the vocabulary has it, else `eos_id` (the mask, not the id,
            says what is padding).
        vocab_size: number of ids, added tokens included; a model's embedding must have at least as many rows.
    """

    def __init__(self, inner: tokenizers.Tokenizer, *, eos_token: str = END_OF_TEXT):
        """
        Args:
            inner: the tokenizer; its handling of special tokens is switched off in place.
            eos_token: the end token, which must be in the vocabulary.

        Raises:
            UserError: the vocabulary lacks `eos_token`.
        """
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
        eos_id = inner.token_to_id(eos_token)
        if eos_id is None:
            raise UserError(f'The tokenizer has no token "{eos_token}" to end an answer with.')
        pad_id = inner.token_to_id(PADDING)
        self._inner = inner
        self._eos_token = eos_token
        self.eos_id: int = eos_id
        self.pad_id: int = eos_id if pad_id is None else pad_id

    @classmethod
    def from_file(cls, path: Path | str, *, eos_token: str = END_OF_TEXT) -> "Tokenizer":
        """Read a `tokenizer.json` of the Hugging Face `tokenizers` library.

        Raises:
            UserError: the file is missing or is not such a file.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"No tokenizer at {path}. Give the path of a tokenizer.json, or run `ablate data demo`, which brings "
                "GPT-NeoX-20B's."
            )
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path} is not a tokenizer.json of the `tokenizers` library: {error}") from None
        return cls(inner, eos_token=eos_token)

    def __getstate__(self) -> tuple[str, str]:
        return self._inner.to_str(), self._eos_token

    def __setstate__(self, state: tuple[str, str]) -> None:
        # Pickling `tokenizers.Tokenizer` itself would lose `encode_special_tokens`, which is not part of its JSON.
        text, eos_token = state
        self.__init__(tokenizers.Tokenizer.from_str(text), eos_token=eos_token)  # type: ignore[misc]

    @property
    def vocab_size(self) -> int:
        return self._inner.get_vocab_size(with_added_tokens=True)

    @property
    def digest(self) -> str:
        """SHA-256 of the tokenizer's JSON: what it must share with a model, a cache or another run."""
        return hashlib.sha256(self._inner.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with nothing added before or after."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of token ids. `skip_special` leaves out end and padding tokens."""
        return self._inner.decode(list(ids), skip_special_tokens=skip_special)
