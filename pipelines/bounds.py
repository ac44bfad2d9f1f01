"""What rendering one conversation by a chat template may take, and how the kernel holds a process to it.

A chat template is a program that comes with somebody's tokenizer. Nothing inside the interpreter stops `'a' * n` or
`10 ** 10 ** 8`, so the kernel does: it ends the process when the processor time is up, and gives it no more memory.
"""

import os
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType

from pipelines.errors import DataError

SECONDS = 2.0
MEMORY = 256 << 20

_MESSAGES = 100
_CHARACTERS = 1 << 18
_PAGE = resource.getpagesize()
_STATM = "/proc/self/statm"
"""Where Linux says what a process holds."""


@dataclass(frozen=True)
class Bounds:
    """What rendering one conversation may take."""

    seconds: float = SECONDS
    """Of processor time."""
    memory: int = MEMORY
    """Bytes beyond what the process holds as rendering begins."""
    text: int = 1 << 22
    """Characters rendered."""

    @classmethod
    def of(cls, messages: int, characters: int) -> "Bounds":
        """More than usual for a conversation of more than 100 messages or 256 thousand characters."""
        if messages <= _MESSAGES and characters <= _CHARACTERS:
            return USUAL
        return cls(
            # Answers are found by rendering what comes before each, so all of the text is rendered for each message.
            SECONDS + 0.02 * max(0, messages - _MESSAGES) + characters / (1 << 20) * max(1, messages / (4 * _MESSAGES)),
            MEMORY + 64 * characters,
            max(USUAL.text, 16 * characters),
        )

    def for_rest(self, seconds: float) -> "Bounds":
        """The same with what is left of the time."""
        return self if seconds == self.seconds else replace(self, seconds=seconds)


USUAL = Bounds()


class RunawayTemplate(DataError):  # noqa: N818 (what is at fault)
    """A chat template takes more than `Bounds`.

    Args:
        name: of the template.
        finding: what it takes.
    """

    def __init__(self, name: str, finding: str) -> None:
        super().__init__(
            f"{name} {finding}, and chat templates need a small part of that; do not trust it: take the tokenizer from "
            "its publisher, or name another template"
        )

    @classmethod
    def of_time(cls, name: str, bounds: Bounds) -> "RunawayTemplate":
        return cls(name, f"takes more than {bounds.seconds:.3g} s of processor time for one conversation")

    @classmethod
    def of_memory(cls, name: str, bounds: Bounds) -> "RunawayTemplate":
        return cls(name, f"takes more than {bounds.memory >> 20} MB of memory for one conversation")

    @classmethod
    def of_text(cls, name: str, bounds: Bounds) -> "RunawayTemplate":
        return cls(name, f"makes more than {bounds.text:,} characters of one conversation")


class Held:
    """`with held(bounds):` in a process that may be lost: SIGPROF ends it when the time is up.

    Memory beyond the bounds is a MemoryError. Both end with the block, so that a process pays for them only there. On
    macOS, where nothing says what a process holds, its time alone is bounded.
    """

    def __init__(self) -> None:
        if signal.getsignal(signal.SIGPROF) is not signal.SIG_DFL:  # who wants a note of its end has seen to it already
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
        self._before = resource.getrlimit(resource.RLIMIT_DATA)
        self._most = min((limit for limit in self._before if limit != resource.RLIM_INFINITY), default=sys.maxsize)
        self._statm: int | None = None
        with suppress(OSError):
            self._statm = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC)
        self._bounds = USUAL

    def __call__(self, bounds: Bounds) -> "Held":
        self._bounds = bounds
        return self

    def __enter__(self) -> None:
        if self._statm is not None:
            held = int(os.pread(self._statm, 128, 0).split()[5]) * _PAGE
            resource.setrlimit(resource.RLIMIT_DATA, (min(held + self._bounds.memory, self._most), self._before[1]))
        signal.setitimer(signal.ITIMER_PROF, self._bounds.seconds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._statm is not None:
            resource.setrlimit(resource.RLIMIT_DATA, self._before)
        signal.setitimer(signal.ITIMER_PROF, 0)
