"""Ctrl-C and SIGTERM: finish the step, save, report how to continue."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ablate.core.errors import UserError


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
        # While steps run, the first signal only asks; at any other time there is nothing to finish first.
        self.deferred = False
        self._say = say
        self._process = os.getpid()

    def requested(self) -> bool:
        return self.signum is not None

    def handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data loader's worker, forked with this handler
            _leave_to_parent(signum)
            return
        first = self.signum is None
        self.signum = self.signum or signum
        if first and self.deferred:
            self._say("Stopping after this step, with a checkpoint; once more stops at once, without.")
        else:
            raise KeyboardInterrupt

    def listen(self) -> None:
        """Handle SIGINT and SIGTERM, in the main thread; Python delivers signals nowhere else."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self.handle)


def _leave_to_parent(signum: int) -> None:
    """A terminal sends Ctrl-C to all processes: the one that trains ends its workers, when it needs them no more."""
    if signum != signal.SIGINT:
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)


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
