"""ftdp files are read as their writers meant them, and faults are named."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from prep.formats import ftdp
from prep.formats.fault import RecordFault
from prep.store import LOSS_BIT
from tests.prep.formats import strict

ROWS = st.lists(st.lists(st.integers(-999, 999), max_size=20), max_size=10)


def write(folder: Path, lines: list[bytes], tokens: list[int], dtype: type = np.int64) -> Path:
    path = folder / "data.bin"
    path.write_bytes(b"".join(lines))
    offsets = np.cumsum([0, *map(len, lines)])[:-1]
    meta = np.array(list(zip(offsets, tokens, strict=True)), dtype=dtype) if lines else np.zeros(0)
    with (folder / "data.bin.meta").open("wb") as file:
        np.save(file, meta)
    return path


def line(tokens: list[int]) -> bytes:
    return json.dumps({"tokens": tokens}).encode() + b"\n"


def read(path: Path, vocab_size: int = 1000) -> list[tuple[int, list[int]]]:
    """(number, tokens) with ftdp's sign restored, through every chunk."""
    found = []
    for begin, end in ftdp.chunks(path):
        for number, marked in strict(ftdp.samples(path, begin, end, vocab_size=vocab_size)):
            ids = (marked & ~LOSS_BIT).astype(np.int64)
            found.append((begin + number, np.where(marked & LOSS_BIT, ids, -ids).tolist()))
    return found


