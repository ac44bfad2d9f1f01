"""What a disk that is full or fails means to the user, wherever in a command it shows."""

import errno
import io
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.errors import MachineError, PacktrainError

_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room in your quota there",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "make it writable",
    errno.EIO: "look at the disk, or at the connection to it",
    errno.ESTALE: "mount it again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def storing(folder: Path, what: str, nbytes: Callable[[], int]) -> Iterator[None]:
    """Where a disk is full or fails in the block: say what needs how much there, and how much is free.

    Args:
        folder: where the block writes, which is the place of an error that has none.
        what: `prep`, `an export`.
        nbytes: about how much that takes in all, asked only then; 0 if nobody knows.
    Raises:
        MachineError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        if not is_storage_error(error):
            raise
        needed = 0
        with suppress(PacktrainError, OSError):  # of the disk is told first, whatever else is wrong
            needed = nbytes() if error.errno in _NO_ROOM else 0
        found = storage_error(error, folder, f"{what} needs about {needed:,} bytes in all, " if needed else "")
        assert found is not None
        raise found from error


def is_storage_error(error: OSError) -> bool:
    """Whether the system says that a disk is full or fails."""
    return error.errno in _REMEDIES


def storage_error(error: OSError, folder: Path | None = None, needs: str = "") -> MachineError | None:
    """The error to show, or None where it is not about storage and so our fault.

    Stages keep what they finished, so that their remedy is always the same.

    Args:
        folder: the place, where neither the error nor the file that was in use tells one.
        needs: what to say of the room that is needed, before that of the room there is.
    """
    if not is_storage_error(error):
        return None
    place = error.filename if isinstance(error.filename, str | os.PathLike) else _file_in_use(error)
    where = "" if place is None else f"{os.fspath(place)}: "
    if folder is not None and (place is None or Path(place).parent == Path()):  # some name but an entry of a directory
        where = f"{folder}: {where}"
    about = needs + _room(place, folder)
    about = f" ({about.removesuffix(', ')})" if about else ""
    remedy = _REMEDIES[error.errno or 0]
    return MachineError(f"{where}{os.strerror(error.errno or 0)}{about}; {remedy}, then the same command goes on")


def _file_in_use(error: OSError) -> str | None:
    """The file that the code which failed had open: only errors of opening name one."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, io.FileIO | io.BufferedReader | io.BufferedWriter | io.TextIOWrapper):
                with suppress(AttributeError):  # of bytes in memory
                    found = value.name if isinstance(value.name, str) else found
    return found


def _room(place: "str | os.PathLike[str] | None", folder: Path | None) -> str:
    for directory in (None if place is None else Path(place).parent, folder):
        with suppress(OSError):
            if directory is not None:
                found = os.statvfs(directory)
                return f"{found.f_bavail * found.f_frsize:,} bytes free"
    return ""
