"""Files that the user names are written where a file can be, and nothing else is replaced."""

import os
from pathlib import Path

import pytest

from pipelines.errors import MachineError
from pipelines.named_file import write_named_file


def test_directories_above_are_made_and_a_link_stays_one(tmp_path: Path) -> None:
    file = tmp_path / "new" / "deep" / "page.html"
    write_named_file(file, b"one")
    link = tmp_path / "link.html"
    link.symlink_to(file)
    write_named_file(link, b"two")
    assert link.is_symlink()
    assert file.read_bytes() == b"two"


def test_what_is_no_file_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_named_file(pipe, b"text")
    assert (os.read(reader, 9), pipe.is_fifo()) == (b"text", True)
    os.close(reader)


@pytest.mark.parametrize(("name", "finding"), [("", "a directory"), ("file/page.html", "cannot be written")])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str, finding: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=rf"{finding}.*; name"):
        write_named_file(tmp_path / name, b"")
