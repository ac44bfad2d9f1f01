"""A file whose place the user names on the command line: a page, a pipeline, digests."""

from pathlib import Path

from pipelines.artifacts import write_atomic
from pipelines.errors import MachineError
from pipelines.failing_disk import storage_error


def write_named_file(path: Path, content: bytes) -> None:
    """Write it, and the directories above it.

    A link stays one, and what is there without being a file, such as /dev/null, is written to and never replaced.

    Raises:
        MachineError: if it cannot be written.
    """
    if path.is_dir():
        raise MachineError(f"{path}: a directory; name the file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            write_atomic(path.resolve(), content)
    except OSError as error:
        if found := storage_error(error):
            raise found from error
        raise MachineError(f"{path}: cannot be written ({error.strerror}); name another file") from error
