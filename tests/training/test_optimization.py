"""The norm of all gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablate.training.optimization import total_norm


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), data=st.data())
def test_gradients_of_zero_and_their_order_change_no_bit(sizes, data):
    generator = torch.Generator().manual_seed(sum(sizes))
    gradients = [torch.randn(size, generator=generator) for size in sizes]
    norm = total_norm(gradients)
    assert norm == pytest.approx(float(torch.nn.utils.get_total_norm(gradients)), rel=1e-6)
    assert total_norm([torch.zeros(7), *gradients, *[torch.zeros(3)] * 40]) == norm
    assert total_norm(data.draw(st.permutations(gradients))) == norm


def test_of_what_is_not_finite_it_is_not_finite():
    assert total_norm([torch.ones(2), torch.tensor([float("inf")])]) == float("inf")
    assert total_norm([torch.tensor([float("nan")])]) != total_norm([torch.tensor([float("nan")])])
    assert total_norm([]) == 0.0
