"""A byte-level BPE tokenizer cut down to the tokens that given texts use.

A model with random weights learns nothing about tokens that no text has, and pays for them: with GPT-NeoX-20B's 50,277
tokens, the demo's output layer, its gradient and its optimizer state take more than half of a training step.
"""

import json
from collections.abc import Iterable
from typing import Any

import tokenizers


def pruned(source: str, texts: Iterable[str]) -> str:
    """The tokenizer with its special tokens, the 256 bytes, and every token of `texts` with the merges that lead to it.

    It encodes `texts` into the same tokens (with other ids), because the merges that take part keep their order. All
    other text can still be encoded, into shorter tokens, and is decoded without loss.

    Args:
        source: a tokenizer.json of Hugging Face's `tokenizers`, of type BPE on bytes, without dropout.

    Returns:
        such a JSON text; the same for the same set of texts.
    """
    tree = json.loads(source)
    model: dict[str, Any] = tree["model"]
    vocabulary: dict[str, int] = model["vocab"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    parts = {"".join(merge): merge for merge in reversed(merges)}  # of several merges to a token, the first is applied
    full = tokenizers.Tokenizer.from_str(source)
    wanted = {token for text in texts for token in full.encode(text, add_special_tokens=False).tokens}
    kept = {token for token in vocabulary if len(token) == 1}
    while wanted:
        token = wanted.pop()
        if token in kept or token not in vocabulary:  # an added token is no product of merges
            continue
        kept.add(token)
        wanted |= set(parts.get(token, ()))
    special = [added for added in tree["added_tokens"] if added["special"]]
    names = [added["content"] for added in special]
    names += sorted((token for token in kept if token not in names), key=vocabulary.__getitem__)
    ids = {token: number for number, token in enumerate(names)}
    model["vocab"] = ids
    model["merges"] = [" ".join(merge) for merge in merges if {*merge, "".join(merge)} <= kept]
    tree["added_tokens"] = [added | {"id": ids[added["content"]]} for added in special]
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
