"""The footer of a Parquet file as it is read here is what Arrow reads of it; a damaged one is an error, not the end."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import DataError
from prep.formats import columnar
from prep.formats.parquet_footer import columns


@pytest.mark.parametrize("version", ["1.0", "2.6"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_columns_are_those_that_arrow_reads(tmp_path: Path, version: str, compression: str) -> None:
    rows = 1000
    table = pa.table(
        {
            "text": ["a" * (number % 50) for number in range(rows)],
            "n": range(rows),
            "s": [{"x": [1.5, None], "y": {"z": True}}] * rows,
            "m": pa.array([[("k", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
        }
    )
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=300, version=version, compression=compression, use_dictionary=["text"])
    metadata = pq.ParquetFile(path).metadata
    found = columns(path)
    assert len(found) == metadata.num_row_groups == 4
    for group, own in enumerate(found):
        for index, one in enumerate(own):
            arrows = metadata.row_group(group).column(index)
            assert one.path == arrows.path_in_schema
            assert (one.full, one.packed) == (arrows.total_uncompressed_size, arrows.total_compressed_size)
            assert one.dictionary == (arrows.dictionary_page_offset if arrows.has_dictionary_page else None)
        assert len(own) == metadata.row_group(group).num_columns


def test_a_damaged_footer_does_not_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a", None, "b"]}), path)
    command = [sys.executable, "-X", "faulthandler", "-c", _READ_DAMAGED, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.stdout == "whole\n", said.stderr[-2000:]


_READ_DAMAGED = """
import sys
from pathlib import Path
from pipelines.errors import DataError
from prep.formats import columnar

path = Path(sys.argv[1])
content = path.read_bytes()
for place in range(len(content) - 8 - int.from_bytes(content[-8:-4], "little"), len(content) - 8):
    for value in (0x19, 0xFF) if place % 3 else (0, content[place] ^ 1):
        path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
        try:
            for begin, end in columnar.chunks(path):
                list(columnar.records(path, begin, end, max_bytes=1 << 16))
        except DataError:
            pass
print("whole")
"""


@pytest.mark.parametrize(
    "footer", [b"", b"\x00", b"\x49\xfc\xff\xff\xff\xff\x0f", b"\x4c" * 100, b"\x49\xf9\xff\xff\x7f"]
)
def test_a_footer_that_is_none_is_named(tmp_path: Path, footer: bytes) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(DataError, match=r"x\.parquet: its footer is damaged"):
        columns(path)
    with pytest.raises(DataError, match=r"x\.parquet: not a Parquet or Arrow file"):
        columnar.chunks(path)
