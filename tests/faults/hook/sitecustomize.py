"""Python imports this when it starts: another clock, and directories listed in another order."""

import os
import time
import zlib
from typing import Any


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


if "FAULT_CLOCK" in os.environ:
    _set_clock(float(os.environ["FAULT_CLOCK"]))
if "FAULT_SHUFFLE" in os.environ:
    os.scandir = _Shuffled  # type: ignore[assignment]
