"""torchmetrics' binary metrics of NumPy arrays, as fractions; what is 0 / 0 is 0.

They are imported when they are used: torchmetrics takes longer to import than to compute.
"""

import numpy as np
from numpy.typing import ArrayLike


def precision(truth: ArrayLike, said: ArrayLike) -> float:
    """Of those that are said to be positive (said: bool), the share that is."""
    return _compute("binary_precision", truth, said)


def recall(truth: ArrayLike, said: ArrayLike) -> float:
    """Of the positive, the share that is said to be (said: bool)."""
    return _compute("binary_recall", truth, said)


def f1(truth: ArrayLike, said: ArrayLike) -> float:
    """The harmonic mean of precision and recall (said: bool)."""
    return _compute("binary_f1_score", truth, said)


def average_precision(truth: ArrayLike, probability: ArrayLike) -> float:
    """The mean precision over the ranks of the positive (probability: in [0, 1])."""
    return _compute("binary_average_precision", truth, probability)


def roc_auc(truth: ArrayLike, probability: ArrayLike) -> float:
    """The chance that a positive one ranks above a negative one (probability: in [0, 1])."""
    return _compute("binary_auroc", truth, probability)


def _compute(name: str, truth: ArrayLike, said: ArrayLike) -> float:
    import torch
    from torchmetrics.functional import classification

    said = np.asarray(said)
    values = torch.from_numpy(said.astype(np.int64 if said.dtype == bool else np.float64))
    return float(getattr(classification, name)(values, torch.from_numpy(np.asarray(truth).astype(np.int64))))
