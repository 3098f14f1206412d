"""The metrics against scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from ablate.evaluation import metrics


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=40))
def test_metrics_are_scikit_learns(rows):
    truth, rank = (np.array(column) for column in zip(*rows, strict=True))
    probability, said = rank / 8, rank >= 4
    for name, expected in (
        ("precision", reference.precision_score(truth, said, zero_division=0)),
        ("recall", reference.recall_score(truth, said, zero_division=0)),
        ("f1", reference.f1_score(truth, said, zero_division=0)),
    ):
        assert getattr(metrics, name)(truth, said) == pytest.approx(expected, abs=1e-12)
    if truth.any():
        expected = reference.average_precision_score(truth, probability)
        assert metrics.average_precision(truth, probability) == pytest.approx(expected, abs=1e-12)
        if not truth.all():
            assert metrics.roc_auc(truth, probability) == pytest.approx(
                reference.roc_auc_score(truth, probability), abs=1e-12
            )
