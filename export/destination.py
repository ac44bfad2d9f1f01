"""Where an export goes: beside its final name until it is complete and checked, and never over anyone else's files."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.artifacts import MANIFEST, Manifest, commit_directory, sync_file
from pipelines.errors import ConfigError, MachineError

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def refuse_foreign_files(folder: Path) -> None:
    """Make sure that replacing `folder` loses nothing but an earlier export.

    Raises:
        ConfigError: naming a file that no export wrote.
    """
    if not folder.exists():
        return
    manifest = Manifest.read(folder) if folder.is_dir() else None
    ours = {MANIFEST, *(record.path for record in manifest.files)} if manifest else set()
    present = [folder] if not folder.is_dir() else [path for path in folder.rglob("*") if not path.is_dir()]
    foreign = sorted(path for path in present if path.relative_to(folder).as_posix() not in ours)
    if foreign:
        others = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ConfigError(f"{foreign[0]}{others}: not written by an export; move it elsewhere, {folder} is replaced")


@contextmanager
def staged(final: Path, nbytes: int = 0) -> Iterator[Path]:
    """A fresh directory that becomes `final` if the block succeeds, and is gone if it fails.

    Args:
        nbytes: of the files that are going to be written; what `final` holds now stays until they are complete.
    Raises:
        ConfigError: if `final` holds files that no export wrote.
        MachineError: if it cannot be written, since the disk has too little room for instance.
    """
    refuse_foreign_files(final)
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        _refuse_too_little_space(final, nbytes)
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    sync_file(file.fileno())
        commit_directory(temporary, final)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        need = f", {_size(nbytes)} are needed in all and {_size(free_space(final.parent))} are free" if nbytes else ""
        raise MachineError(
            f"{error.filename or final}: cannot be written ({error.strerror}){need}; "
            "free space there or set run.work_dir elsewhere"
        ) from error
    finally:
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def free_space(folder: Path) -> int:
    """Bytes that this process may still write below a directory."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _refuse_too_little_space(final: Path, nbytes: int) -> None:
    free = free_space(final.parent)
    if free < nbytes:
        raise MachineError(
            f"{final}: needs {_size(nbytes)} beside what is there, and {_size(free)} are free; free space there or set "
            "run.work_dir elsewhere"
        )


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 10**8 else f"{nbytes / 1e6:,.1f} MB"
