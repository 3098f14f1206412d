"""Rows -> the batch dictionary that the model takes. Training and evaluation build their batches here.

    input_ids  int64 (b, l)   IMAGE_TOKEN_ID where a visual token goes; right padded
    labels     int64 (b, l)   the token id where it is learned, IGNORE_INDEX elsewhere; not shifted
    mask       bool  (b, l)   True = a real token
    seq_idx    int32 (b, l)   only where rows are packed: the place in `keys` of the sample that each token is of
    keys       list[str]      the samples' names, in the order of the rows
    images     list[Tensor (n, 3, H, W)], one per encoder, or
    features   Tensor (n, h, w, c), from a cache; neither where no row has an image

The n images are in the order of the rows that have one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from datamodules import IGNORE_INDEX
from datamodules.images.feature_cache import FeatureStore

Batch = dict[str, Any]


@dataclass
class Row:
    """One sequence of a batch.

    Attributes:
        images: one (3, H, W) tensor per encoder, or None.
        image_sha256: names the image in a feature cache; used instead of `images` where a cache is given.
    """

    key: str
    input_ids: list[int]
    labels: list[int]
    images: list[Tensor] | None = None
    image_sha256: str = ""


def collate(
    rows: Sequence[Row], *, pad_id: int, features: FeatureStore | None = None, packs: Sequence[int] = ()
) -> Batch:
    """Build a batch.

    Args:
        rows: at least one.
        packs: how many of the rows, in order, become one row of the batch; empty = each its own.
        pad_id: token id that fills up the right side; masked, so any valid one will do.
        features: where given, images come from here by their hash.

    Raises:
        UserError: the cache lacks one of the images.
    """
    groups = _groups(rows, packs)
    ids = [torch.tensor([i for row in group for i in row.input_ids], dtype=torch.int64) for group in groups]
    labels = [torch.tensor([i for row in group for i in row.labels], dtype=torch.int64) for group in groups]
    lengths = torch.tensor([len(row) for row in ids])
    batch: Batch = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "mask": torch.arange(int(lengths.max())) < lengths[:, None],
        "keys": [row.key for row in rows],
    }
    if packs:
        batch["seq_idx"] = _seq_idx(groups)
    if features is not None:
        if hashes := [row.image_sha256 for row in rows if row.image_sha256]:
            batch["features"] = features.get(hashes)
    elif images := [row.images for row in rows if row.images is not None]:
        # In a worker, PyTorch's own collation stacks straight into the memory that it shares with the trainer.
        batch["images"] = [default_collate(list(per_encoder)) for per_encoder in zip(*images, strict=True)]
    return batch


def _groups(rows: Sequence[Row], packs: Sequence[int]) -> list[Sequence[Row]]:
    """The rows that share one row of the batch."""
    ends = list(accumulate(packs or [1] * len(rows)))
    assert ends[-1] == len(rows), f"packs {list(packs)} of {len(rows)} rows"
    return [rows[start:end] for start, end in pairwise([0, *ends])]


def _seq_idx(groups: Sequence[Sequence[Row]]) -> Tensor:
    """(b, l) int32; padding goes with the last sample of its row, so that no document begins there."""
    number = count()
    numbered = [[(next(number), len(row.input_ids)) for row in group] for group in groups]
    lines = [torch.tensor([n for n, size in line for _ in range(size)], dtype=torch.int32) for line in numbered]
    longest = max(map(len, lines))
    return torch.stack([functional.pad(line, (0, longest - len(line)), value=int(line[-1])) for line in lines])
