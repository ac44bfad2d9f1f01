"""data_order.txt, the lock file of the data: which files, in which order.

One path below its source's folder per line, or `source/path` where there are several sources; UTF-8 in NFC, LF. It is
written in code point order, and read in any: the order of its lines is the order of the files.

So a file that XTuner's get_data_order wrote is honoured as it is, with `path` the data folder it was made for and
`files = ["**/*.bin"]` the ending. That tool lists folders as the file system does, and follows links to folders, which
here prep.order.follow_symlinks = true asks for.
"""

import json
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.artifacts import write_atomic
from pipelines.errors import DataError, MachineError
from pipelines.schema import Pipeline, Source
from prep.inputs import Input, input_format
from prep.scan import is_ignored, scan, unfit

SHOWN = 20
"""Problems of one kind that are listed; the rest are counted."""


def inputs_in_order(pipeline: Pipeline) -> list[Input]:
    """The input files: source by source as in the TOML, and each source's files as data_order.txt lists them.

    With prep.order.mode = "scan" there is no such file and they are in code point order; with "write" a missing file is
    written.

    Raises:
        DataError: if the file is missing or faulty, or does not list just the files that are on disk.
        MachineError: if it cannot be written.
    """
    order = pipeline.prep.order
    found = files_on_disk(pipeline)
    if order.mode == "scan":
        listed = list(found)
    elif order.mode == "write" and not order.file.exists():
        listed = _write(order.file, found)
    else:
        listed = read_order(order.file, pipeline.prep.source)
        if len(listed) != len(found) or found.keys() != set(listed):
            raise DataError("\n".join(_mismatch(pipeline, listed, found)))
    return [input_of(pipeline, found[line]) for line in sorted(listed, key=lambda line: found[line].source)]


def inputs_read_only(pipeline: Pipeline) -> list[Input]:
    """`inputs_in_order` for who only looks: without data_order.txt in code point order, and none is written."""
    order = pipeline.prep.order
    if not order.file.exists():
        order = order.model_copy(update={"mode": "scan"})
        pipeline = pipeline.model_copy(update={"prep": pipeline.prep.model_copy(update={"order": order})})
    return inputs_in_order(pipeline)


def write_order(pipeline: Pipeline) -> int:
    """Write data_order.txt from the files on disk, in code point order; returns how many there are.

    Raises:
        DataError: if there is no input, or a name that a line cannot hold.
        MachineError: if the file cannot be written.
    """
    return len(_write(pipeline.prep.order.file, files_on_disk(pipeline)))


class OnDisk(NamedTuple):
    """An input file that is there."""

    source: int
    """Index of its source in the TOML."""
    path: str
    """POSIX path below the source's folder."""
    where: str


def files_on_disk(pipeline: Pipeline) -> dict[str, OnDisk]:
    """Every input file by its line of data_order.txt, source by source and in code point order."""
    sources = pipeline.prep.source
    return {
        line_of(sources, index, path): OnDisk(index, path, where)
        for index, source in enumerate(sources)
        for path, where in scan(source, follow_symlinks=pipeline.prep.order.follow_symlinks)
    }


def line_of(sources: Sequence[Source], index: int, path: str) -> str:
    """How data_order.txt lists a file of source number `index`."""
    return f"{sources[index].name}/{path}" if len(sources) > 1 else path


