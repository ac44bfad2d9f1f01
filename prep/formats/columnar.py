"""Parquet and Arrow files, and the shards of datasets saved to disk by the `datasets` library: a record per row.

Rows come in the file's own row groups or record batches, so a chunk is a run of those. They become records a few at a
time, never more than a record may be long, so memory is bounded by that, by one page of a Parquet column (2 GiB by its
format) and by one record batch of an Arrow file where its buffers are compressed. Compression bombs are refused.

A column is part of the record where JSON has its type: text, numbers, true or false, lists and structs of those, and
dictionaries of text or numbers. Dates, times, decimals, binary data, maps and the like stand in the record as
`Foreign`, which no map reads: a record that needs one is faulty, and the others need not be cleaned of it first.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import DataError
from pipelines.toml_text import on_one_line
from prep.formats.arrow_bodies import decompressed
from prep.formats.fault import Outcome, RecordFault
from prep.formats.lines import too_long
from prep.formats.parquet_footer import Column, columns

ROWS = 8192
"""Rows per chunk, rounded up to whole groups."""

_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError)
"""What comes of reading a damaged file; names of columns are bytes there."""
_BATCH_ROWS = 1024
"""Rows of a Parquet file that are decoded together at most."""
_BATCH_BYTES = 256 << 20
"""Bytes they may have if each value were as long as its dictionary."""
_BOMB_BYTES = 256 << 20
_BOMB_RATIO = 1000
"""A Parquet column or an Arrow record batch above both, uncompressed and uncompressed over compressed, holds no text
that somebody wrote."""


@dataclass(frozen=True)
class Foreign:
    """What stands in a record for a value that JSON has not."""

    type: str

    def __str__(self) -> str:
        return f"a column of type {self.type}, which JSON has not; convert the column to text"


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
    """Every row of the groups begin..end: its number within the chunk, and its values by column.

    A row of more than max_bytes, or with text that is not UTF-8, is a fault.

    Raises:
        DataError: if the file is damaged, has two columns of one name, or is a compression bomb.
    """
    number = 0
    try:
        for batch, foreign in _batches(path, begin, end):
            for outcome in _rows(batch, number, max_bytes):
                if isinstance(outcome, dict):
                    outcome.update(foreign)
                yield number, outcome
                number += 1
    except _DAMAGED as error:
        raise DataError(f"{path}: damaged near row {number + 1} of groups {begin}..{end} ({_said(error)})") from error


def record(path: Path, begin: int, end: int, number: int, *, max_bytes: int) -> Outcome:
    """The row with this number of the groups begin..end, as `records` gives it; None if there are not so many.

    Raises:
        DataError: as for `records`.
    """
    try:
        for batch, foreign in _batches(path, begin, end):
            if number < batch.num_rows:
                [outcome] = _rows(batch.slice(number, 1), number, max_bytes)
                return {**outcome, **foreign} if isinstance(outcome, dict) else outcome
            number -= batch.num_rows
    except _DAMAGED as error:
        raise DataError(f"{path}: damaged near row {number + 1} of groups {begin}..{end} ({_said(error)})") from error
    return None


def rows_of_groups(path: Path) -> list[int]:
    """Rows of every row group or record batch, without reading them."""
    try:
        if _is_parquet(path):
            metadata = pq.ParquetFile(path).metadata
            return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return [batch.num_rows for batch in _arrow(path)]
    except _DAMAGED as error:
        raise DataError(f"{path}: not a Parquet or Arrow file ({_said(error)}); is it complete?") from error


def _refuse_wrong_offsets(column: Any) -> None:
    """Arrow maps offsets as they are in the file, and follows those of a damaged one out of its memory.

    Its own full check would also refuse text that is not UTF-8, which is the fault of one record.

    Raises:
        pa.ArrowInvalid: if a value does not lie within its buffer.
    """
    types, type_ = pa.types, column.type
    if types.is_dictionary(type_):
        places = column.indices.drop_null()
        bounds = pc.min_max(places)
        if len(places) and not 0 <= bounds["min"].as_py() <= bounds["max"].as_py() < len(column.dictionary):
            raise pa.ArrowInvalid("an index beyond its dictionary")
        _refuse_wrong_offsets(column.dictionary)
    elif types.is_string(type_) or types.is_large_string(type_):
        column.view(pa.binary() if types.is_string(type_) else pa.large_binary()).validate(full=True)
    elif types.is_string_view(type_):
        column.view(pa.binary_view()).validate(full=True)
    elif types.is_struct(type_):
        for number in range(type_.num_fields):
            _refuse_wrong_offsets(column.field(number))
    elif types.is_list(type_) or types.is_large_list(type_):
        offsets = column.offsets.to_numpy()
        if offsets.size and (offsets[0] < 0 or (np.diff(offsets) < 0).any() or offsets[-1] > len(column.values)):
            raise pa.ArrowInvalid("offsets that do not rise")
        _refuse_wrong_offsets(column.values)
    elif types.is_fixed_size_list(type_):
        _refuse_wrong_offsets(column.values)
    else:
        column.validate(full=True)


def _said(error: Exception) -> str:
    """What Arrow says, which may be several lines."""
    return " ".join(on_one_line(line.strip()) for line in str(error).splitlines())


_Foreign = Mapping[str, Foreign]


def _batches(path: Path, begin: int, end: int) -> Iterator[tuple[Any, _Foreign]]:
    """Record batches of the columns that JSON has, and what stands for the others."""
    if _is_parquet(path):
        with path.open("rb") as raw, pq.ParquetFile(path, memory_map=True) as file:
            plain, foreign = _columns(path, file.schema_arrow)
            groups = columns(path)
            for group in range(begin, end):
                rows = _rows_together(path, raw, groups[group], group, set(plain))
                chosen = plain if foreign else None
                for batch in file.iter_batches(row_groups=[group], batch_size=rows, columns=chosen):
                    yield batch, foreign
        return
    for number, batch in enumerate(_arrow(path)):
        if number >= end:
            return
        if number >= begin:
            plain, foreign = _columns(path, batch.schema)
            chosen = batch.select(plain)
            chosen.validate()
            for column in chosen.columns:
                _refuse_wrong_offsets(column)
            yield chosen, foreign


def _columns(path: Path, schema: Any) -> tuple[list[str], _Foreign]:
    """Names of the columns that JSON has, and what stands for the others."""
    repeated = [name for name, count in Counter(schema.names).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: {Counter(schema.names)[repeated[0]]} columns are called {repeated[0]!r}; rename them")
    plain = [field.name for field in schema if _is_plain(field.type)]
    return plain, {field.name: Foreign(str(field.type)) for field in schema if not _is_plain(field.type)}


def _is_plain(type_: Any, *, inside: bool = False) -> bool:
    """Whether JSON has the values of a type. Inside others, types are left out whose rows share bytes."""
    types = pa.types
    if isinstance(type_, pa.BaseExtensionType):
        return bool(type_.extension_name == "arrow.json")
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return _is_plain(type_.value_type, inside=True)
    if types.is_struct(type_):
        fields = list(type_)
        distinct = len({field.name for field in fields}) == len(fields)
        return distinct and all(_is_plain(field.type, inside=True) for field in fields)
    if types.is_dictionary(type_):
        return not inside and _is_plain(type_.value_type, inside=True) and not types.is_nested(type_.value_type)
    if types.is_string_view(type_):
        return not inside
    text = types.is_string(type_) or types.is_large_string(type_)
    number = types.is_integer(type_) or types.is_floating(type_)
    return bool(text or number or types.is_boolean(type_) or types.is_null(type_))


def _rows(batch: Any, number: int, max_bytes: int) -> Iterator[Outcome]:
    """The rows of a batch, of which the first is record `number`: halved until what becomes records is small."""
    left = [batch]
    while left:
        part = left.pop()
        if _bytes(part) <= max_bytes:
            for outcome in _values(part, number):
                yield outcome
                number += 1
        elif part.num_rows > 1:
            half = part.num_rows // 2
            left += [part.slice(half), part.slice(0, half)]
        else:
            yield too_long(number, max_bytes)
            number += 1


def _values(batch: Any, number: int) -> Sequence[Outcome]:
    try:
        rows: list[Outcome] = batch.to_pylist()
        return rows if batch.num_columns else [{} for _ in range(batch.num_rows)]
    except UnicodeDecodeError as error:
        if batch.num_rows > 1:
            return [_values(batch.slice(row, 1), number + row)[0] for row in range(batch.num_rows)]
        name = next(name for name in batch.schema.names if not _is_text(batch.column(name)))
        return [RecordFault(number, f"{name}: not valid UTF-8 ({error.reason}); convert the column")]


def _is_text(column: Any) -> bool:
    try:
        column.to_pylist()
    except UnicodeDecodeError:
        return False
    return True


def _bytes(batch: Any) -> int:
    """Bytes that the values of a batch take, each counted as often as it stands there."""
    return sum(map(_column_bytes, batch.columns))


def _column_bytes(column: Any) -> int:
    if pa.types.is_dictionary(column.type) and not pa.types.is_primitive(column.type.value_type):
        each = pc.take(pc.binary_length(column.dictionary), column.indices)
        return int(pc.sum(each).as_py() or 0) + int(column.indices.nbytes)
    if pa.types.is_string_view(column.type):
        views = np.frombuffer(column.buffers()[1], np.int32)[column.offset * 4 :][: len(column) * 4]
        return int(views[::4].sum(dtype=np.int64)) + int(views.nbytes)
    return int(column.nbytes)


def _rows_together(path: Path, raw: BinaryIO, about: Sequence[Column], group: int, names: set[str]) -> int:
    """How many rows of a group may be decoded at once: a value may be as long as its column's dictionary.

    Raises:
        DataError: if a column is a compression bomb.
    """
    dictionaries = 0
    for column in about:
        if column.path not in names and column.path.partition(".")[0] not in names:
            continue
        full, packed = column.full, column.packed
        if full > _BOMB_BYTES and full > _BOMB_RATIO * packed:
            raise DataError(
                f"{path}: column {column.path!r} of row group {group} is {packed:,} bytes that become "
                f"{full:,}; that is a compression bomb, or write it with smaller row groups"
            )
        if column.dictionary is not None:
            raw.seek(column.dictionary)
            dictionaries += _page_bytes(raw.read(24), full)
    return min(max(_BATCH_BYTES // max(dictionaries, 1), 1), _BATCH_ROWS)


def _page_bytes(header: bytes, otherwise: int) -> int:
    """Uncompressed bytes of a page by its Thrift header, whose first two fields are its type and this."""
    values: list[int] = []
    at = 0
    for _ in range(2):
        if header[at : at + 1] != b"\x15":  # the next field, an integer
            return otherwise
        value = shift = 0
        at += 1
        while at < len(header):
            value |= (header[at] & 127) << shift
            shift += 7
            at += 1
            if header[at - 1] < 128:
                break
        values.append(value >> 1)  # written as twice the value, where that is not negative
    return values[1]


def _arrow(path: Path) -> Iterator[Any]:
    state = path.stat()
    _refuse_bombs(path, state.st_size, state.st_mtime_ns)
    # `datasets` writes the stream form, pyarrow's writers usually the file form; both are mapped, not read.
    with pa.memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(file)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            file.seek(0)
            yield from pa.ipc.open_stream(file)


@lru_cache(maxsize=64)
def _refuse_bombs(path: Path, size: int, modified_ns: int) -> None:
    """Once for a file as it is."""
    del size, modified_ns
    for number, (packed, full) in enumerate(decompressed(path)):
        if full > _BOMB_BYTES and full > _BOMB_RATIO * packed:
            raise DataError(
                f"{path}: compressed record batch {number} is {packed:,} bytes that become {full:,}; that is a "
                "compression bomb, or write it with smaller batches"
            )


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"
