"""data_order.txt, the lock file of the data: which files a run reads, in which order.

One path per line, below its source's folder and, with several sources, behind the source's name: UTF-8, LF, sorted by
code point when written here. A file in any other order is honoured, because reproducing a run means reading its files
in its order; XTuner's tool writes them as the file system lists them.

Folders are not followed through links and names that begin with a dot are left out; a linked file is read. Names are
compared as they are: no locale, no normalization.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.artifacts import Manifest, digest_file, make_directory, write_atomic
from pipelines.errors import CheckError, DataError
from pipelines.schema import Pipeline, Source
from prep.formats import format_of
from prep.inputs import Input, input_format

_SHOWN = 100
"""Lines of a diff at most."""


@dataclass(frozen=True)
class Listed:
    """One file at its place in the order."""

    source: int
    """Index in the TOML."""
    path: str
    """POSIX path below the source's folder; for a source that is a file, its name."""
    where: Path


def inputs_in_order(pipeline: Pipeline) -> list[Input]:
    """The files to read, as prep.order.mode says.

    Raises:
        DataError: if data_order.txt is missing or wrong, or differs from what is there.
    """
    order, sources = pipeline.prep.order, pipeline.prep.source
    found = scan(sources)
    if order.mode == "write" and not order.file.exists():
        write_order(pipeline)
    listed = found if order.mode == "scan" else _locked(order.file, sources, found)
    return [
        Input(
            one.source,
            sources[one.source].name,
            one.path,
            one.where,
            input_format(sources[one.source], one.where),
            sources[one.source].map,
        )
        for one in listed
    ]


def write_order(pipeline: Pipeline) -> int:
    """Write data_order.txt from the files that are there; returns how many."""
    sources = pipeline.prep.source
    found = scan(sources)
    text = "".join(f"{_line(one, sources)}\n" for one in found)
    make_directory(pipeline.prep.order.file.parent)
    write_atomic(pipeline.prep.order.file, text.encode("utf-8"))
    return len(found)


def check_order(pipeline: Pipeline, *, quick: bool = False) -> int:
    """Compare data_order.txt with the files that are there, and those with what prep last read.

    Args:
        quick: compare names and sizes, without reading a file.
    Returns:
        How many files there are.
    Raises:
        CheckError: with a diff of what was added, removed, moved or changed.
    """
    sources = pipeline.prep.source
    listed = {_line(one, sources): one for one in read_order(pipeline.prep.order.file, sources)}
    found = {_line(one, sources): one for one in scan(sources)}
    read = _last_read(pipeline, sources)
    added = [line for line in found if line not in listed]
    removed = [line for line in listed if line not in found]
    changed = [line for line in listed if line in found and line in read and _differs(found[line], read[line], quick)]
    if not (added or removed or changed):
        return len(found)
    moved = _moved(added, removed, found, read, quick)
    lines = [
        *(f"-{line}" for line in removed if line not in moved),
        *(f"+{line}" for line in added if line not in moved.values()),
        *(f"-{old}\n+{new}  (moved)" for old, new in moved.items()),
        *(f"!{line}  (changed since prep read it)" for line in changed),
    ]
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    counts = f"{len(added) - len(moved)} added, {len(removed) - len(moved)} removed, {len(moved)} moved"
    file = pipeline.prep.order.file
    raise CheckError(
        "\n".join(
            [
                f"{file}: {counts}, {len(changed)} changed; if this is meant, run `packtrain order write`",
                f"--- {file}",
                "+++ files found",
                *lines[:_SHOWN],
                *more,
            ]
        )
    )


def scan(sources: Sequence[Source]) -> list[Listed]:
    """Every file of every source, in code point order of its line in data_order.txt.

    Raises:
        DataError: if a source is missing, holds no file, or holds a link to nothing.
    """
    found = [one for number, source in enumerate(sources) for one in _source_files(number, source)]
    return sorted(found, key=lambda one: _line(one, sources))


def read_order(file: Path, sources: Sequence[Source]) -> list[Listed]:
    """The lines of data_order.txt, in their order.

    Raises:
        DataError: naming the line that is not a path below a source's folder, or is there twice.
    """
    try:
        content = file.read_bytes()
        text = content.decode("utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{file}: missing; write it with `packtrain order write`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text ({error})") from error
    listed: list[Listed] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        if fault := _fault(line, seen.get(line)):
            raise DataError(f"{file}:{number}: {fault}")
        seen[line] = number
        listed.append(_parse(line, sources, f"{file}:{number}"))
    return listed


