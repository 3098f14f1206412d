"""How long a sweep still takes, against a simulation that plays it through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.sweeps.display import sweep_seconds

SECONDS = st.integers(0, 1000)


def simulate(running, waiting, slots):
    """Second by second."""
    left, queue, now = list(running), list(waiting), 0
    while left or queue:
        while queue and len(left) < slots:
            left.append(queue.pop(0))
        step = min(left)
        now += step
        left = [seconds - step for seconds in left if seconds > step]
    return now


@given(st.lists(st.tuples(SECONDS, SECONDS), max_size=4), st.lists(SECONDS, max_size=10), st.integers(0, 3))
def test_known_durations_give_what_the_scheduler_will_take(running, waiting, idle):
    slots = max(1, len(running) + idle)
    expected = simulate([left for _, left in running], waiting, slots)
    assert sweep_seconds(running, waiting, slots) == expected


@given(st.lists(st.integers(1, 99), min_size=1, max_size=4), st.integers(100, 1000), st.integers(0, 12))
def test_runs_that_have_not_started_count_whole(elapsed, duration, waiting):
    """All runs take equally long and none has finished: however far the first ones are, the end stays where it is."""
    slots = len(elapsed)
    running = [(seconds, duration - seconds) for seconds in elapsed]
    assert sweep_seconds(running, [None] * waiting, slots) == pytest.approx(
        simulate([left for _, left in running], [duration] * waiting, slots)
    )


def test_the_first_of_six_runs_at_its_end_leaves_five_whole_runs():
    assert sweep_seconds([(600.0, 1.0)], [None] * 5, 1) == pytest.approx(1 + 5 * 601)
    assert sweep_seconds([(600.0, 1.0)], [300.0] * 5, 2) == pytest.approx(900)


def test_nothing_known_is_not_zero():
    assert sweep_seconds([(5.0, None)], [None], 1) is None
    assert sweep_seconds([(5.0, None)], [60.0], 1) == pytest.approx(55 + 60)
    assert sweep_seconds([], [], 2) == 0
