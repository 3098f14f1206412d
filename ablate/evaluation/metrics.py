"""Binary metrics of NumPy arrays (n,), as fractions in float64; what is 0 / 0 is 0.

torchmetrics counts. Its ratios are float32, 1e-8 from the official scorers' figures, so they are taken here, and the
areas under curves are scikit-learn's. Both are imported when they are used: that takes longer than to compute.
"""

import numpy as np
from numpy.typing import ArrayLike


def precision(truth: ArrayLike, said: ArrayLike) -> float:
    """Of those that are said to be positive (said: bool), the share that is."""
    hits, false_alarms, _ = _counts(truth, said)
    return hits / max(1, hits + false_alarms)


def recall(truth: ArrayLike, said: ArrayLike) -> float:
    """Of the positive, the share that is said to be (said: bool)."""
    hits, _, misses = _counts(truth, said)
    return hits / max(1, hits + misses)


def f1(truth: ArrayLike, said: ArrayLike) -> float:
    """The harmonic mean of precision and recall (said: bool)."""
    first, second = precision(truth, said), recall(truth, said)
    return 2 * first * second / (first + second) if first else 0.0


def average_precision(truth: ArrayLike, probability: ArrayLike) -> float:
    """The mean precision over the ranks of the positive (probability: in [0, 1])."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, probability)) if np.any(truth) else 0.0


def roc_auc(truth: ArrayLike, probability: ArrayLike) -> float:
    """The chance that a positive one ranks above a negative one (probability: in [0, 1]); 0.5 without one of both."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, probability)) if np.any(truth) and not np.all(truth) else 0.5


def _counts(truth: ArrayLike, said: ArrayLike) -> tuple[int, int, int]:
    """Hits, false alarms, misses."""
    import torch
    from torchmetrics.functional.classification import binary_stat_scores

    values, labels = (torch.from_numpy(np.asarray(each).astype(np.int64)) for each in (said, truth))
    hits, false_alarms, _, misses, _ = binary_stat_scores(values, labels).tolist()
    return hits, false_alarms, misses
