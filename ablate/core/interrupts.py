"""Ctrl-C and SIGTERM: finish the step, save, report how to continue.

One request often arrives as several signals: a scheduler signals the whole process group, the runner passes on its own,
a wrapper repeats what the terminal sent. Further ones within `GRACE_SECONDS` count as the same request, so that no mix
of them costs the checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ablate.core.errors import UserError

# Of saving. A signal after that is a request of its own: stop at once.
GRACE_SECONDS = 50.0


class Interrupted(UserError):
    """The run was asked to stop and can be continued. `exit_code` is the shell's: 128 + the signal."""

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


class StopRequest:
    """Whether, and by which signal, the process was asked to stop."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.signum: int | None = None
        # While steps run, a signal only asks; at any other time there is nothing to finish first.
        self.deferred = False
        self._say = say
        self._process = os.getpid()
        self._since = 0.0

    def requested(self) -> bool:
        return self.signum is not None

    def handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data loader's worker, forked with this handler
            _leave_to_parent(signum)
            return
        if self.signum is None:
            self.signum, self._since = signum, time.monotonic()
            if not self.deferred:
                raise KeyboardInterrupt
            self._say(r"Stopping after this step, with a checkpoint. Ctrl-\ stops at once, without.")
        elif time.monotonic() - self._since > GRACE_SECONDS:
            raise KeyboardInterrupt

    def listen(self) -> None:
        """Handle SIGINT and SIGTERM, in the main thread; Python delivers signals nowhere else."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self.handle)


def _leave_to_parent(signum: int) -> None:
    """Signals reach all processes of a terminal or a job: the one that trains ends its workers, when it needs them no
    more. A worker that is asked to end and is not done within the grace time is ended by the system.
    """
    if signum == signal.SIGTERM:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(max(1, round(GRACE_SECONDS)))


@contextmanager
def stop_requests(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Listen to SIGINT and SIGTERM; afterwards they do what they did before."""
    request = StopRequest(say)
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    request.listen()
    try:
        yield request
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in before.items():
                signal.signal(signum, handler)