def read_order(file: Path, sources: Sequence[Source]) -> list[str]:
    """The lines of data_order.txt.

    Raises:
        DataError: if it is missing, not UTF-8 with LF, or has a line that is empty, repeated, absolute, above its
            source's folder or of no source; every such line with its number.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{file}: missing; write it with `packtrain order write` and keep it under version control"
        ) from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    if content.startswith(b"\xef\xbb\xbf"):
        raise DataError(f"{file}:1: begins with a byte order mark; save it as UTF-8 without one")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        byte = error.start - content.rfind(b"\n", 0, error.start)
        raise DataError(f"{file}:{number}:{byte}: is not UTF-8; write the file again") from error
    lines = unicodedata.normalize("NFC", text.removesuffix("\n")).split("\n") if text else []
    problems = [f"{file}:{number}: {finding}" for number, finding in _problems(lines, sources)]
    if problems:
        raise DataError("\n".join(_some(problems)))
    return lines


def _problems(lines: Sequence[str], sources: Sequence[Source]) -> Iterator[tuple[int, str]]:
    names = {source.name for source in sources} if len(sources) > 1 else set()
    first: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if finding := _finding(line, names):
            yield number, finding if not line else f"{_quoted(line)} {finding}"
        elif first.setdefault(line, number) != number:
            yield number, f"{_quoted(line)} stands in line {first[line]} already; remove one"


def _finding(line: str, names: set[str]) -> str:
    parts = line.split("/")
    if not _ODD.isdisjoint(parts) or not line.isprintable():
        if not line:
            return "is empty; remove the line"
        if line.endswith("\r"):
            return "ends with CR LF; save the file with LF alone"
        if line.startswith("/"):
            return "is absolute; write the path below its source's folder"
        if not _ODD.isdisjoint(parts):
            return "has an empty, '.' or '..' part; write the path below its source's folder"
    if finding := unfit(line):
        return f"{finding}; separate folders with /" if "\\" in line else f"{finding}; rename the file"
    if names and (len(parts) == 1 or parts[0] not in names):
        return f"begins with no source's name ({', '.join(sorted(names))}); with several sources a line is source/path"
    return ""


_ODD = frozenset(("", ".", ".."))


def _mismatch(pipeline: Pipeline, listed: Sequence[str], found: Mapping[str, OnDisk]) -> Iterator[str]:
    file = pipeline.prep.order.file
    known = set(listed)
    missing = [
        f"{file}:{number}: {_quoted(line)} is listed, but {_why_missing(pipeline, line)}"
        for number, line in enumerate(listed, 1)
        if line not in found
    ]
    extra = [f"{file}: {_quoted(line)} is on disk, but not listed" for line in found if line not in known]
    yield from _some(missing)
    yield from _some(extra)
    yield (
        f"{file}: does not match the data; restore it, or accept what is there with `packtrain order write`; a "
        "pipeline of other data in the same folder needs a file of its own, prep.order.file"
    )


def _why_missing(pipeline: Pipeline, line: str) -> str:
    """Why a listed file is not among those that were found."""
    sources = pipeline.prep.source
    name, path = line.split("/", 1) if len(sources) > 1 else (sources[0].name, line)
    source = next(source for source in sources if source.name == name)
    if not os.path.isfile(source.path / path):  # noqa: PTH113 (Path.is_file raises where a name is too long for one)
        return "is not on disk"
    if source.format == "hf_disk":
        return f"the dataset saved in {source.path} does not list it as its own"
    parts = path.split("/")
    if any(is_ignored(part) for part in parts):
        return "is hidden or unfinished by its name, so it is never read"
    folders = (source.path.joinpath(*parts[:depth]) for depth in range(1, len(parts)))
    if not pipeline.prep.order.follow_symlinks and any(folder.is_symlink() for folder in folders):
        return "lies in a linked folder; set prep.order.follow_symlinks = true"
    return f"[[prep.source]] {name!r} does not take it; see its files and format"


def input_of(pipeline: Pipeline, one: OnDisk) -> Input:
    """The file with all that reading it needs."""
    source, where = pipeline.prep.source[one.source], Path(one.where)
    return Input(
        one.source,
        source.name,
        one.path,
        where,
        input_format(source, where),
        source.map,
        columns=tuple(source.columns.items()),
        template=source.template,
        system=source.system,
    )


def _write(file: Path, found: Mapping[str, OnDisk]) -> list[str]:
    lines = sorted(found)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, "".join(f"{line}\n" for line in lines).encode("utf-8"))
    except OSError as error:
        raise MachineError(f"{file}: cannot be written ({error.strerror}); set prep.order.file elsewhere") from error
    return lines


def _some(problems: Sequence[str]) -> Iterator[str]:
    yield from problems[:SHOWN]
    if len(problems) > SHOWN:
        yield f"... and {len(problems) - SHOWN} more like these"


def _quoted(line: str) -> str:
    return json.dumps(line, ensure_ascii=False)
