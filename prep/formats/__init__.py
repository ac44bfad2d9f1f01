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

from prep.formats import columnar, delimited, json_array, jsonl, text
from prep.formats.fault import Outcome


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
    "hf_disk": Format(columnar.chunks, columnar.records),
}
"""Formats of records, by name; ftdp holds tokens instead and is read by prep.formats.ftdp."""
