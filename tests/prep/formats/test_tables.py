"""Parquet, Arrow, CSV, TSV and text files give the records their own libraries give."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import DataError
from prep.formats import FORMATS, columnar, format_of
from prep.formats.fault import RecordFault
from tests.prep.formats import strict

ROWS = [{"instruction": f"问 {row}", "turns": [{"role": "user"}] * (row % 3), "n": row} for row in range(100)]


def read(path: Path, max_bytes: int = 9999) -> list[tuple[int, Any]]:
    name = format_of(path.name)
    assert name is not None
    found: list[tuple[int, Any]] = []
    for begin, end in FORMATS[name].chunks(path):
        before = len(found)
        rows = FORMATS[name].records(path, begin, end, max_bytes=max_bytes)
        found += [(before + number, row) for number, row in strict(rows)]
    return found


def write_columnar(path: Path, kind: str) -> Path:
    table = pa.Table.from_pylist(ROWS)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=7)
        return path
    new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with path.open("wb") as file, new(file, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=9):
            writer.write_batch(batch)
    return path


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
@pytest.mark.parametrize("rows", [1, 20, 8192])
def test_columnar_rows_are_read_once_whatever_the_chunks(
    tmp_path: Path, kind: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "ROWS", rows)
    path = write_columnar(tmp_path / ("data.parquet" if kind == "parquet" else "data.arrow"), kind)
    assert read(path) == list(enumerate(ROWS))


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_a_truncated_columnar_file_is_named(tmp_path: Path, kind: str) -> None:
    path = write_columnar(tmp_path / ("data.parquet" if kind == "parquet" else "data.arrow"), kind)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"data\.(parquet|arrow): (not a|damaged)"):
        read(path)


def test_csv_cells_may_hold_line_feeds_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('\ufeffa,b\n1,"x\ny ""z"""\n\n2,\n', encoding="utf-8")
    assert read(path) == [(0, {"a": "1", "b": 'x\ny "z"'}), (1, None), (2, {"a": "2", "b": ""})]


def test_tsv_and_compressed_csv_are_read(tmp_path: Path) -> None:
    (tmp_path / "data.tsv").write_text("a\tb\n1\t2,3\n")
    (tmp_path / "data.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert read(tmp_path / "data.tsv") == [(0, {"a": "1", "b": "2,3"})]
    assert read(tmp_path / "data.csv.gz") == [(0, {"a": "1", "b": "2"})]


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"a,b\n1\n", "1 cells, the header names 2 columns"),
        (b'a\n"x', "not valid CSV"),
        (b"a\n\xff\n", "not valid UTF-8"),
        (b"a\n" + b"x" * 200 + b"\n", "field larger than field limit"),
    ],
)
def test_a_faulty_csv_row_is_named(tmp_path: Path, content: bytes, finding: str) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(RecordFault, match=finding) as fault:
        read(path, max_bytes=100)
    assert fault.value.record == 0


@pytest.mark.parametrize("header", ["a,a", "a,"])
def test_a_header_without_distinct_names_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(header + "\n1,2\n")
    with pytest.raises(DataError, match="distinct column names"):
        read(path)


def test_text_is_a_document_per_line(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("one\n\n二\n", encoding="utf-8")
    assert read(path) == [(0, {"text": "one"}), (1, None), (2, {"text": "二"})]


def test_text_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"one\nab\xff\n")
    with pytest.raises(RecordFault, match="not valid UTF-8") as fault:
        read(path)
    assert (fault.value.record, fault.value.byte) == (1, 3)


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"\x1f\x8b\x08nonsense", "a.txt.gz"), (gzip.compress(b"x" * 999)[:-9], "a.txt.gz"), (b"xx", "a.txt.zst")],
)
def test_a_damaged_compressed_file_is_named(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged or truncated"):
        read(path)


def test_a_compression_bomb_is_stopped_at_the_record_limit(tmp_path: Path) -> None:
    path = tmp_path / "data.txt.gz"
    path.write_bytes(gzip.compress(b"x" * (64 << 20)))
    with pytest.raises(RecordFault, match="max_record_bytes"):
        read(path)


@pytest.mark.parametrize(
    ("name", "found"),
    [("a.jsonl.zst", "jsonl"), ("a.json.gz", "json"), ("a.parquet", "parquet"), ("a.bin.gz", None), ("a.md", None)],
)
def test_the_ending_tells_the_format(name: str, found: str | None) -> None:
    assert format_of(name) == found
