"""A disk that is full or fails ends a command with what to do, not with a traceback."""

import errno
from pathlib import Path

import pytest

from pipelines.failing_disk import storage_error


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "make room there"), (errno.EIO, "look at the disk"), (errno.EFBIG, "ulimit -f")],
)
def test_place_room_and_remedy_are_said(tmp_path: Path, number: int, remedy: str) -> None:
    found = storage_error(OSError(number, "x", str(tmp_path / "file")))
    assert str(found).startswith(f"{tmp_path / 'file'}: ")
    assert "bytes free" in str(found)
    assert remedy in str(found)
    assert found is not None
    assert found.exit_code == 5


def test_an_error_without_a_place_is_said_as_well() -> None:
    assert str(storage_error(OSError(errno.ENOSPC, "x"))).startswith("No space left on device; make room")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EPIPE, None])
def test_what_is_not_about_storage_stays_our_fault(number: int | None) -> None:
    assert storage_error(OSError(number, "x") if number else OSError("x")) is None
