"""Ranges of numbers in files, read straight into the caller's array; a file is opened once, however many ranges."""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipelines.errors import CheckError

Stored = Literal["float32", "bfloat16", "float16"]
"""Number formats that float32 holds exactly."""
WIDTH: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes a number."""
_MOST_OPEN = 128  # of the thousand and more files that a process may usually have open


class FileRanges:
    """Files that are read from, by any number of threads at once."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, _Open] = OrderedDict()
        self._lock = threading.Lock()

    def read_bytes(self, path: Path, first: int, out: npt.NDArray[Any]) -> None:
        """Fill an array with what lies at byte `first` of a file.

        Args:
            out: contiguous.
        Raises:
            CheckError: if the file ends before, or cannot be read.
        """
        view = out.reshape(-1).view(np.uint8).data
        done = 0
        try:
            file = self._file(path)
            while done < len(view):
                got = os.preadv(file.descriptor, [view[done:]], first + done)
                if not got:
                    break
                done += got
        except OSError as error:
            raise CheckError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
        if done < len(view):
            raise CheckError(f"{path}: ends {len(view) - done:,} bytes early; it was cut short, copy it again")

    def read_numbers(self, path: Path, first: int, stored: Stored, out: npt.NDArray[np.float32]) -> None:
        """Fill a contiguous float32 array with the numbers of another format that lie at byte `first` of a file."""
        if stored == "float32":
            self.read_bytes(path, first, out)
            return
        bits = np.empty(out.size, np.uint16)
        self.read_bytes(path, first, bits)
        flat = out.reshape(-1)
        if stored == "float16":
            flat[:] = bits.view(np.float16)
        else:
            np.left_shift(bits, np.uint32(16), out=flat.view(np.uint32))

    def _file(self, path: Path) -> "_Open":
        with self._lock:
            file = self._open.pop(path, None) or _Open(path)
            self._open[path] = file
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
            return file


class _Open:
    """A file that is closed when the last thread lets go of it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
