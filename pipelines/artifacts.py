"""An artefact: files that appear by rename, with a manifest of their digests written last.

A manifest is canonical JSON and carries nothing that differs between two runs of the same inputs: no time, host or
absolute path (those go to run.json beside it). No manifest, no artefact. Its `sha256` is of all the rest of it, so that
a manifest that was changed is none.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from pipelines.errors import BusyError, CheckError, MachineError
from pipelines.progress import progress_bar

_PART = 1 << 20
"""Bytes of a file in memory while it is digested."""

Json = Any
"""What json.loads returns."""

MANIFEST = "manifest.json"

Stamps = Mapping[str, tuple[int, ...] | None]
"""What changes with every change of a file, by its path in the manifest; None for one that is not there."""


@dataclass(frozen=True)
class FileRecord:
    """One file of an artefact, as its manifest lists it."""

    path: str
    """POSIX path relative to the manifest."""
    size: int
    """Bytes."""
    sha256: str

    @classmethod
    def of(cls, root: Path, path: Path) -> "FileRecord":
        return cls(path.relative_to(root).as_posix(), path.stat().st_size, digest_file(path))


@dataclass(frozen=True)
class Manifest:
    """What an artefact is, where it came from and what it holds."""

    kind: str
    """`prep`, `converted`, `checkpoint`, `hf`, `turbomind`."""
    format_version: int
    """Raised whenever the bytes written for the same inputs change."""
    identity: str
    """SHA-256 over everything the artefact's bytes depend on."""
    parents: Mapping[str, str]
    """Identity of each artefact this one was made from, by kind."""
    files: Sequence[FileRecord]
    """Every file beside the manifest that belongs to the artefact, sorted by path."""
    facts: Mapping[str, Json]
    """Counts, settings and library versions; content by kind."""

    def write(self, folder: Path) -> None:
        """Complete the artefact in `folder`."""
        content = json.loads(canonical_json(self.as_json()))  # as a reader sees it
        write_atomic(folder / MANIFEST, canonical_json({**content, "sha256": identity(content)}))

    def as_json(self) -> Json:
        return {
            "kind": self.kind,
            "format_version": self.format_version,
            "identity": self.identity,
            "parents": dict(self.parents),
            "files": [vars(record) for record in self.files],
            "facts": dict(self.facts),
        }

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """The manifest in `folder`, or None where there is no complete artefact."""
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_bytes())
            if content.pop("sha256", None) != identity(content):
                raise ValueError("its own digest does not fit it")
            files = [FileRecord(**record) for record in content.pop("files")]
            _refuse_places_elsewhere(files)
            manifest = cls(files=files, **content)
            _refuse_other_kinds(manifest)
            return manifest
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (AttributeError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckError(f"{path}: not a manifest ({error}); remove it and run its stage again") from error

    def stamps(self, folder: Path) -> Stamps:
        """Of every file. Taken before `verify`, they tell later whether what it looked at is still there."""
        return {record.path: stamp(folder / record.path) for record in self.files}

    def below(self, *starts: str) -> "Manifest":
        """The same of those files alone whose path begins with one of these."""
        return replace(self, files=[record for record in self.files if record.path.startswith(starts)])

    def without(self, paths: Iterable[str]) -> "Manifest":
        """The same without these files."""
        left_out = set(paths)
        return replace(self, files=[record for record in self.files if record.path not in left_out])

    def verify(self, folder: Path, *, hashes: bool = True) -> None:
        """Compare the files in `folder` with the manifest.

        Raises:
            CheckError: naming the first file that is missing, has another size, or (with `hashes`) another digest.
        """
        for record in self.files:
            path = folder / record.path
            if not path.is_file():
                raise CheckError(f"{path}: listed in {MANIFEST} but missing; run the stage that writes it again")
            if path.stat().st_size != record.size:
                raise CheckError(f"{path}: {path.stat().st_size} bytes, {MANIFEST} says {record.size}; it was changed")
        if not hashes:
            return
        paths = [folder / record.path for record in self.files]
        size = sum(record.size for record in self.files)
        with ThreadPoolExecutor(2) as threads, progress_bar(f"checking {self.kind}", size, "B") as progress:
            for path, digest, record in zip(paths, threads.map(digest_file, paths), self.files, strict=True):
                if digest != record.sha256:
                    threads.shutdown(cancel_futures=True)
                    raise other_digest(path)
                progress(record.size)


def _refuse_places_elsewhere(files: Iterable[FileRecord]) -> None:
    for record in files:
        if not {"", ".", ".."}.isdisjoint(record.path.split("/")) or "\0" in record.path:
            raise ValueError(f"lists {record.path!r}, which is no path below it")


def other_digest(path: Path) -> CheckError:
    """What is said of a file whose digest is not the manifest's."""
    return CheckError(f"{path}: SHA-256 differs from {MANIFEST}; it was changed or damaged")


def stamp(path: Path) -> tuple[int, ...] | None:
    """Device, inode, size, and when content and anything else of a file last changed; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _refuse_other_kinds(manifest: Manifest) -> None:
    texts = [manifest.kind, manifest.identity, *manifest.parents, *manifest.parents.values()]
    texts += [text for record in manifest.files for text in (record.path, record.sha256)]
    numbers = [manifest.format_version, *(record.size for record in manifest.files)]
    if not (
        all(isinstance(text, str) for text in texts)
        and all(type(number) is int for number in numbers)
        and isinstance(manifest.facts, dict)
    ):
        raise ValueError("its keys hold other kinds of values than they have to")


def canonical_json(value: Json) -> bytes:
    """Equal values to equal bytes: sorted keys, two spaces, UTF-8, one line feed at the end, no NaN."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    return text.encode("utf-8") + b"\n"


def identity(*parts: Json) -> str:
    """SHA-256 of the canonical JSON of `parts`."""
    return hashlib.sha256(canonical_json(parts)).hexdigest()


def digest_file(path: Path, *, first: int | None = None, progress: Callable[[int], object] = lambda _: None) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Args:
        first: bytes to digest from the beginning on, instead of all.
        progress: told the bytes digested since it was told last.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_PART))
    left = path.stat().st_size if first is None else first
    with path.open("rb", buffering=0) as file:
        while left and (got := file.readinto(buffer[: min(left, _PART)])):
            digest.update(buffer[:got])
            left -= got
            progress(got)
    return digest.hexdigest()


