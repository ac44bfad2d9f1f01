"""What holds for every form: where it may go, what it says of itself, and that it is the same bytes each time."""

from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from pipelines.artifacts import Manifest
from pipelines.cli import main
from pipelines.errors import BusyError, CheckError, ConfigError, DataError, MachineError
from pipelines.provenance import verify
from prep.convert import Form, convert, summary
from tests.prep.convert.made_up import Segment, write_prep

SHARDS = [
    [[Segment(0, [5, 6, 7], [False, True, True]), Segment(1, [8, 9], [False, True])]],
    [[Segment(2, [4, 0, 3], [False, False, True])]],
]
FORMS: tuple[Form, ...] = get_args(Form)


def written(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "paths.json"
    }


@pytest.fixture
def prep(tmp_path: Path) -> Path:
    return write_prep(tmp_path / "work" / "r" / "prep", SHARDS, SHARDS[:1])


@pytest.mark.parametrize("form", FORMS)
def test_equal_shards_give_equal_bytes_with_a_manifest_that_names_them(tmp_path: Path, prep: Path, form: Form) -> None:
    convert(prep, tmp_path / "one", form=form)
    convert(prep, tmp_path / "two", form=form)
    assert written(tmp_path / "one") == written(tmp_path / "two")
    manifest, source = Manifest.read(tmp_path / "one"), Manifest.read(prep)
    assert manifest is not None
    assert source is not None
    assert (manifest.kind, manifest.parents) == ("converted", {"prep": source.identity})
    assert {record.path for record in manifest.files} == written(tmp_path / "one").keys() - {"manifest.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two", "work"]


@pytest.mark.parametrize("form", FORMS)
def test_a_converted_directory_is_verified_like_every_artefact(tmp_path: Path, prep: Path, form: Form) -> None:
    convert(prep, tmp_path / "out", form=form)
    assert [one.kind for one in verify(tmp_path / "out")] == ["converted"]
    first = next(path for path in sorted((tmp_path / "out" / "train").rglob("*")) if path.is_file())
    first.write_bytes(first.read_bytes()[::-1])
    with pytest.raises(CheckError, match=first.name):
        verify(tmp_path / "out")


def test_both_parts_are_counted(tmp_path: Path, prep: Path) -> None:
    facts = convert(prep, tmp_path / "out", form="hf")
    assert facts["parts"] == {
        "train": {"packs": 2, "segments": 3, "tokens": 8, "targets": 4},
        "eval": {"packs": 1, "segments": 2, "tokens": 5, "targets": 3},
    }
    assert summary(facts).splitlines()[0] == "train: 2 packs, 3 segments, 8 tokens, 4 targets"


def test_a_second_call_does_nothing(tmp_path: Path, prep: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = convert(prep, tmp_path / "out", form="ftdp")
    stamp = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert convert(prep, tmp_path / "out", form="ftdp") == facts
    assert "nothing to do" in caplog.text
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == stamp


def test_its_own_directory_is_replaced_as_a_whole(tmp_path: Path, prep: Path) -> None:
    convert(prep, tmp_path / "out", form="ftdp")
    convert(prep, tmp_path / "out", form="hf")
    convert(prep, tmp_path / "new", form="hf")
    assert written(tmp_path / "out") == written(tmp_path / "new")


def test_a_file_that_went_missing_is_written_again(tmp_path: Path, prep: Path) -> None:
    convert(prep, tmp_path / "out", form="hf")
    before = written(tmp_path / "out")
    (tmp_path / "out" / "train" / "state.json").unlink()
    convert(prep, tmp_path / "out", form="hf")
    assert written(tmp_path / "out") == before


def test_a_directory_with_anything_else_is_refused(tmp_path: Path, prep: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="holds files that are not from `packtrain prep convert`"):
        convert(prep, tmp_path / "out", form="hf")
    assert (tmp_path / "out" / "notes.txt").exists()


def test_another_artefact_is_refused(tmp_path: Path, prep: Path) -> None:
    other = write_prep(tmp_path / "other", SHARDS)
    with pytest.raises(ConfigError, match=r"holds another artefact \(prep\)"):
        convert(prep, other, form="hf")


def test_a_place_among_the_shards_is_refused(prep: Path) -> None:
    with pytest.raises(ConfigError, match="lies within the shards' own directory"):
        convert(prep, prep / "hf", form="hf")


def test_a_file_is_refused(tmp_path: Path, prep: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match="is a file"):
        convert(prep, tmp_path / "out", form="hf")


def test_a_directory_without_shards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished prep output here"):
        convert(tmp_path, tmp_path / "out", form="hf")


def test_a_damaged_shard_is_found_before_anything_is_written(tmp_path: Path, prep: Path) -> None:
    shard = prep / "shards" / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[content.index(bytes([5, 0, 6, 0, 7, 0]))] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckError, match=r"shard-00000\.arrow: SHA-256 differs"):
        convert(prep, tmp_path / "out", form="hf")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path, prep: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="choose another --out"):
        convert(prep, tmp_path / "file" / "out", form="hf")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, prep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(prep, tmp_path / "out", form="ftdp")
    before = written(tmp_path / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prep.convert.hf_dataset.pa.OSFile", full)
    with pytest.raises(MachineError, match="No space left on device"):
        convert(prep, tmp_path / "out", form="hf")
    assert written(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "work"]


def test_a_second_process_is_refused(tmp_path: Path, prep: Path) -> None:
    from pipelines.artifacts import exclusive

    with exclusive(tmp_path / ".out.partial"), pytest.raises(BusyError):
        convert(prep, tmp_path / "out", form="hf")


def test_the_command_says_what_it_wrote(tmp_path: Path, prep: Path) -> None:
    answer = CliRunner().invoke(main, ["prep", "convert", str(prep), "--to", "ftdp", "--out", str(tmp_path / "out")])
    assert answer.exit_code == 0
    assert answer.output.splitlines() == [
        "train: 2 packs, 3 segments, 8 tokens, 4 targets, 0 lost targets",
        "eval: 1 packs, 2 segments, 5 tokens, 3 targets, 0 lost targets",
    ]
