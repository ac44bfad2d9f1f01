"""Writing large files past the page cache, where what is read back once would push out what others need.

A page of cache costs more than the disk: on a virtual machine 2 GB went to new pages in 10 s and past them in 2 s.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

PIECE = 4 << 20
"""Bytes that go to the disk at once, from and to multiples of themselves: any disk's blocks divide it."""
_PAGE = 4096
# Systems without it write through their cache, which gives the same file.
_DIRECT: int = getattr(os, "O_DIRECT", 0)


class DirectFile:
    """A file whose ranges are given once each, by any thread, nearly in order; a piece is written when it is full.

    Args:
        size: bytes of the whole file.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._changing = Lock()
        self._open: dict[int, tuple[mmap.mmap, int]] = {}
        """Of pieces that are not full: what is there, and how many bytes of it."""
        self._free: list[mmap.mmap] = []

    def write(self, offset: int, content: bytes | memoryview) -> None:
        """Put bytes at a place.

        Raises:
            OSError: if the disk takes no more.
        """
        with memoryview(content).cast("B") as view:
            position = 0
            while position < len(view):
                number, within = divmod(offset + position, PIECE)
                part = view[position : position + PIECE - within]
                self._put(number, within, part)
                position += len(part)

    def finish(self) -> None:
        """Cut off what the last piece was filled up with.

        Raises:
            AssertionError: if a range was never given.
        """
        assert not self._open, f"{len(self._open)} pieces of a file are not full"
        os.ftruncate(self._descriptor, self._size)

    def _put(self, number: int, within: int, part: memoryview) -> None:
        with self._changing:
            if number not in self._open:
                self._open[number] = (self._free.pop() if self._free else mmap.mmap(-1, PIECE), 0)
            buffer, _ = self._open[number]
        buffer[within : within + len(part)] = part
        with self._changing:
            filled = self._open[number][1] + len(part)
            self._open[number] = (buffer, filled)
            length = min(PIECE, self._size - number * PIECE)
            assert filled <= length, "a range of a file was given twice"
            if filled < length:
                return
            del self._open[number]
        self._flush(buffer, number * PIECE, length)
        with self._changing:
            self._free.append(buffer)

    def _flush(self, buffer: mmap.mmap, offset: int, length: int) -> None:
        # To whole pages, as the disk wants them; `finish` cuts the rest off.
        with memoryview(buffer) as whole, whole[: -(-length // _PAGE) * _PAGE] as content:
            done = 0
            while done < len(content):
                try:
                    done += os.pwrite(self._descriptor, content[done:], offset + done)
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._through_the_cache():
                        raise

    def _through_the_cache(self) -> bool:
        """Go on without the short cut, where this file system wants other borders for it; False if that is so."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
        return bool(flags & _DIRECT)


@contextmanager
def direct_file(path: Path, size: int) -> Iterator[DirectFile]:
    """A new file of a known size; every byte of it has to be given."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        descriptor = os.open(path, flags | _DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.open(path, flags, 0o666)
    try:
        file = DirectFile(descriptor, size)
        yield file
        file.finish()
    finally:
        os.close(descriptor)
