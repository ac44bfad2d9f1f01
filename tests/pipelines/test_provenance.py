"""`verify` walks to the inputs and stops at the first difference."""

import json
from pathlib import Path

import pytest

from pipelines.artifacts import FileRecord, Manifest, digest_file
from pipelines.errors import CheckError, DataError
from pipelines.provenance import verify


def make(folder: Path, kind: str, identity: str, parents: dict[str, str], facts: dict[str, object]) -> Path:
    folder.mkdir(parents=True)
    (folder / "content").write_text(kind)
    Manifest(kind, 1, identity, parents, [FileRecord.of(folder, folder / "content")], facts).write(folder)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    source = tmp_path / "data.jsonl"
    source.write_text("{}\n")
    home = tmp_path / "work" / "run"
    files = [{"path": "data.jsonl", "size": 3, "sha256": digest_file(source)}]
    prep = make(home / "prep", "prep", "p", {}, {"files": files})
    (prep / "run.json").write_text(json.dumps({"inputs": [{"where": str(source)}]}))
    make(home / "train" / "checkpoints" / "step-00000001", "checkpoint", "c", {"prep": "p"}, {})
    make(home / "export" / "hf", "hf", "h", {"checkpoint": "c"}, {})
    return home


def test_an_export_leads_back_to_the_inputs(home: Path) -> None:
    kinds = [found.kind for found in verify(home / "export")]
    assert kinds == ["prep", "checkpoint", "hf"]
    assert verify(home / "prep")[0].parents == {"inputs": "1 unchanged, 0 not here"}


def test_a_changed_input_is_named(home: Path) -> None:
    (home.parent.parent / "data.jsonl").write_text("[]\n")
    with pytest.raises(CheckError, match=r"data\.jsonl: changed since prep read it"):
        verify(home / "export" / "hf")


@pytest.mark.parametrize(("change", "finding"), [("prep ", "5 bytes"), ("Prep", "SHA-256 differs")])
def test_a_changed_parent_is_named(home: Path, change: str, finding: str) -> None:
    (home / "prep" / "content").write_text(change)
    with pytest.raises(CheckError, match=finding):
        verify(home / "export" / "hf")


def test_a_missing_file_is_named(home: Path) -> None:
    (home / "export" / "hf" / "content").unlink()
    with pytest.raises(CheckError, match=r"content: listed in manifest\.json but missing"):
        verify(home)


def test_a_parent_that_is_not_here_is_said(home: Path) -> None:
    (home / "train" / "checkpoints" / "step-00000001" / "manifest.json").unlink()
    [found] = verify(home / "export")
    assert found.parents == {"checkpoint": "not here"}


def test_a_checkpoint_beside_other_shards_is_named_with_both(home: Path) -> None:
    content = {"path": "data.jsonl", "size": 3, "sha256": "0" * 64}
    (home / "prep" / "content").write_text("other")
    files = [FileRecord.of(home / "prep", home / "prep" / "content")]
    Manifest("prep", 1, "q", {}, files, {"files": [content]}).write(home / "prep")
    with pytest.raises(CheckError, match=r"step-00000001: was made from the shards p, and those in .*prep are q"):
        verify(home / "export")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no run.json"),
        ("{", "no run.json"),
        ('{"inputs": [{}]}', "no run.json"),
        ('{"inputs": 3}', "no run.json"),
        ('{"inputs": []}', "run.json is of another prep"),
    ],
)
def test_places_of_inputs_that_are_not_known_are_said(home: Path, content: str | None, said: str) -> None:
    (home / "prep" / "run.json").unlink() if content is None else (home / "prep" / "run.json").write_text(content)
    assert verify(home / "prep")[0].parents == {"inputs": f"places unknown ({said})"}


def test_an_input_that_is_not_here_is_counted(home: Path) -> None:
    (home.parent.parent / "data.jsonl").unlink()
    assert verify(home / "prep")[0].parents == {"inputs": "0 unchanged, 1 not here"}


def test_a_place_without_artefacts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json here or below"):
        verify(tmp_path)
