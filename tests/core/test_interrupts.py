"""Signals reach every process of a terminal; one of them decides."""

import multiprocessing
import os
import signal
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.core import interrupts
from ablate.core.interrupts import stop_requests


def signal_to_oneself(signum: int, seconds: float) -> None:
    os.kill(os.getpid(), signum)
    end = time.monotonic() + seconds  # a sleep would be cut short
    while time.monotonic() < end:
        time.sleep(0.01)
    os._exit(7)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_leaves_signals_to_the_training(signum, capfd):
    with stop_requests(print) as stop:
        stop.deferred = True
        worker = multiprocessing.get_context("fork").Process(target=signal_to_oneself, args=(signum, 0.1))
        worker.start()
        worker.join(30)
        assert worker.exitcode == 7
        assert not stop.requested()
    assert capfd.readouterr().out == ""


def test_a_worker_that_does_not_end_within_the_grace_time_is_ended(monkeypatch):
    monkeypatch.setattr(interrupts, "GRACE_SECONDS", 1.0)
    with stop_requests(print):
        worker = multiprocessing.get_context("fork").Process(target=signal_to_oneself, args=(signal.SIGTERM, 600))
        worker.start()
        worker.join(60)
        assert worker.exitcode == -signal.SIGALRM


@given(st.lists(st.sampled_from([signal.SIGINT, signal.SIGTERM]), min_size=1, max_size=6), st.booleans())
def test_any_mix_of_signals_is_one_request(signals, deferred):
    said: list[str] = []
    with stop_requests(said.append) as stop:
        stop.deferred = deferred
        try:
            os.kill(os.getpid(), signals[0])
            assert deferred
        except KeyboardInterrupt:
            assert not deferred
        for signum in signals[1:]:
            os.kill(os.getpid(), signum)  # raises nothing
        assert stop.signum == signals[0]
    assert len(said) == deferred


def test_after_the_grace_time_a_signal_stops_at_once(monkeypatch):
    monkeypatch.setattr(interrupts, "GRACE_SECONDS", 0.0)
    with stop_requests(lambda _: None) as stop:
        stop.deferred = True
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
