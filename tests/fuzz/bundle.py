"""An input that is several files: their contents one after the other, each behind a line that fuzzers can cut at."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.artifacts import identity

_BORDER = b"\n%%%%\n"
_DATA = 512  # bytes of every storage in a file of torch.save
_STORAGES = 24


def joined(parts: Sequence[bytes]) -> bytes:
    return _BORDER.join(parts)


def parts(data: bytes, count: int) -> list[bytes]:
    """The files of an input, empty where it ends early."""
    found = data.split(_BORDER, count - 1)
    return found + [b""] * (count - len(found))


def write(data: bytes, folder: Path, names: Sequence[str]) -> None:
    """Write the files of an input below a directory; those that are empty are not there.

    A `manifest.json` is signed, so that what a reader does with it is reached; `.pt` is the pickle of a file of
    torch.save, which is made around it.
    """
    for name, content in zip(names, parts(data, len(names)), strict=True):
        if not content:
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "manifest.json":
            content = signed(content)
        if path.suffix == ".pt":
            write_torch_file(path, content)
        else:
            path.write_bytes(content)


def signed(content: bytes) -> bytes:
    """A manifest with the digest that fits it, as far as it is one."""
    try:
        table = json.loads(content)
        table.pop("sha256", None)
        return json.dumps({**table, "sha256": identity(table)}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return content


def write_torch_file(path: Path, program: bytes) -> None:
    """What torch.save writes around a pickle, with as much data as a small one refers to."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")
        for number in range(_STORAGES):
            archive.writestr(f"archive/data/{number}", bytes(_DATA))


def pickle_of(path: Path) -> bytes:
    """The pickle in a file that torch.save wrote."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        return archive.read(name)
