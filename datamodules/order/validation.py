"""Which images are kept out of training, for the validation loss."""

from collections.abc import Sequence

import numpy as np

from ablate.core.seeds import bits64


def held_out(images: Sequence[str], share: float, seed: int) -> np.ndarray:
    """(samples,) bool: whether a sample is for validation, by its image.

    Every image is drawn by itself, from the seed and its name alone: all conversations about it are on one side, and
    neither other data nor their order change on which.

    Args:
        images: what names the image of each sample, such as its SHA-256.
        share: of the images, the share that is expected to be drawn, in [0, 1].
    """
    drawn = {name: bits64(seed, name) / 2**64 < share for name in set(images)}
    return np.fromiter((drawn[name] for name in images), bool, len(images))
