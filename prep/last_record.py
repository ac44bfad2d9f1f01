"""The record that a process is at, left in a file for whoever finds the process ended by `Held`."""

import faulthandler
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FILE = "rendering"
_NUMBER = struct.Struct("<q")


class LastRecord:
    """Kept while a chunk is tokenized; SIGPROF adds a line, by which the end it made is told from any other."""

    def __init__(self, file: int) -> None:
        self._file = file

    def is_at(self, number: int) -> None:
        """The record that is rendered from now on, counted from the chunk's first."""
        os.pwrite(self._file, _NUMBER.pack(number), 0)


@contextmanager
def last_record(folder: Path) -> Iterator[LastRecord]:
    """Keep it in a folder, which is left without it where the work ends by itself."""
    with (folder / _FILE).open("wb", buffering=0) as file:
        file.write(_NUMBER.pack(-1))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # what the note is followed by
        faulthandler.register(signal.SIGPROF, file, all_threads=False, chain=True)
        try:
            yield LastRecord(file.fileno())
        finally:
            faulthandler.unregister(signal.SIGPROF)
    (folder / _FILE).unlink()


def runaway_record(folders: Iterator[Path]) -> int | None:
    """The record at which SIGPROF ended the process that worked in one of these folders; None where it ended none."""
    for folder in folders:
        try:
            left = (folder / _FILE).read_bytes()
        except FileNotFoundError:
            continue
        if len(left) > _NUMBER.size:
            return int(_NUMBER.unpack_from(left)[0])
    return None
