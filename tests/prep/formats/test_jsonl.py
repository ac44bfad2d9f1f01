"""JSON lines are read the same however the file is cut into chunks."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import DataError
from prep.formats import jsonl
from prep.formats import lines as text_lines
from prep.formats.fault import RecordFault
from tests.prep.formats import strict

LINE = st.one_of(
    st.just(""), st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=30).map(lambda s: s.strip())
)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(content)
    return path


@given(lines=st.lists(LINE, max_size=12), ends_with_feed=st.booleans(), cut=st.integers(1, 17))
def test_chunks_of_any_size_give_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], ends_with_feed: bool, cut: int
) -> None:
    text = "\n".join(lines) + ("\n" if ends_with_feed and lines else "")
    path = write(tmp_path_factory.mktemp("jsonl"), text.encode())
    size = path.stat().st_size
    bounds = [(begin, min(begin + cut, size)) for begin in range(0, size, cut)]
    whole = list(text_lines.lines(path, 0, size, max_bytes=1000))
    pieces = [list(text_lines.lines(path, begin, end, max_bytes=1000)) for begin, end in bounds]
    assert [line for piece in pieces for line in piece] == whole == text.encode().splitlines()


def test_a_line_feed_inside_a_chunk_border_starts_the_next_chunks_first_line(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"a":1}\n{"a":2}\n')
    assert list(jsonl.records(path, 0, 8, max_bytes=99)) == [(0, {"a": 1})]
    assert list(jsonl.records(path, 8, 16, max_bytes=99)) == [(0, {"a": 2})]


def test_blank_lines_are_skipped_and_keep_their_number(tmp_path: Path) -> None:
    path = write(tmp_path, b'\n{"a":1}\r\n  \n{"a":2}')
    assert list(jsonl.records(path, 0, path.stat().st_size, max_bytes=99)) == [
        (0, None),
        (1, {"a": 1}),
        (2, None),
        (3, {"a": 2}),
    ]


def test_shipped_chunks_cover_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "CHUNK_BYTES", 10)
    path = write(tmp_path, b"x" * 25)
    assert jsonl.chunks(path) == [(0, 10), (10, 20), (20, 25)]


@pytest.mark.parametrize(
    ("line", "finding", "byte"),
    [
        (b'{"a": tru}', "not valid JSON", 7),
        ('{"ü": x}'.encode(), "not valid JSON", 8),
        (b'{"a": "\xff"}', "not valid UTF-8", 8),
        (b'{"a": NaN}', "not valid JSON", 7),
        (b"[1]", "expected a JSON object, found an array", 1),
        (b"null", "expected a JSON object, found null", 1),
    ],
)
def test_a_faulty_line_is_named_with_its_byte(tmp_path: Path, line: bytes, finding: str, byte: int) -> None:
    path = write(tmp_path, b'{"a":1}\n' + line + b"\n")
    with pytest.raises(RecordFault, match=finding) as fault:
        list(strict(jsonl.records(path, 0, path.stat().st_size, max_bytes=999)))
    assert (fault.value.record, fault.value.byte) == (1, byte)


def test_a_line_above_the_limit_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({"a": "x" * 5000}).encode())
    with pytest.raises(RecordFault, match="max_record_bytes = 100"):
        list(strict(jsonl.records(path, 0, path.stat().st_size, max_bytes=100)))


def test_deep_nesting_is_a_fault_and_not_a_crash(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}")
    with pytest.raises(RecordFault, match="nested deeper than 100"):
        list(strict(jsonl.records(path, 0, path.stat().st_size, max_bytes=99999)))


@pytest.mark.parametrize("bad", [b"{", b"[]", b"\xff", b'"' + b"x" * 200 + b'"'])
def test_a_fault_does_not_stop_the_lines_behind_it(tmp_path: Path, bad: bytes) -> None:
    path = write(tmp_path, b'{"a":1}\n' + bad + b'\n{"a":2}\n')
    outcomes = [outcome for _, outcome in jsonl.records(path, 0, path.stat().st_size, max_bytes=100)]
    assert (outcomes[0], outcomes[2]) == ({"a": 1}, {"a": 2})
    assert isinstance(outcomes[1], RecordFault)


@pytest.mark.parametrize(
    ("line", "key", "byte", "first"),
    [(b'{"a":1,"b":2,"a":3}', "a", 14, 2), (b'{"m":[{"role":1},{"role":1,"x":{},"role":2}]}', "role", 35, 19)],
)
def test_a_repeated_key_is_named_with_both_places(tmp_path: Path, line: bytes, key: str, byte: int, first: int) -> None:
    path = write(tmp_path, b'{"a":1}\n' + line + b'\n{"a":2}\n')
    outcomes = [outcome for _, outcome in jsonl.records(path, 0, path.stat().st_size, max_bytes=999)]
    assert outcomes[0::2] == [{"a": 1}, {"a": 2}]
    assert isinstance(outcomes[1], RecordFault)
    assert outcomes[1].message == f'the key "{key}" stands twice in one object, at byte {first} already; keep one'
    assert (outcomes[1].record, outcomes[1].byte) == (1, byte)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_a_byte_order_mark_is_passed_over_and_members_follow_each_other(tmp_path: Path, ending: str) -> None:
    parts = ['\ufeff{"a": 1}\n{"a": "\ufeff2'.encode(), b'"}\n']
    path = tmp_path / f"data.{ending}"
    if ending.endswith("gz"):
        parts = [gzip.compress(part) for part in parts]
    elif ending.endswith("zst"):
        parts = [zstandard.compress(part) for part in parts]
    path.write_bytes(b"".join(parts))
    [(begin, end)] = jsonl.chunks(path)
    assert list(jsonl.records(path, begin, end, max_bytes=99)) == [(0, {"a": 1}), (1, {"a": "\ufeff2"})]


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("zst", zstandard.compress)])
@pytest.mark.parametrize("cut", [6, 4_000, -1])
def test_a_compressed_file_that_is_cut_off_is_never_taken_for_complete(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes], cut: int
) -> None:
    path = tmp_path / f"data.jsonl.{ending}"
    lines = b"".join(b'{"a": "%s"}\n' % hashlib.sha256(b"%d" % number).hexdigest().encode() for number in range(9999))
    path.write_bytes(compress(lines)[:cut])
    with pytest.raises(DataError, match=rf"data\.jsonl\.{ending}: damaged or truncated"):
        list(jsonl.records(path, 0, path.stat().st_size, max_bytes=99))


def test_what_was_not_written_in_utf8_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, '{"a": 1}\n'.encode("utf-16"))
    [(_, outcome)] = list(jsonl.records(path, 0, 9, max_bytes=99))
    assert isinstance(outcome, RecordFault)
    assert (outcome.message[:53], outcome.byte) == ("not valid UTF-8; convert the file, which looks like U", 1)
