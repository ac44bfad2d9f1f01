"""Ranges of files as numbers."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import pipelines.file_ranges
from pipelines.errors import CheckError
from pipelines.file_ranges import FileRanges, Stored


def write(path: Path, tensor: torch.Tensor) -> Path:
    path.write_bytes(b"12345678" + tensor.view(torch.uint8).numpy().tobytes())
    return path


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_every_pattern_of_a_format_becomes_the_same_float32(tmp_path: Path, stored: Stored) -> None:
    bits = torch.arange(1 << 16, dtype=torch.int32)
    tensor = (
        (bits << 16).view(torch.float32) if stored == "float32" else bits.to(torch.int16).view(getattr(torch, stored))
    )
    found = np.empty(tensor.numel(), np.float32)
    FileRanges().read_numbers(write(tmp_path / "x", tensor), 8, stored, found)
    np.testing.assert_array_equal(found, tensor.float().numpy())


def test_a_range_beyond_the_end_or_of_no_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x", torch.arange(4.0))
    with pytest.raises(CheckError, match="x: ends 4 bytes early"):
        FileRanges().read_numbers(path, 8, "float32", np.empty(5, np.float32))
    with pytest.raises(CheckError, match="y: cannot be read"):
        FileRanges().read_numbers(tmp_path / "y", 0, "float32", np.empty(5, np.float32))


def test_more_files_than_are_kept_open_are_read_by_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.file_ranges, "_MOST_OPEN", 2)
    paths = [write(tmp_path / f"{number}", torch.full((1000,), float(number))) for number in range(10)]
    before, ranges = len(list(Path("/proc/self/fd").iterdir())), FileRanges()

    def sums(times: int) -> list[float]:
        out = np.empty(1000, np.float32)
        found = []
        for index in range(times):
            ranges.read_numbers(paths[index % 10], 8, "float32", out)
            found.append(float(out.sum()))
        return found

    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(sums, [200] * 4):
            assert found == [1000.0 * (index % 10) for index in range(200)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
