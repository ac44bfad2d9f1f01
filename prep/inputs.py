"""The input files of a run: what each is called, how it is read, and its digest."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipelines.artifacts import digest_file, identity
from pipelines.errors import DataError
from pipelines.progress import progress_bar
from pipelines.schema import Source
from prep.endings import format_of


@dataclass(frozen=True)
class Input:
    """One input file, at its place in the data order."""

    source: int
    """Index of its source in the TOML."""
    name: str
    """Name of its source."""
    path: str
    """POSIX path below the source's folder, as data_order.txt has it."""
    where: Path
    format: str
    map: str
    size: int = 0
    """Bytes."""
    modified_ns: int = 0
    """Only to notice a change while the run lasts; part of no artefact."""
    sha256: str = ""
    meta_sha256: str = ""
    """Of the .meta beside a file of ftdp, which says what its lines are; empty where there is none to read."""
    columns: tuple[tuple[str, str], ...] = ()
    """Pairs of the key that the map reads and the record's own name for it."""
    template: str | None = None
    """Template instead of template.name."""
    system: str | None = None
    """Default system text instead of template.system."""


Known = Mapping[str, tuple[int, int, str]]
"""Size, modification time and SHA-256 of files at an earlier run, by resolved path."""


def digest(inputs: Sequence[Input], *, workers: int, known: Known) -> list[Input]:
    """The same inputs with size and SHA-256; a file whose size and time are as known is not read again."""
    with (
        ThreadPoolExecutor(workers) as pool,
        progress_bar("reading inputs", len(inputs), "file") as progress,
    ):
        found = []
        for one in pool.map(partial(_digest, known=known), inputs):
            found.append(one)
            progress()
    return found


def unchanged(inputs: Sequence[Input]) -> None:
    """Refuse inputs that changed after they were digested.

    Raises:
        DataError: naming the first such file.
    """
    for one in inputs:
        try:
            state = one.where.stat()
        except OSError as error:
            raise DataError(f"{one.where}: cannot be read any more ({error.strerror}); run prep again") from error
        if (state.st_size, state.st_mtime_ns) != (one.size, one.modified_ns):
            raise DataError(f"{one.where}: changed while prep was reading it; run prep again when it is complete")


def source_digest(inputs: Sequence[Input]) -> str:
    """What prep.source.sha256 pins: SHA-256 of the canonical JSON of [path, SHA-256] of one source's files, in order.

    Two sources have the same digest where they have the same files under the same paths in the same order, wherever
    they lie and whatever they are called.
    """
    return identity(*([one.path, one.sha256] for one in inputs))


def source_digests(inputs: Sequence[Input], sources: Sequence[Source]) -> list[str]:
    """`source_digest` of every source, as in the TOML."""
    return [source_digest([one for one in inputs if one.source == index]) for index in range(len(sources))]


def pinned(inputs: Sequence[Input], sources: Sequence[Source]) -> None:
    """Refuse sources whose files, names or order are not those that prep.source.sha256 pins.

    Raises:
        DataError: naming every such source, with both digests.
    """
    problems = [
        f"[[prep.source]] {source.name!r}: its files are not those that sha256 pins: expected {source.sha256}, found "
        f"{found}; restore the files or their order, or set sha256 to what was found if the change is meant"
        for source, found in zip(sources, source_digests(inputs, sources), strict=True)
        if source.sha256 not in (None, found)
    ]
    if problems:
        raise DataError("\n".join(problems))


def input_format(source: Source, path: Path) -> str:
    """How a file is read.

    Raises:
        DataError: if the source leaves it to the ending and the ending says nothing.
    """
    if source.format != "auto":
        return source.format
    found = format_of(path.name)
    if found is None:
        raise DataError(f"{path}: its ending does not tell the format; set format in [[prep.source]] {source.name!r}")
    return found


def _digest(one: Input, known: Known) -> Input:
    try:
        state = one.where.stat()
        size, modified_ns, sha256 = known.get(str(one.where.resolve()), (-1, -1, ""))
        if (size, modified_ns) != (state.st_size, state.st_mtime_ns):
            sha256 = digest_file(one.where)
        meta_sha256 = _meta_digest(one.where) if one.format == "ftdp" else ""
        return replace(one, size=state.st_size, modified_ns=state.st_mtime_ns, sha256=sha256, meta_sha256=meta_sha256)
    except OSError as error:
        raise DataError(f"{one.where}: cannot be read ({error.strerror})") from error


def _meta_digest(path: Path) -> str:
    from prep.formats.ftdp import meta_path  # imports numba, which `order check` need not wait for

    try:
        return digest_file(meta_path(path))
    except OSError:
        return ""  # who reads the file says what is wrong
