"""Files written past the page cache: the same bytes as any, from any number of threads."""

import errno
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from export import direct_file as module
from export.direct_file import direct_file


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 8192)


def ranges(size: int, seed: int) -> list[tuple[int, int]]:
    """Ranges that cover a file, in an order that is nearly theirs."""
    draw = random.Random(seed)
    borders = sorted({0, size, *(draw.randrange(size) for _ in range(20))}) if size else [0]
    cut = list(pairwise(borders))
    return sorted(cut, key=lambda one: one[0] + draw.uniform(0, 9000))


@pytest.mark.parametrize("size", [0, 1, 4096, 8192, 8193, 50_001])
@pytest.mark.parametrize("threads", [1, 3])
def test_ranges_become_the_file(tmp_path: Path, size: int, threads: int) -> None:
    content = random.Random(size).randbytes(size)
    with direct_file(tmp_path / "file", size) as file, ThreadPoolExecutor(threads) as pool:
        for task in [pool.submit(file.write, start, content[start:stop]) for start, stop in ranges(size, threads)]:
            task.result()
    assert (tmp_path / "file").read_bytes() == content


def test_a_longer_file_that_was_there_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    with direct_file(tmp_path / "file", 5) as file:
        file.write(0, b"abcde")
    assert (tmp_path / "file").read_bytes() == b"abcde"


def test_a_range_that_was_never_given_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="1 pieces of a file are not full"), direct_file(tmp_path / "f", 9) as file:
        file.write(0, b"abcd")


def _refusing(kind: int, times: int) -> Callable[..., int]:
    real, left = os.pwrite, [times]

    def pwrite(*arguments: Any) -> int:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(kind, os.strerror(kind))
        return real(*arguments)

    return pwrite


def test_a_file_system_with_other_borders_is_written_through_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", _refusing(errno.EINVAL, 1))
    with direct_file(tmp_path / "file", 10_000) as file:
        file.write(0, b"y" * 10_000)
    assert (tmp_path / "file").read_bytes() == b"y" * 10_000


@pytest.mark.parametrize(("kind", "times"), [(errno.ENOSPC, 1), (errno.EINVAL, 99)])
def test_what_the_disk_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, times: int) -> None:
    monkeypatch.setattr(os, "pwrite", _refusing(kind, times))
    with pytest.raises(OSError, match=os.strerror(kind)), direct_file(tmp_path / "file", 10) as file:
        file.write(0, b"0123456789")


def test_a_part_taken_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: real(file, content[:4096], at))
    content = random.Random(1).randbytes(30_000)
    with direct_file(tmp_path / "file", 30_000) as file:
        file.write(0, content)
    assert (tmp_path / "file").read_bytes() == content
