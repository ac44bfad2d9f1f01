"""`packtrain verify A B` of two preps names what was changed between them, and what came of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import load
from pipelines.divergence import Divergence, compare
from prep.run import run
from tests.prep.small import LINE, MakePipeline, conversations

DATA = "data/a.jsonl"


def _replaced(old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        toml = folder / "run.toml"
        content = toml.read_text()
        assert content.count(old) == 1
        toml.write_text(content.replace(old, new))

    return change


def _record(folder: Path) -> None:
    lines = (folder / DATA).read_text().splitlines(keepends=True)
    lines[2] = LINE.format("another word")
    (folder / DATA).write_text("".join(lines))


def _one_more(folder: Path) -> None:
    with (folder / DATA).open("a") as file:
        file.write(LINE.format("one more"))


def _file(folder: Path) -> None:
    (folder / "data" / "b.jsonl").write_text(conversations(2))


CHANGES: dict[str, tuple[Callable[[Path], object], list[tuple[str, str]]]] = {
    "key": (_replaced("capacity = 256", "capacity = 128"), [("setting", "prep.pack.capacity"), ("pack", "0 token ")]),
    "seed": (lambda folder: None, [("setting", "seed"), ("pack", "0 token ")]),
    "record": (_record, [("input", "a/a.jsonl, its sha256"), ("record", "a/a.jsonl:3"), ("pack", "")]),
    "one record more": (_one_more, [("input", "a/a.jsonl, its sha256"), ("record", "a/a.jsonl:21"), ("pack", "")]),
    "file": (_file, [("input", "number 2 of the data order"), ("pack", "")]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_first_difference_of_two_preps_is_named(what: str, make_pipeline: MakePipeline, tmp_path: Path) -> None:
    change, expected = CHANGES[what]
    toml = make_pipeline(conversations(20))
    homes = []
    for name in "ab":
        if name == "b":
            change(toml.parent)
        overrides = [
            f'run.name="{name}"',
            'prep.order.mode="scan"',
            *(["run.seed=8"] * (name == "b" and what == "seed")),
        ]
        pipeline = load(toml, overrides)
        run(pipeline, workers=1)
        homes.append(pipeline.home)
        if name == "a":
            keep(pipeline.home, tmp_path / "kept")
    found = compare(*homes).divergences
    assert [one.what for one in found] == [what for what, _ in expected]
    assert all(one.where.startswith(where) for one, (_, where) in zip(found, expected, strict=True)), found
    assert compare(homes[0], homes[0]).divergences == []


def keep(home: Path, folder: Path) -> None:
    """Copy what a prep read, and have its run.json say so: the next prep is of changed files in the same places."""
    told = json.loads((home / "prep" / "run.json").read_text())
    folder.mkdir()
    for one in told["inputs"]:
        copy = folder / Path(one["where"]).name
        copy.write_bytes(Path(one["where"]).read_bytes())
        one["where"] = str(copy)
    (home / "prep" / "run.json").write_text(json.dumps(told))


def test_a_row_of_parquet_is_named(tmp_path: Path) -> None:
    from pipelines.divergence import _record as of_files

    for name, last in (("a", "three"), ("b", "drei")):
        pq.write_table(pa.table({"text": ["one", "two", last]}), tmp_path / f"{name}.parquet")
    [found] = of_files("s/x.parquet", tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert found == Divergence("record", "s/x.parquet:3", "{'text': 'three'}", "{'text': 'drei'}")
