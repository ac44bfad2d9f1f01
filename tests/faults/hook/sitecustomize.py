"""Python imports this when it starts, where `FAULT` asks for one: it strikes at a chosen change of a chosen directory.

    FAULT="kill 17 /work/dir"    SIGKILL to the whole process group at this process's 17th change below /work/dir
    FAULT="EIO 17 /work/dir"     that change fails with EIO instead, and so does every one after it
    FAULT="count 0 /work/dir"    nothing happens; the number of changes is appended to $FAULT_COUNTS at the end

A change is a file opened for writing, made, renamed or removed, as Python's audit events say.
"""

import atexit
import errno
import os
import signal
import sys
import time
import zlib
from typing import Any

_CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}


def _install(asked: str) -> None:
    kind, at, folder = asked.split(" ", 2)
    made = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal made
        if event not in _CHANGES or not isinstance(args[0], (str, bytes)):
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        path = os.path.abspath(os.fsdecode(args[0]))  # noqa: PTH100 (pathlib is not loaded yet)
        if not path.startswith(folder) or path.endswith(".lock"):
            return
        made += 1
        if kind == "kill" and made == int(at):
            os.killpg(0, signal.SIGKILL)
        if kind not in ("kill", "count") and made >= int(at):
            raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)), path)

    def count() -> None:
        with open(os.environ["FAULT_COUNTS"], "a") as file:  # noqa: PTH123
            file.write(f"{made}\n")

    if kind == "count":
        atexit.register(count)
    sys.addaudithook(hook)


class _Shuffled:
    """What os.scandir returns, in an order that $FAULT_SHUFFLE decides."""

    scandir: Any = staticmethod(os.scandir)

    def __init__(self, *folder: Any) -> None:
        with self.scandir(*folder) as entries:
            self._entries = iter(sorted(entries, key=self._place))

    @staticmethod
    def _place(entry: Any) -> int:
        return zlib.crc32(f"{os.environ['FAULT_SHUFFLE']} {entry.name}".encode("utf-8", "surrogateescape"))

    def __enter__(self) -> "_Shuffled":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> "_Shuffled":
        return self

    def __next__(self) -> Any:
        return next(self._entries)

    def close(self) -> None:
        self._entries = iter(())


def _set_clock(seconds: float) -> None:
    real, began = time.time, time.time()
    time.time = lambda: seconds + real() - began


if "FAULT" in os.environ:
    _install(os.environ["FAULT"])
if "FAULT_CLOCK" in os.environ:
    _set_clock(float(os.environ["FAULT_CLOCK"]))
if "FAULT_SHUFFLE" in os.environ:
    os.scandir = _Shuffled  # type: ignore[assignment]
