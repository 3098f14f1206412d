"""The exact length of every sample in tokens, counted once: what packing plans with."""

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from ablate.core.errors import UserError
from ablate.core.files import atomic_file
from ablate.core.locks import exclusive
from datamodules.batches.loader import StepDataset, unchanged
from datamodules.errors import BadSample

log = logging.getLogger(__name__)

COUNTED_AT_ONCE = 512


def token_counts(dataset: StepDataset, *, num_workers: int, folder: Path) -> np.ndarray:
    """(samples,) int64, the exact tokens of each sample, visual ones included; 1 for one that is left out as bad.

    Every text is tokenized once; the result is kept in `folder` for runs with the same data, tokenizer and template.

    Raises:
        BadSample: a sample cannot be used, and the dataset does not skip such.
    """
    encoder, samples = dataset.encoder, len(dataset.shards)
    names: list[Any] = [dataset.shards.digest, encoder.tokenizer.digest, asdict(encoder.template)]
    names += [dataset.on_bad_sample, encoder.num_visual_tokens, encoder.max_length]
    key = hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()
    path = folder / f"tokens-{key[:24]}.npy"
    with exclusive(folder / ".tokens.lock"):  # of the processes of a run, one counts
        kept = _read_counts(path, samples)
        if kept is not None:
            return kept
        log.info("Counting the tokens of %d samples once, for packing (kept in %s)", samples, path)
        counts = _count(dataset, num_workers)
        with atomic_file(path) as file:
            np.save(file, counts, allow_pickle=False)
    return counts


class _Counter(Dataset[list[int] | UserError]):
    """Chunk number -> tokens of its samples. An error is returned: raised in a worker, it would lose its type."""

    def __init__(self, dataset: StepDataset) -> None:
        self.dataset = dataset
        self.starts = range(0, len(dataset.shards), COUNTED_AT_ONCE)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, chunk: int) -> list[int] | UserError:
        end = min(self.starts[chunk] + COUNTED_AT_ONCE, len(self.dataset.shards))
        try:
            return [self._tokens(index) for index in range(self.starts[chunk], end)]
        except UserError as error:
            return error

    def _tokens(self, index: int) -> int:
        try:
            return self.dataset.tokens(index)
        except BadSample:
            if self.dataset.on_bad_sample == "error":
                raise
            return 1  # it will be skipped, and counted then


def _count(dataset: StepDataset, num_workers: int) -> np.ndarray:
    counts: list[int] = []
    loader = DataLoader(_Counter(dataset), batch_size=None, num_workers=num_workers, collate_fn=unchanged)
    for chunk in loader:
        if isinstance(chunk, UserError):
            raise chunk
        counts += chunk
    return np.array(counts, dtype=np.int64)


def _read_counts(path: Path, samples: int) -> np.ndarray | None:
    try:
        counts = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return counts if counts.shape == (samples,) and counts.dtype == np.int64 else None
