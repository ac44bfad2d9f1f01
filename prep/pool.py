"""Worker processes that leave nothing behind, however the work ends."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from threading import Thread
from typing import Any, TypeVar

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

_AHEAD = 8192
"""Jobs submitted beyond the one waited for. A pipe in CPython 3.11 takes 16,384 notes of them, and more may hang it."""
_PATIENCE = 10.0
"""Seconds from one look at the processes to the next, while a result is waited for."""


class Processes(ProcessPoolExecutor):
    """Fresh processes of this machine."""

    def __init__(self, workers: int) -> None:
        self._context = _Context()
        super().__init__(workers, self._context, initializer=_end_with_parent)

    def in_order(
        self, function: Callable[[_Job], _Result], jobs: Iterable[_Job], *, ahead: int = _AHEAD
    ) -> Iterator[_Result]:
        """What a function makes of each job, in the jobs' order.

        Args:
            function: of a module, since the processes import it.
            jobs: what it is called with.
            ahead: jobs taken beyond the one whose result is waited for.
        Raises:
            BrokenProcessPool: if a process died.
        """
        running: deque[Future[_Result]] = deque()
        for job in jobs:
            running.append(self.submit(function, job))
            if len(running) > ahead:
                yield self._result(running.popleft())
        while running:
            yield self._result(running.popleft())

    def kill(self) -> None:
        """End the processes in the middle of their work."""
        for worker in self._context.started:
            if worker.is_alive():
                worker.kill()

    def _result(self, future: "Future[_Result]") -> _Result:
        # In CPython 3.11 a death while work is submitted can leave a result that never comes.
        known = False
        while not wait([future], _PATIENCE).done:
            if known:
                raise BrokenProcessPool("a process died, and its pool did not notice")
            known = any(worker.exitcode for worker in self._context.started)
        return future.result()


@contextmanager
def pool(workers: int) -> Iterator[Processes]:
    """Processes to submit work to.

    When the body ends early (an error, Ctrl-C, a closed generator) they are stopped in the middle of their work, which
    may be hours of one compressed file. When this process is killed they end by themselves. Ctrl-C is seen by this
    process alone, so there is one message.
    """
    processes = Processes(workers)
    try:
        yield processes
    except BaseException:
        processes.kill()
        raise
    finally:
        processes.shutdown(wait=True, cancel_futures=True)


class _Worker(SpawnProcess):
    def start(self) -> None:
        # A handler would come too late: importing takes a second, and an interrupt there prints a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def terminate(self) -> None:
        """What a pool does to the others when one died, and then it waits: SIGTERM may be ignored, or blocked."""
        self.kill()


class _Context(SpawnContext):
    def __init__(self) -> None:
        super().__init__()
        self.started: list[_Worker] = []

    def Process(self, *args: Any, **named: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802 (its name there)
        self.started.append(_Worker(*args, **named))
        return self.started[-1]


def _end_with_parent() -> None:
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
