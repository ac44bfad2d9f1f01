"""Parquet, Arrow, CSV, TSV and text files give the records their own libraries give."""

import gzip
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import DataError
from prep import fields
from prep.conversation import RecordError
from prep.endings import format_of
from prep.formats import FORMATS, columnar
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


def write_table(folder: Path, kind: str, table: Any) -> Path:
    path = folder / ("data.parquet" if kind == "parquet" else "data.arrow")
    if kind == "parquet":
        pq.write_table(table, path)
        return path
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(path, table.schema) as writer:
        writer.write_table(table)
    return path


def records(path: Path, max_bytes: int = 9999) -> Iterator[tuple[int, Any]]:
    for begin, end in columnar.chunks(path):
        yield from columnar.records(path, begin, end, max_bytes=max_bytes)


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


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_a_row_above_the_limit_is_a_fault_and_its_neighbours_are_not(tmp_path: Path, kind: str) -> None:
    texts = ["short", "x" * 500, "also short", "y" * 500]
    path = write_table(tmp_path, kind, pa.table({"turns": [[{"text": text}] for text in texts], "n": range(4)}))
    outcomes = [outcome for _, outcome in records(path, max_bytes=200)]
    assert outcomes[::2] == [{"turns": [{"text": texts[row]}], "n": row} for row in (0, 2)]
    for row in (1, 3):
        assert isinstance(outcomes[row], RecordFault)
        assert (outcomes[row].record, "max_record_bytes = 200" in outcomes[row].message) == (row, True)


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_text_of_any_arrow_type_is_measured_by_its_rows(tmp_path: Path, type_: Any) -> None:
    texts = [None, "x" * 50, "y" * 500, "x" * 50] * 20
    column = pa.array(texts)
    column = column.dictionary_encode() if pa.types.is_dictionary(type_) else column.cast(type_)
    path = write_table(tmp_path, "file", pa.table({"text": column}))
    outcomes = [outcome for _, outcome in records(path, max_bytes=200)]
    assert [isinstance(outcome, RecordFault) for outcome in outcomes] == [len(text or "") > 200 for text in texts]
    kept = [outcome["text"] for outcome in outcomes if not isinstance(outcome, RecordFault)]
    assert kept == [text for text in texts if len(text or "") < 200]


def test_text_that_is_not_utf8_in_a_column_is_a_fault_of_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"b\xffd", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    path = write_table(tmp_path, "stream", pa.table({"n": [0, 1, 2], "text": text}))
    outcomes = [outcome for _, outcome in records(path)]
    assert (outcomes[0], outcomes[2]) == ({"n": 0, "text": "good"}, {"n": 2, "text": "fine"})
    assert isinstance(outcomes[1], RecordFault)
    assert outcomes[1].message.startswith("text: not valid UTF-8")


FOREIGN = {
    "date": pa.array([date(2020, 1, 2)]),
    "time": pa.array([1], pa.timestamp("ns", tz="UTC")),
    "price": pa.array([Decimal("1.5")]),
    "image": pa.array([{"bytes": b"x", "path": "a"}]),
    "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
}


@pytest.mark.parametrize("kind", ["parquet", "file"])
def test_a_column_that_json_has_not_stands_as_its_type(tmp_path: Path, kind: str) -> None:
    path = write_table(tmp_path, kind, pa.table({"text": ["a"], **FOREIGN}))
    [(_, record)] = records(path)
    assert record["text"] == "a"
    for name in FOREIGN:
        assert isinstance(record[name], columnar.Foreign)
        with pytest.raises(RecordError, match=f"{name}: expected a string, found a column of type .*JSON has not"):
            fields.text(record, name)


def test_a_file_of_nothing_but_such_columns_has_its_rows_all_the_same(tmp_path: Path) -> None:
    for kind in ("parquet", "file"):
        path = write_table(tmp_path, kind, pa.table({"date": FOREIGN["date"].take(pa.array([0, 0, 0]))}))
        assert [list(record) for _, record in records(path)] == [["date"]] * 3


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path, "file", pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]))
    with pytest.raises(DataError, match=r"data\.arrow: 2 columns are called 'a'; rename them"):
        list(records(path))


