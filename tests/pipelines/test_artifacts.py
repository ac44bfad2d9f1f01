"""Artefacts appear whole, and equal content has equal bytes."""

import errno
import multiprocessing
import os
import re
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.artifacts import (
    FileRecord,
    Manifest,
    canonical_json,
    commit_directory,
    exclusive,
    identity,
    make_directory,
    refuse_busy,
    shared,
    write_atomic,
)
from pipelines.errors import BusyError, CheckError, MachineError


def test_canonical_json_does_not_depend_on_key_order() -> None:
    assert (
        canonical_json({"b": [1, "é"], "a": Decimal("0.10")})
        == '{\n  "a": "0.10",\n  "b": [\n    1,\n    "é"\n  ]\n}\n'.encode()
    )
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1}) != identity({"a": 1, "b": 3})


@pytest.mark.parametrize("value", [float("nan"), Path("x"), {1, 2}])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical_json({"a": value})


def test_a_manifest_reads_back_as_written(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    manifest = Manifest("prep", 1, "id", {"a": "b"}, [FileRecord.of(tmp_path, tmp_path / "x")], {"n": 1})
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    manifest.verify(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["manifest.json", "x"]


def test_a_directory_without_manifest_is_no_artefact(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'""', b'{"files": [1]}', b"\xff"])
def test_a_damaged_manifest_is_an_error_and_not_an_empty_place(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(CheckError, match="not a manifest"):
        Manifest.read(tmp_path)


@given(at=st.integers(0, 10**4), mask=st.integers(1, 255))
def test_a_manifest_with_any_byte_changed_says_the_same_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, mask: int
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    records = [FileRecord("a/ä.bin", 3, "0" * 64)]
    manifest = Manifest("prep", 1, "id", {"a": "b"}, records, {"n": 1, "x": 0.5, "by": {2: 1, 10: 0}})
    manifest.write(folder)
    content = bytearray((folder / "manifest.json").read_bytes())
    before = Manifest.read(folder)
    content[at % len(content)] ^= mask
    (folder / "manifest.json").write_bytes(content)
    with suppress(CheckError):
        assert Manifest.read(folder) == before  # of white space, or a digit of a number that is the same


def test_a_committed_directory_replaces_the_old_one(tmp_path: Path) -> None:
    old, new = tmp_path / "out", tmp_path / "tmp"
    for folder in (old, new):
        folder.mkdir()
        (folder / folder.name).touch()
    commit_directory(new, old)
    assert [path.name for path in old.iterdir()] == ["tmp"]
    assert not new.exists()


def test_an_atomic_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"1")
    write_atomic(tmp_path / "a", b"2")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"2")]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cannot be written"):
        make_directory(tmp_path / "file" / "below")


def _hold(folder: Path, held: "multiprocessing.Queue[str]", done: "multiprocessing.Queue[str]") -> None:
    with exclusive(folder):
        held.put("held")
        done.get()


def test_a_second_process_is_told_that_the_place_is_busy(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, done = context.Queue(), context.Queue()
    holder = context.Process(target=_hold, args=(tmp_path, held, done))
    holder.start()
    held.get(timeout=60)
    with (
        pytest.raises(BusyError, match=rf"another packtrain process .* \(process {holder.pid} on "),
        exclusive(tmp_path),
    ):
        pass
    with pytest.raises(BusyError, match="another packtrain process"), shared(tmp_path):
        pass
    with pytest.raises(BusyError, match="another packtrain process"):
        refuse_busy(tmp_path)
    done.put("done")
    holder.join()
    refuse_busy(tmp_path)
    with exclusive(tmp_path):
        pass


def test_who_holds_a_place_is_said_in_one_line_whatever_stood_there(tmp_path: Path) -> None:
    refuse_busy(tmp_path)  # nothing was ever held
    (tmp_path / ".lock").write_text("process 123456789012 on a-machine-with-a-long-name.example\n" * 3)
    with exclusive(tmp_path):
        line = (tmp_path / ".lock").read_text()
    assert re.fullmatch(rf"process {os.getpid()} on [^\n]*\n", line)


def test_those_who_share_a_place_keep_out_only_who_wants_it_alone(tmp_path: Path) -> None:
    busy = pytest.raises(BusyError, match="another packtrain process")
    with shared(tmp_path), shared(tmp_path), busy, exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(MachineError, match="cannot be locked"), exclusive(tmp_path):
        pass


@pytest.mark.parametrize(
    "change",
    [
        {"kind": 3},
        {"format_version": "1"},
        {"parents": {"prep": None}},
        {"facts": []},
        {"files": [{"path": 1, "size": 1, "sha256": ""}]},
    ],
)
def test_a_signed_manifest_of_other_kinds_of_values_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    content = {**Manifest("prep", 1, "", {}, [], {}).as_json(), **change}
    (tmp_path / "manifest.json").write_bytes(canonical_json({**content, "sha256": identity(content)}))
    with pytest.raises(CheckError, match="not a manifest"):
        Manifest.read(tmp_path)


def test_a_manifest_nested_beyond_any_stack_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"[" * 200_000)
    with pytest.raises(CheckError, match="not a manifest"):
        Manifest.read(tmp_path)
