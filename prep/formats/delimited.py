"""CSV and TSV with a header line: a record per row, all values strings.

A quoted cell may hold line feeds, so a file is one chunk and is read from its beginning.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import DataError
from prep.formats.fault import Outcome, RecordFault
from prep.formats.files import open_bytes


def chunks(path: Path) -> list[tuple[int, int]]:
    """The whole file, unless it is empty."""
    size = path.stat().st_size
    return [(0, size)] if size else []


def records(path: Path, begin: int, end: int, *, max_bytes: int) -> Iterator[tuple[int, Outcome]]:
    """Every row below the header: its number, from 0, and its cells by column, or a fault if it has another width.

    Raises:
        RecordFault: on invalid UTF-8 or quotes, or a cell above max_bytes.
        DataError: if the header has an empty or repeated name.
    """
    del begin, end
    csv.field_size_limit(max_bytes)
    delimiter = "\t" if path.name.removesuffix(".gz").removesuffix(".zst").endswith(".tsv") else ","
    number = 0
    with open_bytes(path) as file:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
            if "" in header or len(set(header)) != len(header):
                raise DataError(f"{path}:1: expected a header of distinct column names, found {', '.join(header)}")
            for row in rows:
                if row and len(row) != len(header):
                    yield number, RecordFault(number, f"{len(row)} cells, the header names {len(header)} columns")
                else:
                    yield number, dict(zip(header, row, strict=True)) if row else None
                number += 1
        except csv.Error as error:
            raise RecordFault(number, f"not valid CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise RecordFault(number, "not valid UTF-8; convert the file") from error
