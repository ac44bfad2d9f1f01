"""Whether data_order.txt, the files on disk and what prep read last time still agree."""

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from pipelines.artifacts import FileRecord, Manifest
from pipelines.errors import CheckError, DataError
from pipelines.schema import Pipeline
from prep.inputs import Input, digest
from prep.order import OnDisk, files_on_disk, input_of, line_of, read_order

CONTEXT = 3
"""Unchanged lines shown around a change."""
SHOWN = 1000
"""Lines shown of the diff, and of each kind of change; the rest are counted."""


@dataclass(frozen=True)
class Difference:
    """How the files on disk differ from data_order.txt, and from what a finished prep read."""

    added: Sequence[str]
    """On disk, not listed."""
    removed: Sequence[str]
    """Listed, not on disk."""
    moved: Mapping[str, str]
    """Of both, those with the same content: old line to new line."""
    changed: Mapping[str, str]
    """Listed and on disk, but not what prep read: how it differs."""
    reordered: Sequence[str]
    """Listed elsewhere than where prep read them; as few lines as explain the difference."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.reordered)


def check_order(pipeline: Pipeline, *, quick: bool = False) -> int:
    """Compare data_order.txt with the files on disk, and both with the inputs of a finished prep.

    Args:
        quick: compare names and sizes only, and read no file.
    Returns:
        How many files agree.
    Raises:
        CheckError: if anything differs, with a unified diff of data_order.txt.
        DataError: if data_order.txt or the data cannot be read at all.
    """
    found = files_on_disk(pipeline)
    if pipeline.prep.order.mode == "scan":
        listed = list(found)
    else:
        listed = read_order(pipeline.prep.order.file, pipeline.prep.source)
    difference = compare(pipeline, listed, found, quick=quick)
    if difference:
        raise CheckError("\n".join(report(difference, str(pipeline.prep.order.file), listed)))
    return len(listed)


def compare(pipeline: Pipeline, listed: Sequence[str], found: Mapping[str, OnDisk], *, quick: bool) -> Difference:
    """What `check_order` reports. Sizes, digests and places are compared where prep has finished."""
    known = set(listed)
    added = [line for line in found if line not in known]
    removed = [line for line in listed if line not in found]
    before = _read_by_prep(pipeline)
    kept = [line for line in listed if line in before and line in found]
    size = {line: _size(found[line]) for line in (*kept, *added)}
    changed = {
        line: f"{size[line]:,} bytes, prep read {before[line].size:,}"
        for line in kept
        if size[line] != before[line].size
    }
    moved: dict[str, str] = {}
    if before and not quick:
        gone = {before[line].sha256: line for line in removed if line in before}
        sizes = {before[line].size for line in gone.values()}
        same_size = [line for line in kept if line not in changed]
        perhaps_moved = [line for line in added if size[line] in sizes]
        sha256 = _digests([*same_size, *perhaps_moved], found, pipeline)
        changed |= {line: "not the content prep read" for line in same_size if sha256[line] != before[line].sha256}
        moved = {gone[sha256[line]]: line for line in perhaps_moved if sha256[line] in gone}
    return Difference(added, removed, moved, changed, _reordered(kept, before, found))


def since_prep(pipeline: Pipeline, inputs: Sequence[Input]) -> str:
    """How inputs differ from what a finished prep read, by names and sizes; nothing where prep has not finished."""
    before = _read_by_prep(pipeline)
    sources = pipeline.prep.source
    now = {line_of(sources, one.source, one.path): one.where.stat().st_size for one in inputs} if before else {}
    kinds = {
        "new": [line for line in now if line not in before],
        "gone": [line for line in before if line not in now],
        "of another size": [line for line in now if line in before and now[line] != before[line].size],
    }
    return ", ".join(f"{len(lines):,} {kind} (such as {lines[0]})" for kind, lines in kinds.items() if lines)


def report(difference: Difference, file: str, listed: Sequence[str]) -> Iterator[str]:
    """The difference for a person: the counts, a unified diff of data_order.txt, and by name what no diff can show."""
    counts = {kind: len(getattr(difference, kind)) for kind in ("added", "removed", "moved", "changed", "reordered")}
    counts["added"] -= counts["moved"]
    counts["removed"] -= counts["moved"]
    yield f"{file}: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    if difference.added or difference.removed:
        yield f"--- {file}"
        yield "+++ files on disk"
        yield from _some(_unified(listed, difference.added, set(difference.removed)))
    yield from _some(f"moved: {old} -> {new}" for old, new in difference.moved.items())
    yield from _some(f"changed: {line}: {what}" for line, what in difference.changed.items())
    yield from _some(f"reordered: {line}" for line in difference.reordered)
    if difference.added or difference.removed:
        yield "restore the files, or accept what is on disk with `packtrain order write`"
    if difference.changed or difference.reordered:
        yield "restore what prep read, or run `packtrain prep` to read what is there"


def _some(lines: Iterable[str]) -> Iterator[str]:
    lines = iter(lines)
    yield from islice(lines, SHOWN)
    if more := sum(1 for _ in lines):
        yield f"... and {more:,} more lines"


def _read_by_prep(pipeline: Pipeline) -> dict[str, FileRecord]:
    """Every file that a finished prep read, by line and in its order."""
    manifest = Manifest.read(pipeline.home / "prep")
    number = {source.name: index for index, source in enumerate(pipeline.prep.source)}
    return {
        line_of(pipeline.prep.source, number[one["source"]], one["path"]): FileRecord(
            one["path"], one["size"], one["sha256"]
        )
        for one in (manifest.facts["files"] if manifest else [])
        if one["source"] in number
    }


def _size(one: OnDisk) -> int:
    try:
        return os.stat(one.where).st_size  # noqa: PTH116 (a Path for each of 100,000 files takes longer)
    except OSError as error:
        raise DataError(f"{one.where}: cannot be read ({error.strerror})") from error


def _digests(lines: Sequence[str], found: Mapping[str, OnDisk], pipeline: Pipeline) -> dict[str, str]:
    workers = pipeline.prep.workers or len(os.sched_getaffinity(0))
    read = digest([input_of(pipeline, found[line]) for line in lines], workers=workers, known={})
    return {line: one.sha256 for line, one in zip(lines, read, strict=True)}


def _reordered(kept: Sequence[str], before: Mapping[str, FileRecord], found: Mapping[str, OnDisk]) -> list[str]:
    """Of the lines in both orders, those outside a longest part that is in the same order, source by source."""
    place = {line: number for number, line in enumerate(before)}
    by_source: dict[int, list[str]] = {}
    for line in kept:
        by_source.setdefault(found[line].source, []).append(line)
    return [line for lines in by_source.values() for line in _out_of_order(lines, [place[line] for line in lines])]


def _out_of_order(lines: Sequence[str], places: Sequence[int]) -> list[str]:
    # Patience sorting: lowest[n] ends the rising part of n + 1 places that ends lowest.
    lowest: list[int] = []
    ends: list[int] = []
    previous: list[int] = []
    for index, place in enumerate(places):
        length = bisect_left(lowest, place)
        previous.append(ends[length - 1] if length else -1)
        lowest[length : length + 1] = [place]
        ends[length : length + 1] = [index]
    kept = set()
    at = ends[-1] if ends else -1
    while at >= 0:
        kept.add(at)
        at = previous[at]
    return [line for index, line in enumerate(lines) if index not in kept]


def _unified(listed: Sequence[str], added: Sequence[str], removed: set[str]) -> Iterator[str]:
    """Hunks that make data_order.txt list what is on disk: an added line goes where it sorts, or last in a file of any
    other order."""
    is_sorted = all(one < other for one, other in pairwise(listed))
    inserts: dict[int, list[str]] = {}
    for line in sorted(added):
        inserts.setdefault(bisect_left(listed, line) if is_sorted else len(listed), []).append(line)
    touched = sorted({*inserts, *(number for number, line in enumerate(listed) if line in removed)})
    first = shift = 0
    while first < len(touched):
        last = first
        while last + 1 < len(touched) and touched[last + 1] - touched[last] <= 2 * CONTEXT:
            last += 1
        begin, end = max(touched[first] - CONTEXT, 0), min(touched[last] + CONTEXT + 1, len(listed))
        body: list[str] = []
        for number in range(begin, end + 1):
            body += [f"+{line}" for line in inserts.get(number, []) if number < end or end == len(listed)]
            if number < end:
                body.append(("-" if listed[number] in removed else " ") + listed[number])
        old = sum(line[0] != "+" for line in body)
        new = sum(line[0] != "-" for line in body)
        yield f"@@ -{begin + (old > 0)},{old} +{begin + shift + (new > 0)},{new} @@"
        yield from body
        shift += new - old
        first = last + 1
