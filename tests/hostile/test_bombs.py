"""Compression bombs and gigabyte lines: whatever the format, each command stays within a fixed memory.

`tests/prep/test_bad_input.py` has prep read lines of a gibibyte in every format below a limit of the kernel's.
"""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard

from prep.formats.arrow_bodies import decompressed
from tests.hostile.process import packtrain
from tests.hostile.test_paths import pipeline

GIB = 1 << 30
BLOCK = b"0" * (16 << 20)


def gzipped(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(GIB // len(BLOCK)):
            file.write(BLOCK)


def zstandard_frames(path: Path) -> None:
    frame = zstandard.compress(BLOCK)
    path.write_bytes(frame * (GIB // len(BLOCK)))


def zstandard_window(path: Path) -> None:
    """A frame that asks for a window of 1 GiB before its first byte."""
    settings = zstandard.ZstdCompressionParameters(window_log=30, compression_level=1)
    with path.open("wb") as raw, zstandard.ZstdCompressor(compression_params=settings).stream_writer(raw) as file:
        file.write(b'{"messages": []}\n' * 1000)


def arrow(path: Path, values: int = GIB // 8, dictionary: bool = False) -> None:
    numbers = pa.array(np.zeros(values, np.int64))
    if dictionary:
        numbers = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), numbers)
    batch = pa.record_batch({"text": numbers})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(path, batch.schema, options=options) as file:
        file.write_batch(batch)


BOMBS = {
    "a.jsonl.gz": (gzipped, "a.jsonl.gz:1: longer than prep.max_record_bytes"),
    "a.jsonl.zst": (zstandard_frames, "a.jsonl.zst:1: longer than prep.max_record_bytes"),
    "b.jsonl.zst": (zstandard_window, "b.jsonl.zst: damaged or truncated"),
    "a.arrow": (arrow, "a.arrow: compressed record batch 0 is"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_check_looks_at_a_bomb_in_a_fixed_memory(tmp_path: Path, name: str) -> None:
    make, finding = BOMBS[name]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data" / name)
    assert (tmp_path / "data" / name).stat().st_size < 16 << 20
    done = packtrain("check", pipeline(tmp_path), cwd=tmp_path)
    assert finding in done.out + done.err, done.err
    assert (done.code, "Traceback" in done.err) == (3, False)
    assert done.peak_mb < 400


@pytest.mark.parametrize("dictionary", [False, True])
def test_what_an_arrow_file_becomes_is_known_before_it_is_decompressed(tmp_path: Path, dictionary: bool) -> None:
    arrow(tmp_path / "a.arrow", 1 << 20, dictionary)
    packed, full = max(decompressed(tmp_path / "a.arrow"), key=lambda pair: pair[1])
    assert full == 8 << 20
    assert packed < full / 1000
    table = pa.table({"text": ["plain"] * 100})
    with pa.ipc.new_stream(tmp_path / "b.arrow", table.schema) as file:
        file.write_table(table)
    assert [*decompressed(tmp_path / "b.arrow")] == []
