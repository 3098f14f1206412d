"""Work shared out to processes that cannot outlive the one that started them."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from ablate.core.errors import UserError, file_problem

_MESSAGE, _DONE, _ERROR, _CRASH = range(4)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(function: Callable[[Any], Iterator[Any]], tasks: Sequence[Any], workers: int) -> Iterator[Any]:
    """`function(task)` for every task; what the calls yield arrives here as it comes, in no fixed order.

    Ctrl-C reaches this process alone, which ends the others; killed in any other way, it takes them along.

    Args:
        function: a generator function at the top level of a module.
        workers: processes; with one, all is done in this one.

    Raises:
        UserError, OSError: what `function` raised.
        UserError: a process was killed, as for want of memory.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield from function(task)
        return
    pool: dict[Connection, multiprocessing.Process] = {}
    try:
        for _ in range(workers):
            ours, theirs = multiprocessing.Pipe()
            others = [*pool, ours]  # a fork copies them, and a pipe is closed only where every copy is
            process = multiprocessing.Process(target=_work, args=(theirs, others, function, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            pool[ours] = process
        yield from _deal(pool, list(tasks))
    finally:
        for connection, process in pool.items():
            process.terminate()
            process.join()
            connection.close()


def _deal(pool: dict[Connection, multiprocessing.Process], tasks: list[Any]) -> Iterator[Any]:
    tasks.reverse()
    busy = set(pool)
    for connection in pool:
        connection.send(tasks.pop())
    while busy:
        ready: list[Any] = wait(busy)
        for connection in ready:
            try:
                kind, value = connection.recv()
            except (EOFError, ConnectionResetError):
                pool[connection].join()
                raise UserError(
                    f"A worker process was killed (exit code {pool[connection].exitcode}), which mostly means that "
                    "memory ran out. What was finished is kept: run the same command with fewer --workers."
                ) from None
            if kind == _MESSAGE:
                yield value
            elif kind == _ERROR:
                raise value
            elif kind == _CRASH:
                raise RuntimeError(f"a worker process failed:\n{value}")
            elif tasks:
                connection.send(tasks.pop())
            else:
                busy.discard(connection)


def _work(
    connection: Connection, others: list[Connection], function: Callable[[Any], Iterator[Any]], parent: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in others:
        other.close()
    try:
        while True:
            task = connection.recv()
            try:
                for message in function(task):
                    if os.getppid() != parent:  # its parent no longer waits for this
                        os._exit(1)
                    connection.send((_MESSAGE, message))
                connection.send((_DONE, None))
            except UserError as error:
                connection.send((_ERROR, error))
            except (EOFError, ConnectionError):
                raise
            except OSError as error:  # a file: the command line says which, and what to do
                connection.send((_ERROR, error) if file_problem(error) else (_CRASH, traceback.format_exc()))
            except Exception:
                connection.send((_CRASH, traceback.format_exc()))
    except (EOFError, ConnectionError):
        os._exit(1)
