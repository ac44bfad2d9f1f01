"""Input formats: each cuts a file into chunks and reads the records of one chunk.

A chunk's bounds are the format's own (bytes, rows, row groups) and depend on the file alone, so any number of workers
tokenizes the same chunks. Record numbers count from 0 at the chunk's first record; a number without a record (a blank
line) is yielded with None, so the last number tells how many the chunk takes. A faulty record is yielded as its fault
where the next one can still be read, and raised where it cannot.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prep.formats import columnar, delimited, hf_disk, json_array, jsonl, text
from prep.formats.fault import Outcome
from prep.formats.files import COMPRESSED


class ReadRecords(Protocol):
    """Records of one chunk, each with its number within the chunk."""

    def __call__(self, path: Path, begin: int, end: int, *, max_bytes: int) -> Iterator[tuple[int, Outcome]]: ...


@dataclass(frozen=True)
class Format:
    """How files of one kind are cut and read."""

    chunks: Callable[[Path], list[tuple[int, int]]]
    records: ReadRecords


FORMATS: Mapping[str, Format] = {
    "jsonl": Format(jsonl.chunks, jsonl.records),
    "json": Format(json_array.chunks, json_array.records),
    "text": Format(text.chunks, text.records),
    "csv": Format(delimited.chunks, delimited.records),
    "tsv": Format(delimited.chunks, delimited.records),
    "parquet": Format(columnar.chunks, columnar.records),
    "arrow": Format(columnar.chunks, columnar.records),
    "hf_disk": Format(hf_disk.chunks, hf_disk.records),
}
"""Formats of records, by name; ftdp holds tokens instead and is read by prep.formats.ftdp."""

ENDINGS: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".json": "json",
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".bin": "ftdp",
}
"""Format of a file by its ending, where the source says auto."""


def format_of(name: str) -> str | None:
    """The format that a file's name tells, with .gz and .zst taken off; None if it tells none."""
    stem, ending = _split(name)  # pathlib takes ten times as long, and a folder may hold 100,000 names
    if ending not in COMPRESSED:
        return ENDINGS.get(ending)
    found = ENDINGS.get(_split(stem)[1])
    return found if found in ("jsonl", "json", "text", "csv", "tsv") else None


def _split(name: str) -> tuple[str, str]:
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if stem else (name, "")
