"""Stopping on request: a signal lets the step under way finish, and the run saves and ends."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from pipelines.errors import InterruptedRun

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Of schedulers, of the keyboard, and of Slurm's `--signal` before a job's time is up."""


class StopRequest:
    """Notes the first signal. The keyboard's second one acts as if nobody listened; schedulers repeat theirs."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def agreed(self, device: "torch.device") -> str | None:
        """The signal that any rank got so far, on every rank alike; None if there was none."""
        import torch
        import torch.distributed as dist

        number = torch.tensor(signal.Signals[self._name].value if self._name else 0, device=device)
        if dist.get_world_size() > 1:
            dist.all_reduce(number, dist.ReduceOp.MAX)
        value = int(number.item())
        return signal.Signals(value).name if value else None

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._name is None:
            self._name = signal.Signals(number).name
            log.info("%s: saving after this step", self._name)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._former[signal.SIGINT])


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Where no step is under way: end on a signal, which comes as KeyboardInterrupt, as an interrupted run ends."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        # Not an Exception: libraries that are loaded try this and that, and would go on.
        raise KeyboardInterrupt(signal.Signals(number).name)

    former = {}
    if threading.current_thread() is threading.main_thread():
        former = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRun(told(error)) from error
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def told(error: KeyboardInterrupt) -> str:
    """What to say of a run that a signal ended at once."""
    return f"stopped by {error.args[0] if error.args else 'SIGINT'} at once; the same command continues"