def test_a_parquet_column_that_is_all_compression_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "_BOMB_BYTES", 16 << 20)
    path = tmp_path / "data.parquet"
    table = pa.table({"n": [1] * 3, "text": ["0" * (8 << 20)] * 3})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    with pytest.raises(DataError, match=r"column 'text' of row group 0 is [\d,]+ bytes that become .* compression"):
        list(records(path))
    pq.write_table(table.cast(pa.schema({"n": pa.int64(), "text": pa.binary()})), path, compression="zstd")
    assert len(list(records(path))) == 3  # what no map reads is not decompressed


def test_few_rows_are_decoded_together_where_a_dictionary_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [str(row % 10) * 1000 for row in range(300)]
    path = write_table(tmp_path, "parquet", pa.table({"text": rows}))
    monkeypatch.setattr(columnar, "_BATCH_BYTES", 50_000)
    sizes = [batch.num_rows for batch, _ in columnar._batches(path, 0, 1)]
    assert max(sizes) == 50_000 // (10 * 1004)
    assert [record["text"] for _, record in records(path)] == rows


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
        (b"a\n\xff\xfe", "line 2, byte 1: not valid UTF-8; convert the file"),
        (b'a\n"x"y\n', "line 2: not valid CSV"),
        (b"a\n" + b"x" * 200 + b"\n", "longer than prep.max_record_bytes = 100"),
        (b"a\n" + b"x" * 200, "longer than prep.max_record_bytes = 100"),
        (b'a\n"' + b"x\n" * 200 + b'"\n', "longer than prep.max_record_bytes = 100"),
        (b"a\n" + b"x," * 100, "longer than prep.max_record_bytes = 100"),
    ],
)
def test_a_faulty_csv_row_is_named(tmp_path: Path, content: bytes, finding: str) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(RecordFault, match=finding) as fault:
        read(path, max_bytes=100)
    assert fault.value.record == 0


def test_faulty_csv_rows_do_not_stop_those_behind_them(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b'a,b\r\n1\r\n"x\r\n\xff",y\r\n\xe9,y\r\n2,"3\r\n""4"""\r\n')
    outcomes = [outcome for _, outcome in FORMATS["csv"].records(path, 0, 1, max_bytes=99)]
    messages = [outcome.message for outcome in outcomes if isinstance(outcome, RecordFault)]
    assert messages == [
        "line 2: 1 cells, the header names 2 columns",
        "line 4, byte 1: not valid UTF-8; convert the file",
        "line 5, byte 1: not valid UTF-8; convert the file",
    ]
    assert outcomes[3:] == [{"a": "2", "b": '3\r\n"4"'}]


@pytest.mark.parametrize(
    ("header", "finding"),
    [
        (b"a,a", "distinct column names"),
        (b"a,", "distinct column names"),
        (b'"a\nb","a\nb"', r"distinct column names, found a\\U0000000ab, a\\U0000000ab$"),
        (b"a\xff,b", "not valid UTF-8"),
        (b'"a', "expected a header of column names"),
        (b"a" * 20_000, "it is too long"),
    ],
)
def test_a_header_without_distinct_names_is_refused(tmp_path: Path, header: bytes, finding: str) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(header + b"\n1,2\n")
    with pytest.raises(DataError, match=rf"data\.csv:1: .*{finding}"):
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
    ids=["no gzip", "a cut gzip", "no zstd"],  # the same in every process that collects them
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


def test_text_lines_end_with_either_line_end_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes("\ufeffone\r\ntwo\ufeff\r\n\r\nthree".encode())
    assert read(path) == [(0, {"text": "one"}), (1, {"text": "two\ufeff"}), (2, None), (3, {"text": "three"})]


@pytest.mark.parametrize("kind", ["text", "list", "dictionary"])
def test_an_arrow_file_whose_values_lie_outside_of_it_is_damaged(tmp_path: Path, kind: str) -> None:
    wrong = pa.py_buffer(np.array([0, 1 << 20, 2], np.int32))
    array = {
        "text": lambda: pa.Array.from_buffers(pa.string(), 2, [None, wrong, pa.py_buffer(b"ab")]),
        "list": lambda: pa.Array.from_buffers(
            pa.list_(pa.int32()), 2, [None, wrong], children=[pa.array([1, 2], pa.int32())]
        ),
        "dictionary": lambda: pa.DictionaryArray.from_arrays(pa.array([0, 7]), pa.array(["a", "b"]), safe=False),
    }[kind]()
    batch = pa.RecordBatch.from_arrays([array], names=["text"])
    path = tmp_path / "x.arrow"
    with pa.ipc.new_file(path, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(DataError, match=r"x\.arrow: damaged near row 1"):
        read(path)
