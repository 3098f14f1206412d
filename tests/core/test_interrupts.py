"""Signals reach every process of a terminal; one of them decides."""

import multiprocessing
import os
import signal

import pytest

from ablate.core.interrupts import stop_requests


def signal_to_oneself(signum: int) -> None:
    os.kill(os.getpid(), signum)
    os._exit(7)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 7), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_worker_leaves_ctrl_c_to_the_training_but_can_be_ended(signum, code, capfd):
    with stop_requests(print) as stop:
        stop.deferred = True
        worker = multiprocessing.get_context("fork").Process(target=signal_to_oneself, args=(signum,))
        worker.start()
        worker.join(30)
        assert worker.exitcode == code
        assert not stop.requested()
    assert capfd.readouterr().out == ""


def test_the_training_itself_is_asked_first_and_stopped_then(capfd):
    with stop_requests(print) as stop:
        stop.deferred = True
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested()
        assert capfd.readouterr().out.count("Stopping after this step") == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
