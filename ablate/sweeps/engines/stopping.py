"""The signals that ask a sweep, or one run of it, to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)


@dataclass
class Stop:
    """The signal that asked for an end; `at_once`: without saving."""

    signum: int = 0
    at_once: bool = False


@contextlib.contextmanager
def stop_signals(signals: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[Stop]:
    """Note the first of these signals, which must not break a loop (in the main thread; others get none).

    SIGQUIT stops at once.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(signum: int, _frame: object) -> None:
        stop.signum = stop.signum or signum
        stop.at_once = stop.at_once or signum == signal.SIGQUIT

    before = {signum: signal.signal(signum, note) for signum in signals}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
