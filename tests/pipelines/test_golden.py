"""Golden digests: what differs is named, settings before bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import FileRecord, Manifest, identity
from pipelines.config import load
from pipelines.errors import CheckError
from pipelines.golden import check, write
from pipelines.schema import Pipeline
from tests.pipelines.test_config import BASE


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Pipeline]:
    """A pipeline with a prep output of the given shard bytes and settings."""

    def make(train: bytes = b"a", held_out: bytes = b"b", settings: Any = 1) -> Pipeline:
        (tmp_path / "x.toml").write_text(BASE, encoding="utf-8")
        pipeline = load(tmp_path / "x.toml")
        folder = pipeline.home / "prep"
        records = []
        for name, content in (("shards/0.arrow", train), ("eval/shards/0.arrow", held_out)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            records.append(FileRecord.of(folder, folder / name))
        facts = {"settings": settings, "files": [], "tokenizer": "t"}
        Manifest("prep", 1, identity(settings), {}, records, facts).write(folder)
        return pipeline

    return make


def test_equal_output_agrees(prepared: Callable[..., Pipeline], tmp_path: Path) -> None:
    write(prepared(), tmp_path / "golden.json")
    assert check(prepared(), tmp_path / "golden.json") == 2


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"settings": 2, "train": b"x"}, "written for other settings, other input files or another tokenizer"),
        ({"train": b"x"}, r"1 of 2 shards differ \(shards/0.arrow\), though the same was asked"),
        ({"held_out": b"x"}, r"1 of 2 shards differ \(eval/shards/0.arrow\), though the same was asked"),
    ],
)
def test_what_differs_is_named(
    prepared: Callable[..., Pipeline], tmp_path: Path, changed: dict[str, Any], finding: str
) -> None:
    write(prepared(), tmp_path / "golden.json")
    with pytest.raises(CheckError, match=finding):
        check(prepared(**changed), tmp_path / "golden.json")
