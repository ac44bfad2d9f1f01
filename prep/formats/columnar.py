"""Parquet and Arrow files, and datasets saved to disk by the `datasets` library: a record per row.

Rows come in the file's own row groups or record batches, so a chunk is a run of those.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DataError
from prep.formats.fault import Outcome

ROWS = 8192
"""Rows per chunk, rounded up to whole groups; rows turned into records at a time at most."""


def chunks(path: Path) -> list[tuple[int, int]]:
    """Ranges of row groups (Parquet) or record batches (Arrow) of about ROWS rows."""
    bounds, rows = [0], 0
    sizes = rows_of_groups(path)
    for group, size in enumerate(sizes):
        rows += size
        if rows >= ROWS:
            bounds.append(group + 1)
            rows = 0
    if bounds[-1] < len(sizes):
        bounds.append(len(sizes))
    return list(pairwise(bounds))


def records(path: Path, begin: int, end: int, *, max_bytes: int) -> Iterator[tuple[int, Outcome]]:
    """Every row of the groups begin..end: its number within the chunk, and its values by column."""
    del max_bytes  # a row group is in memory as a whole whatever its cells hold
    number = 0
    try:
        for batch in _batches(path, begin, end):
            for row in batch.to_pylist():
                yield number, row
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged near row {number} of groups {begin}..{end} ({error})") from error


def rows_of_groups(path: Path) -> list[int]:
    """Rows of every row group or record batch, without reading them."""
    try:
        if _is_parquet(path):
            metadata = pq.ParquetFile(path).metadata
            return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return [batch.num_rows for batch in _arrow(path)]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet or Arrow file ({error}); is it complete?") from error


def _batches(path: Path, begin: int, end: int) -> Iterator[Any]:
    if _is_parquet(path):
        yield from pq.ParquetFile(path).iter_batches(row_groups=list(range(begin, end)), batch_size=ROWS)
        return
    for number, batch in enumerate(_arrow(path)):
        if number >= end:
            return
        if number >= begin:
            yield batch


def _arrow(path: Path) -> Iterator[Any]:
    # `datasets` writes the stream form, pyarrow's writers usually the file form; both are mapped, not read.
    with pa.memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(file)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            file.seek(0)
            yield from pa.ipc.open_stream(file)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"
