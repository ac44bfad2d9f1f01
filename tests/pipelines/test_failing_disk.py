"""A disk that is full or fails ends a command with what to do, not with a traceback."""

import errno
import re
from pathlib import Path

import pytest

from pipelines.errors import MachineError
from pipelines.failing_disk import storage_error, storing


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


def test_what_is_needed_is_said_beside_what_is_free(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught, storing(tmp_path, "prep", lambda: 1_234_567):
        raise OSError(errno.ENOSPC, "x")
    free = r"[\d,]+ bytes free"
    said = rf"{tmp_path}: No space left on device \(prep needs about 1,234,567 bytes in all, {free}\); make room .*"
    assert re.fullmatch(said, str(caught.value))
    with pytest.raises(MachineError, match=rf"Input/output error \({free}\); look at"), storing(tmp_path, "x", int):
        raise OSError(errno.EIO, "x")
    with pytest.raises(MachineError, match=rf"^{tmp_path}: a\.npy: Input/output error"), storing(tmp_path, "x", int):
        raise OSError(errno.EIO, "x", "a.npy")
    said = rf"^{tmp_path}: No space left on device \({free}\); make room"
    with pytest.raises(MachineError, match=said), storing(tmp_path, "x", lambda: (tmp_path / "none").stat().st_size):
        raise OSError(errno.ENOSPC, "x")
    with pytest.raises(FileNotFoundError), storing(tmp_path, "prep", int):
        (tmp_path / "none").read_bytes()


def test_the_file_that_was_read_is_the_place(tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    place = f"^{tmp_path / 'weights'}: Input/output error"
    with pytest.raises(MachineError, match=place), storing(tmp_path, "x", int):
        _read_badly(tmp_path / "weights")


def _read_badly(path: Path) -> None:
    with path.open("rb") as file:
        file.read()
        raise OSError(errno.EIO, "x")


def test_an_error_without_a_place_is_said_as_well() -> None:
    assert str(storage_error(OSError(errno.ENOSPC, "x"))).startswith("No space left on device; make room")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EPIPE, None])
def test_what_is_not_about_storage_stays_our_fault(number: int | None) -> None:
    assert storage_error(OSError(number, "x") if number else OSError("x")) is None
