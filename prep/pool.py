"""Worker processes that leave nothing behind, however the work ends."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from threading import Thread


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes of this machine to submit work to.

    When the body ends early (an error, Ctrl-C, a closed generator) they are stopped in the middle of their work, which
    may be hours of one compressed file. When this process is killed they end by themselves. Ctrl-C is seen by this
    process alone, so there is one message.
    """
    others = set(multiprocessing.active_children())
    processes = ProcessPoolExecutor(workers, _Context(), initializer=_end_with_parent)
    try:
        yield processes
    except BaseException:
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
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


class _Context(SpawnContext):
    Process = _Worker


def _end_with_parent() -> None:
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