class DigestedFile:
    """A file to write to that digests what it writes on a thread of its own, while the disk is busy."""

    def __init__(self, file: BinaryIO) -> None:
        self.closed = False  # Arrow asks
        self._file = file
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> "DigestedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def write(self, data: Any) -> None:
        """Write bytes, which may change once this returns."""
        digested = self._thread.submit(self._digest.update, data)
        self._file.write(data)
        digested.result()

    def flush(self) -> None:
        self._file.flush()

    def sha256(self) -> str:
        """Of all that was written so far."""
        return self._digest.hexdigest()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is seen complete or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        sync_file(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def commit_directory(temporary: Path, final: Path) -> None:
    """Give a complete directory its name; what stood there before is replaced.

    The old directory steps aside under a hidden name first, so a kill in between leaves no artefact rather than a
    mixed one, and whatever has the final name is whole.
    """
    aside = final.with_name(f".{final.name}.old")
    if aside.exists():
        shutil.rmtree(aside)
    if final.exists():
        final.rename(aside)
    temporary.rename(final)
    sync_directory(final.parent)
    if aside.exists():
        shutil.rmtree(aside)


def sync_file(descriptor: int) -> None:
    os.fsync(descriptor)


def sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(folder: Path, remedy: str = "set run.work_dir elsewhere") -> Path:
    """Create a directory and its parents, or say why not and what to do."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):  # without a name, so that ranks asking at once do not meet
            pass
    except OSError as error:
        raise MachineError(f"{folder}: cannot be written ({error.strerror}); {remedy}") from error
    return folder


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder` against other packtrain processes; the lock goes with the process, however it ends.

    Raises:
        BusyError: if another process holds it.
        MachineError: if its file system has no locks.
    """
    with _locked(make_directory(folder), folder / ".lock", fcntl.LOCK_EX):
        yield


@contextmanager
def exclusive_name(folder: Path) -> Iterator[None]:
    """The same for a directory that is replaced as a whole: the lock lies beside it, and is gone afterwards.

    Raises:
        BusyError: if another process holds it.
        MachineError: if its file system has no locks.
    """
    make_directory(folder.parent)
    path = folder.with_name(f".{folder.name}.lock")
    held = False
    while not held:
        with _locked(folder, path, fcntl.LOCK_EX) as descriptor:
            # Whoever held it may have removed it since it was opened: then there is another one by that name.
            held = path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor))
            if held:
                try:
                    yield
                finally:
                    path.unlink()


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Hold `folder` together with others that share it, against whoever wants it for itself.

    Raises:
        BusyError: if another process holds it for itself.
        MachineError: if its file system has no locks.
    """
    with _locked(make_directory(folder), folder / ".lock", fcntl.LOCK_SH):
        yield


def refuse_busy(folder: Path) -> None:
    """Learn early that another process holds `folder` for itself; taking it is still to come, and may fail.

    Raises:
        BusyError: if one does.
    """
    if (folder / ".lock").exists():
        with _locked(folder, folder / ".lock", fcntl.LOCK_SH):
            pass


@contextmanager
def _locked(folder: Path, path: Path, kind: int) -> Iterator[int]:
    # NFS wants a file open for reading to share, for writing to exclude.
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = file.readline().strip() or "not known which"
            raise BusyError(
                f"{folder}: another packtrain process works here ({holder}); wait for it or stop it"
            ) from error
        except OSError as error:
            raise MachineError(
                f"{folder}: cannot be locked ({error.strerror}); mount its file system with locks, or set run.work_dir "
                "elsewhere"
            ) from error
        # Who is told of a holder may not know which; a full disk is the stage's to tell.
        with suppress(OSError):
            line = f"process {os.getpid()} on {platform.node()}\n".encode()
            os.pwrite(file.fileno(), line, 0)  # before what an earlier one left is cut off: never is nothing there
            os.ftruncate(file.fileno(), len(line))
        yield file.fileno()


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a manifest")