@given(rows=ROWS, spaces=st.booleans(), chunk_bytes=st.sampled_from([1, 40, 1 << 20]))
def test_every_line_is_read_as_json_reads_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]], spaces: bool, chunk_bytes: int
) -> None:
    separators = (", ", ": ") if spaces else (",", ":")
    lines = [json.dumps({"tokens": row}, separators=separators).encode() + b"\n" for row in rows]
    path = write(tmp_path_factory.mktemp("ftdp"), lines, [len(row) for row in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ftdp, "CHUNK_BYTES", chunk_bytes)
        assert read(path) == list(enumerate(rows))


def test_a_negative_id_carries_no_loss_and_zero_never_does(tmp_path: Path) -> None:
    path = write(tmp_path, [line([5, -6, 0])], [3])
    [(_, marked)] = strict(ftdp.samples(path, 0, 1, vocab_size=10))
    assert marked.tolist() == [5 | 1 << 31, 6, 0]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_meta_of_either_integer_width_is_read(tmp_path: Path, dtype: type) -> None:
    assert read(write(tmp_path, [line([1]), line([2, 3])], [1, 2], dtype)) == [(0, [1]), (1, [2, 3])]


def test_an_empty_file_with_its_float_meta_has_no_chunks(tmp_path: Path) -> None:
    assert ftdp.chunks(write(tmp_path, [], [])) == []


def test_a_linked_bin_finds_its_meta_beside_the_target(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "data.bin").symlink_to(write(tmp_path / "store", [line([7])], [1]))
    assert read(tmp_path / "data.bin") == [(0, [7])]


@pytest.mark.parametrize(
    ("second", "tokens", "finding"),
    [
        (b'{"tokens": [1, 2]}\n', 3, "2 tokens, the meta file says 3"),
        (b'{"tokens": [1, 2]}\n', 1, "2 tokens, the meta file says 1"),
        (b'{"ids": [1]}\n', 1, "expected {"),
        (b'{"tokens": [1.5]}\n', 1, "expected {"),
        (b'{"tokens": [1,]}\n', 1, "expected {"),
        (b'{"tokens": [01]}\n', 1, "expected {"),
        (b'{"tokens": [1]\n', 1, "expected {"),
        (b'{"tokens": [1]} x\n', 1, "expected {"),
        (b'{"tokens": [99999999999999999999]}\n', 1, "a token id above 999"),
        (b'{"tokens": [1, -1000]}\n', 2, "a token id above 999"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, second: bytes, tokens: int, finding: str) -> None:
    path = write(tmp_path, [line([1]), second], [1, tokens])
    with pytest.raises(RecordFault, match=finding) as fault:
        read(path)
    assert fault.value.record == 1


@pytest.mark.parametrize(
    ("meta", "finding"),
    [
        (np.array([[0, 1], [3, 1]]), "does not end where the meta"),
        (np.array([[0, 1], [0, 1]]), "row 1 is"),
        (np.array([[0, 1], [999, 1]]), "row 1 is"),
        (np.array([[-1, 1]]), "row 0 is"),
        (np.array([[0, -1]]), "row 0 is"),
        (np.zeros(0), "has no row, but data.bin has 32 bytes"),
        (np.array([0, 1]), "expected integer rows"),
        (np.array([[0.0, 1.0]]), "expected integer rows"),
        (np.array([["a", "b"]], dtype=object), "not a NumPy array"),
    ],
)
def test_a_meta_file_that_cannot_belong_to_the_bin_is_refused(tmp_path: Path, meta: object, finding: str) -> None:
    path = write(tmp_path, [line([1]), line([2])], [1, 1])
    with (tmp_path / "data.bin.meta").open("wb") as file:
        np.save(file, meta)  # type: ignore[arg-type]
    with pytest.raises((DataError, RecordFault), match=finding):
        read(path)


def test_a_missing_meta_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, [line([1])], [1])
    (tmp_path / "data.bin.meta").unlink()
    with pytest.raises(DataError, match=r"data\.bin\.meta: missing"):
        read(path)


def test_a_meta_file_that_skips_the_beginning_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [line([1]), line([2])], [1, 1])
    with (tmp_path / "data.bin.meta").open("wb") as file:
        np.save(file, np.array([[len(line([1])), 1]]))
    with pytest.raises(DataError, match="first line at byte"):
        read(path)


def test_a_fault_does_not_stop_the_lines_behind_it(tmp_path: Path) -> None:
    path = write(tmp_path, [line([1, 2]), b'{"tokens": [x]}\n', line([3])], [2, 1, 1])
    outcomes = [outcome for _, outcome in ftdp.samples(path, 0, 3, vocab_size=10)]
    assert isinstance(outcomes[1], RecordFault)
    assert [np.asarray(outcomes[0]).size, np.asarray(outcomes[2]).size] == [2, 1]


IDS = st.one_of(st.integers(-999, 999), st.integers(-999_999, 999_999), st.integers(-(10**19), 10**19))
GAPS = st.sampled_from([", ", ",", " ,\t", ",  "])
WRONG = st.tuples(
    st.floats(0, 1), st.integers(0, 2), st.sampled_from([bytes([byte]) for byte in b"09-+, ]}[{:x.\r\n\t\0"])
)


@st.composite
def written_lines(draw: st.DrawFn) -> tuple[bytes, int]:
    """A line as some writer or some accident left it, and how many tokens its meta file gives it."""
    ids = draw(st.lists(IDS, max_size=30))
    text = draw(GAPS).join(map(str, ids))
    written = b'{"tokens": [' + text.encode() + b"]}" + draw(st.sampled_from([b"", b"\r", b" "]))
    for place, removed, added in draw(st.lists(WRONG, max_size=2)):
        at = int(place * len(written))
        written = written[:at] + added + written[at + removed :]
    return written + b"\n", max(len(ids) + draw(st.sampled_from([0, 0, 0, -1, 1])), 0)


@settings(max_examples=400)
@given(lines=st.lists(written_lines(), min_size=1, max_size=4), vocab_size=st.sampled_from([1, 10, 1000, 10**9]))
def test_kernel_agrees_with_reference(lines: list[tuple[bytes, int]], vocab_size: int) -> None:
    wanted: list[int] = []
    outcome = (len(lines), 0, 0)
    for number, (written, count) in enumerate(lines):
        found = ftdp.parse_reference(written, count, vocab_size)
        if isinstance(found, tuple):
            outcome = (number, *found)
            break
        wanted += found
    ends = np.cumsum([len(written) for written, _ in lines])
    counts = np.array([count for _, count in lines])
    tokens = np.zeros(counts.sum(), np.uint32)
    text = np.frombuffer(b"".join(written for written, _ in lines), np.uint8)
    assert ftdp.parse(text, ends - np.diff(ends, prepend=0), ends, counts, vocab_size, tokens) == outcome
    assert tokens[: len(wanted)].tolist() == wanted


@pytest.mark.parametrize("gap", [b", ", b","])
def test_every_change_of_one_byte_is_judged_as_the_reference_does(gap: bytes) -> None:
    ids = [12, -345, 0, 67890, 10, -7, 100200, 90]
    written = b'{"tokens": [' + gap.join(b"%d" % token for token in ids) + b"]}\n"
    for at in range(len(written)):
        for byte in range(256):
            for removed in (0, 1):
                changed = written[:at] + bytes([byte]) + written[at + removed :]
                tokens = np.zeros(len(ids), np.uint32)
                ends = np.array([len(changed)])
                text = np.frombuffer(changed, np.uint8)
                lines, *fault = ftdp.parse(text, ends - ends, ends, np.array([len(ids)]), 100_000_000, tokens)
                assert (tokens.tolist() if lines else tuple(fault)) == ftdp.parse_reference(changed, 8, 100_000_000)


@given(
    rows=st.lists(st.lists((st.integers(-9, 9) | st.integers(-(10**6), 10**7)).filter(bool), min_size=1), min_size=1),
    gap=st.sampled_from([", ", ","]),
)
def test_the_fast_path_takes_every_token_that_begins_ten_bytes_before_the_end(rows: list[list[int]], gap: str) -> None:
    for row in rows:
        written = gap.join(map(str, row)).encode() + b"]}\n"
        tokens = np.zeros(len(row), np.uint32)
        text = np.frombuffer(written, np.uint8)
        i, filled = ftdp._plain_tokens(text, 0, text.size, len(gap) - 1, 10**8, tokens, 0, len(row))
        begins = np.cumsum([0, *(len(f"{token}{gap}") for token in row)])
        assert filled == np.count_nonzero(begins[: len(row) - 1] <= text.size - 10)
        assert i == begins[filled]
        assert np.where(tokens & LOSS_BIT, 1, -1)[:filled].tolist() == np.sign(row[:filled]).tolist()
        assert (tokens[:filled] & ~LOSS_BIT).tolist() == np.abs(row[:filled]).tolist()


def test_a_chunk_reads_its_own_rows_of_the_meta_file_alone(tmp_path: Path) -> None:
    path = write(tmp_path, [line([1]), line([2]), line([3])], [1, 1, 1])
    np.save((tmp_path / "data.bin.meta").open("wb"), np.array([[0, 1], [len(line([1])), 1], [-1, -1]]))
    assert [found for found, _ in ftdp.samples(path, 0, 1, vocab_size=10)] == [0]
    with pytest.raises(DataError, match="row 2 is"):
        list(ftdp.samples(path, 1, 3, vocab_size=10))
