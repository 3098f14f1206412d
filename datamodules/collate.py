"""Rows -> the batch dictionary that the model takes. Training and evaluation build their batches here.

    input_ids  int64 (b, l)   IMAGE_TOKEN_ID where a visual token goes; right padded
    labels     int64 (b, l)   the token id where it is learned, IGNORE_INDEX elsewhere; not shifted
    mask       bool  (b, l)   True = a real token
    keys       list[str]      the samples' names, in the order of the rows
    images     list[Tensor (n, 3, H, W)], one per encoder, or
    features   Tensor (n, h, w, c), from a cache; neither where no row has an image

The n images are in the order of the rows that have one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from datamodules import IGNORE_INDEX
from datamodules.features import FeatureStore

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


def collate(rows: Sequence[Row], *, pad_id: int, features: FeatureStore | None = None) -> Batch:
    """Build a batch.

    Args:
        rows: at least one.
        pad_id: token id that fills up the right side; masked, so any valid one will do.
        features: where given, images come from here by their hash.

    Raises:
        UserError: the cache lacks one of the images.
    """
    ids = [torch.tensor(row.input_ids, dtype=torch.int64) for row in rows]
    labels = [torch.tensor(row.labels, dtype=torch.int64) for row in rows]
    lengths = torch.tensor([len(row) for row in ids])
    batch: Batch = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "mask": torch.arange(int(lengths.max())) < lengths[:, None],
        "keys": [row.key for row in rows],
    }
    if features is not None:
        if hashes := [row.image_sha256 for row in rows if row.image_sha256]:
            batch["features"] = features.get(hashes)
    elif images := [row.images for row in rows if row.images is not None]:
        batch["images"] = [torch.stack(per_encoder) for per_encoder in zip(*images, strict=True)]
    return batch
