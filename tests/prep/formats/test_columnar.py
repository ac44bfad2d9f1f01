"""Single rows of columnar files."""

from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prep.formats import columnar


def test_a_single_row_is_what_all_rows_have_there(tmp_path: Path) -> None:
    rows = [{"text": f"row {number}", "when": date(2020, 1, 1 + number % 28)} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=1700)
    everything = [row for _, row in columnar.records(tmp_path / "a.parquet", 0, 2, max_bytes=1 << 20)]
    for number in (0, 1023, 1024, 1699, 1700, 2999):
        assert columnar.record(tmp_path / "a.parquet", 0, 2, number, max_bytes=1 << 20) == everything[number]
    assert columnar.record(tmp_path / "a.parquet", 0, 2, 3000, max_bytes=1 << 20) is None
    assert columnar.record(tmp_path / "a.parquet", 1, 2, 0, max_bytes=1 << 20) == everything[1700]
