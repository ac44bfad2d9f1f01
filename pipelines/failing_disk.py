"""What a disk that is full or fails means to the user, wherever in a command it shows."""

import errno
import os
from pathlib import Path

from pipelines.errors import MachineError

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


def storage_error(error: OSError) -> MachineError | None:
    """The error to show, or None where it is not about storage and so our fault.

    Stages keep what they finished, so that their remedy is always the same.
    """
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    place = error.filename if isinstance(error.filename, str | os.PathLike) else None
    where = f"{os.fspath(place)}: " if place is not None else ""
    return MachineError(
        f"{where}{os.strerror(error.errno or 0)}{_room(place)}; {remedy}, then the same command goes on"
    )


def _room(place: "str | os.PathLike[str] | None") -> str:
    if place is None:
        return ""
    try:
        found = os.statvfs(Path(place).parent)
    except OSError:
        return ""
    return f" ({found.f_bavail * found.f_frsize:,} bytes free)"