def _locked(file: Path, sources: Sequence[Source], found: Sequence[Listed]) -> list[Listed]:
    listed = read_order(file, sources)
    missing = set(listed) - set(found)
    for number, one in enumerate(listed, start=1):
        if one in missing:
            raise DataError(
                f"{file}:{number}: {one.where} is not there; restore it, or accept the change with "
                "`packtrain order write`"
            )
    known = set(listed)
    extra = [one for one in found if one not in known]
    if extra:
        raise DataError(
            f"{file}: {len(extra)} files are not listed, the first is {_line(extra[0], sources)}; remove them, or "
            "accept the change with `packtrain order write`"
        )
    return listed


def _line(one: Listed, sources: Sequence[Source]) -> str:
    return one.path if len(sources) == 1 else f"{sources[one.source].name}/{one.path}"


def _fault(line: str, before: int | None) -> str:
    if line.endswith("\r"):
        return "ends in CR LF; the file has LF line ends"
    if line.startswith("\ufeff"):
        return "begins with a byte order mark; save it without"
    if not line.strip():
        return "is blank; every line is a path"
    if line.startswith("/") or re.match(r"[A-Za-z]:[\\/]", line):
        return f"{line}: an absolute path; paths are below the source's folder"
    if any(part in ("", ".", "..") for part in line.split("/")):
        return f"{line}: '..', '.' and empty parts are not accepted; write the plain path below the source's folder"
    if before is not None:
        return f"{line}: listed before, at line {before}"
    return ""


def _parse(line: str, sources: Sequence[Source], place: str) -> Listed:
    number, path = 0, line
    if len(sources) > 1:
        name, _, path = line.partition("/")
        names = [source.name for source in sources]
        if name not in names or not path:
            raise DataError(f"{place}: {line}: expected <source>/<path>, the sources are {', '.join(names)}")
        number = names.index(name)
    folder = sources[number].path
    return Listed(number, path, folder / path if folder.is_dir() else folder.with_name(path))


def _source_files(number: int, source: Source) -> Iterator[Listed]:
    if source.path.is_file():
        yield Listed(number, source.path.name, source.path)
        return
    if not source.path.is_dir():
        raise DataError(f"{source.path}: path of [[prep.source]] {source.name!r} does not exist")
    wanted = re.compile("|".join(map(_regex, source.files))) if source.files else None
    count = 0
    for path in _walk(source.path):
        relative = path.relative_to(source.path).as_posix()
        if wanted.fullmatch(relative) is None if wanted else not _is_data(source, path.name):
            continue
        if not path.is_file():
            raise DataError(f"{path}: a link to nothing; restore its target or remove it")
        count += 1
        yield Listed(number, relative, path)
    if not count:
        what = " or ".join(source.files) if source.files else "a known ending"
        raise DataError(f"{source.path}: no file with {what}; set path and files of [[prep.source]] {source.name!r}")


def _is_data(source: Source, name: str) -> bool:
    found = format_of(name)
    return found is not None and source.format in ("auto", found)


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _regex(pattern: str) -> str:
    """A glob as a regular expression: * and ? within a name, ** over folders."""
    pieces = {"**/": r"(?:[^/]+/)*", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    return "".join(pieces.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))


def _last_read(pipeline: Pipeline, sources: Sequence[Source]) -> Mapping[str, tuple[int, str]]:
    """Size and SHA-256 of the files that the finished prep output was made from, by line."""
    manifest = Manifest.read(pipeline.home / "prep")
    if manifest is None:
        return {}
    return {
        one["path"] if len(sources) == 1 else f"{one['source']}/{one['path']}": (one["size"], one["sha256"])
        for one in manifest.facts["files"]
    }


def _differs(one: Listed, read: tuple[int, str], quick: bool) -> bool:
    size, sha256 = read
    return one.where.stat().st_size != size or (not quick and digest_file(one.where) != sha256)


def _moved(
    added: Sequence[str],
    removed: Sequence[str],
    found: Mapping[str, Listed],
    read: Mapping[str, tuple[int, str]],
    quick: bool,
) -> dict[str, str]:
    """Files that were removed and appear with the same content under another name, old line to new."""
    if quick:
        return {}
    gone = {read[line]: line for line in removed if line in read}
    sizes = {size for size, _ in gone}
    moved: dict[str, str] = {}
    for line in added:
        size = found[line].where.stat().st_size
        old = gone.pop((size, digest_file(found[line].where)), None) if size in sizes else None
        if old is not None:
            moved[old] = line
    return moved
