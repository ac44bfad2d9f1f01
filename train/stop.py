"""Stopping on request: a signal lets the step under way finish, and the run saves and ends."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Of schedulers, of the keyboard, and of Slurm's `--signal` before a job's time is up."""


class StopRequest:
    """Notes the first signal; a second one acts as if nobody listened."""

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

    def agreed(self, device: torch.device) -> str | None:
        """The signal that any rank got so far, on every rank alike; None if there was none."""
        number = torch.tensor(signal.Signals[self._name].value if self._name else 0, device=device)
        if dist.get_world_size() > 1:
            dist.all_reduce(number, dist.ReduceOp.MAX)
        value = int(number.item())
        return signal.Signals(value).name if value else None

    def _note(self, number: int, _: FrameType | None) -> None:
        self._name = signal.Signals(number).name
        log.info("%s: saving after this step", self._name)
        for each, handler in self._former.items():
            signal.signal(each, handler)
