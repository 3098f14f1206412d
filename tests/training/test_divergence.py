import math
import random

import pytest

from ablate.training.divergence import DivergenceMonitor, diverged


def first_alarm(losses, **fields):
    monitor = DivergenceMonitor(5.0, **fields)
    return next((i for i, loss in enumerate(losses) if monitor.check(loss, 1.0)), None)


def test_a_usual_curve_is_let_through():
    noise = random.Random(0)
    curve = [10.8 * math.exp(-step / 50) + 0.05 for step in range(400)]
    assert first_alarm([loss * noise.uniform(0.5, 2.0) for loss in curve]) is None


def test_one_hard_batch_is_let_through():
    assert first_alarm([1.0] * 50 + [30.0] + [1.0] * 50) is None


def test_staying_high_is_divergence():
    assert first_alarm([1.0] * 50 + [9.0] * 20, patience=5) == 54


def test_the_median_does_not_follow_the_loss_up():
    assert first_alarm([1.0] * 30 + [9.0, 1.0] * 3 + [9.0] * 5, window=10, patience=5) == 40


def test_tiny_losses_that_multiply_are_no_divergence():
    assert first_alarm([0.001] * 50 + [0.5] * 50) is None


def test_early_steps_are_not_judged():
    assert first_alarm([1.0] * 5 + [100.0] * 10, warmup=20) is None


@pytest.mark.parametrize("factor", [0.0, 5.0])
@pytest.mark.parametrize(("loss", "norm", "reason"), [(math.nan, 1.0, "loss is nan"), (1.0, math.inf, "norm is inf")])
def test_values_that_are_not_finite_stop_at_once(factor, loss, norm, reason):
    assert reason in DivergenceMonitor(factor).check(loss, norm)


def test_factor_zero_looks_for_nothing_else():
    monitor = DivergenceMonitor(0.0)
    assert all(monitor.check(loss, 1.0) is None for loss in [1.0] * 50 + [1e6] * 50)


def test_the_message_has_step_keys_and_advice():
    message = str(diverged(7, "the loss is nan", [f"k{i}" for i in range(10)], 0.003, 5))
    for part in ("step 7", "k0, k1", "k7 and 2 more", "checkpoint of step 5", "it was 0.003", "train.warmup_ratio"):
        assert part in message
    assert "no checkpoint was written yet" in str(diverged(1, "x", [], 0.1, 0))
