"""CSV and TSV with a header line: a record per row, all values text.

Rows are as RFC 4180 and spreadsheets have them: a cell in double quotes may hold the delimiter, line feeds and doubled
quotes; lines end with LF or CR LF; a byte order mark before the header is passed over; a blank line is no record but
keeps its number. A quote in a cell that does not begin with one is text. As a quoted cell may hold line feeds, a file
is one chunk and is read from its beginning.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipelines.errors import DataError
from pipelines.toml_text import on_one_line
from prep.formats.encoding import not_utf8
from prep.formats.fault import Outcome, RecordFault
from prep.formats.files import open_bytes, pass_byte_order_mark
from prep.formats.lines import too_long


def chunks(path: Path) -> list[tuple[int, int]]:
    """The whole file, unless it is empty."""
    size = path.stat().st_size
    return [(0, size)] if size else []


def records(path: Path, begin: int, end: int, *, max_bytes: int) -> Iterator[tuple[int, Outcome]]:
    """Every row below the header: its number, from 0, and its cells by column.

    A row of another width than the header, or that is not UTF-8, is a fault.

    Raises:
        RecordFault: on a row above max_bytes or with wrong quotes, behind which nobody knows where the next begins.
        DataError: if the header cannot be read, or has an empty or repeated name.
    """
    del begin, end
    csv.field_size_limit(sys.maxsize)  # the lines are limited
    delimiter = "\t" if path.name.removesuffix(".gz").removesuffix(".zst").endswith(".tsv") else ","
    number = 0
    with open_bytes(path) as file:
        pass_byte_order_mark(file)
        lines = _Lines(file, max_bytes)
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _header(path, rows, lines)
        try:
            lines.begin_row()
            for row in rows:
                if lines.fault:
                    yield number, RecordFault(number, lines.fault)
                elif row and len(row) != len(header):
                    yield (
                        number,
                        RecordFault(
                            number, f"line {lines.number}: {len(row)} cells, the header names {len(header)} columns"
                        ),
                    )
                else:
                    yield number, dict(zip(header, row, strict=True)) if row else None
                number += 1
                lines.begin_row()
        except csv.Error as error:
            raise RecordFault(number, f"line {lines.number}: not valid CSV: {error}") from error
        except _TooLongError as error:
            raise too_long(number, max_bytes) from error


class _TooLongError(Exception):
    """A row is longer than a record may be."""


class _Lines:
    """The lines of a file as text, for one row at a time; of a row that is too long little more than that is read."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = min(max_bytes, 1 << 40) + 2  # with its line's end
        self._left = self._max_bytes
        self.number = 0
        """Of the line read last, from 1."""
        self.fault = ""
        """What is wrong with the text of this row."""

    def begin_row(self) -> None:
        self._left = self._max_bytes
        self.fault = ""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(self._left + 1)
        if not line:
            raise StopIteration
        self._left -= len(line)
        if self._left < 0:
            raise _TooLongError
        self.number += 1
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fault = self.fault or f"line {self.number}, byte {error.start + 1}: {not_utf8(line)}"
            return line.decode("utf-8", errors="replace")


def _header(path: Path, rows: Iterator[list[str]], lines: _Lines) -> list[str]:
    try:
        header = next(rows, [])
    except (csv.Error, _TooLongError) as error:
        raise DataError(f"{path}:1: expected a header of column names ({str(error) or 'it is too long'})") from error
    if lines.fault:
        raise DataError(f"{path}:1: {lines.fault}")
    if "" in header or len(set(header)) != len(header):
        found = on_one_line(", ".join(header))
        raise DataError(f"{path}:1: expected a header of distinct column names, found {found}")
    return header
