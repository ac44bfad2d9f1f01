"""Where an export goes, and what it must not destroy."""

import errno
from pathlib import Path

import pytest

from export.destination import refuse_foreign_files, staged
from pipelines.artifacts import FileRecord, Manifest
from pipelines.errors import ConfigError, MachineError


def finish(folder: Path, content: str) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "weights").write_text(content)
    Manifest("hf", 1, content, {}, [FileRecord.of(folder, folder / "below" / "weights")], {}).write(folder)


def write_half(final: Path, error: Exception) -> None:
    with staged(final) as folder:
        (folder / "half").touch()
        raise error


def test_an_export_appears_whole_and_replaces_the_last(tmp_path: Path) -> None:
    final = tmp_path / "run" / "hf"
    for content in ("old", "new"):
        with staged(final) as folder:
            finish(folder, content)
            assert not final.exists() or (final / "below" / "weights").read_text() == "old"
        assert (final / "below" / "weights").read_text() == content
    assert [path.name for path in final.parent.iterdir()] == ["hf"]


def test_a_failure_leaves_the_last_export_and_nothing_else(tmp_path: Path) -> None:
    final = tmp_path / "hf"
    with staged(final) as folder:
        finish(folder, "old")
    with pytest.raises(RuntimeError):
        write_half(final, RuntimeError())
    assert (final / "below" / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".hf.tmp").mkdir()
    (tmp_path / ".hf.tmp" / "half").touch()
    with staged(tmp_path / "hf") as folder:
        assert not list(folder.iterdir())
        finish(folder, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    final = tmp_path / "hf"
    with staged(final) as folder:
        finish(folder, "old")
    (final / "notes.txt").touch()
    (final / "results").mkdir()
    (final / "results" / "mmlu.json").touch()
    with (
        pytest.raises(ConfigError, match=r"hf/notes\.txt and 1 more: not written by an export; move it"),
        staged(final),
    ):
        pass
    assert (final / "notes.txt").exists()


def test_a_directory_without_manifest_belongs_to_others(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    refuse_foreign_files(tmp_path / "hf")  # nothing in it, nothing to lose
    (tmp_path / "hf" / "config.json").touch()
    with pytest.raises(ConfigError, match=r"config\.json: not written by an export"):
        refuse_foreign_files(tmp_path / "hf")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "hf").touch()
    with pytest.raises(ConfigError, match="hf: not written by an export"):
        refuse_foreign_files(tmp_path / "hf")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path))
    with pytest.raises(MachineError, match=r"cannot be written \(No space left on device\); free space") as caught:
        write_half(tmp_path / "hf", full)
    assert caught.value.exit_code == 5
    assert not list(tmp_path.iterdir())
