"""Datasets that `save_to_disk` wrote are read by what they list, and nothing beside it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.errors import ConfigError, DataError
from prep.formats import FORMATS
from prep.scan import scan
from tests.prep.test_scan import source

ROWS = [{"messages": [{"role": "user", "content": f"问 {row}"}], "n": row} for row in range(10)]


def save(folder: Path, rows: list[dict[str, Any]], shards: int = 1, **state: Any) -> Path:
    """A Dataset as save_to_disk writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{shards:05d}.arrow" for number in range(shards)]
    each = -(-len(rows) // shards)
    for number, name in enumerate(names):
        table = pa.Table.from_pylist(rows[number * each : (number + 1) * each])
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], **state}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def save_splits(folder: Path) -> Path:
    save(folder / "train", ROWS, 2)
    save(folder / "test", ROWS[:3])
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    return folder


def listed(path: Path, **table: Any) -> list[str]:
    return [name for name, _ in scan(source(path, format="hf_disk", **table), follow_symlinks=False)]


def read(path: Path, **table: Any) -> list[Any]:
    found = []
    for _, where in scan(source(path, format="hf_disk", **table), follow_symlinks=False):
        for begin, end in FORMATS["hf_disk"].chunks(Path(where)):
            records = FORMATS["hf_disk"].records(Path(where), begin, end, max_bytes=9999)
            found += [record for _, record in records]
    return found


def test_only_what_the_state_lists_is_data(tmp_path: Path) -> None:
    saved = save(tmp_path / "saved", ROWS, 2, _indices_data_files=None)
    for name in ("cache-0123456789abcdef.arrow", "indices.arrow", "data-00002-of-00003.arrow"):
        (saved / name).write_bytes(b"never read")
    assert listed(saved) == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert read(saved) == ROWS


def test_a_split_is_one_folder_and_part_of_the_path(tmp_path: Path) -> None:
    saved = save_splits(tmp_path / "saved")
    assert listed(saved, split="train") == ["train/data-00000-of-00002.arrow", "train/data-00001-of-00002.arrow"]
    assert read(saved, split="test") == ROWS[:3]


@pytest.mark.parametrize(
    ("split", "finding"),
    [(None, "is a DatasetDict and split is missing"), ("dev", "is a DatasetDict and split = 'dev' is not in it")],
)
def test_a_split_that_is_missing_or_unknown_is_told_with_those_there_are(
    tmp_path: Path, split: str | None, finding: str
) -> None:
    with pytest.raises(ConfigError, match=f"'chat': .*{finding}; set it to one of train, test"):
        listed(save_splits(tmp_path / "saved"), split=split)


def test_a_dataset_without_splits_has_none_to_choose(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"split = 'train', but .* is a Dataset, not a DatasetDict; remove split"):
        listed(save(tmp_path / "saved", ROWS), split="train")


def test_files_and_paths_that_do_not_fit_the_format_are_refused(tmp_path: Path) -> None:
    saved = save(tmp_path / "saved", ROWS)
    with pytest.raises(ConfigError, match="files has no effect on a saved dataset"):
        listed(saved, files=["*.arrow"])
    with pytest.raises(ConfigError, match="is a file, and hf_disk is a folder"):
        listed(saved / "state.json")
    with pytest.raises(DataError, match=r"state\.json: missing, so this is no dataset"):
        listed(tmp_path)


@pytest.mark.parametrize("format_", ["auto", "arrow"])
def test_a_saved_dataset_is_not_read_as_loose_files(tmp_path: Path, format_: str) -> None:
    for saved in (save(tmp_path / "one", ROWS), save_splits(tmp_path / "two")):
        with pytest.raises(ConfigError, match='set format = "hf_disk"'):
            scan(source(saved, format=format_), follow_symlinks=False)
    chosen = scan(source(tmp_path / "one", format="arrow", files=["data-*"]), follow_symlinks=False)
    assert len(chosen) == 1


@pytest.mark.parametrize(
    ("state", "finding"),
    [
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "order of an indices file, which is not supported"),
        ({"_data_files": [{"filename": "data-00001-of-00002.arrow"}]}, r"00001-of-00002\.arrow: missing, and state"),
        ({"_data_files": [{"filename": "../data.arrow"}]}, "is no file beside it"),
        ({"_data_files": [{"filename": "/data.arrow"}]}, "is no file beside it"),
        ({"_data_files": [{"filename": None}]}, "is no file beside it"),
        ({"_data_files": []}, "lists no file"),
        ({"_data_files": "data.arrow"}, "has no list '_data_files'"),
    ],
)
def test_a_state_that_cannot_be_followed_is_refused(tmp_path: Path, state: Any, finding: str) -> None:
    with pytest.raises(DataError, match=finding):
        listed(save(tmp_path / "saved", ROWS, **state))


@pytest.mark.parametrize("content", ["{", "[" * 3000, "[]", '"x"', "\xff"])
def test_a_damaged_state_is_refused(tmp_path: Path, content: str) -> None:
    saved = save(tmp_path / "saved", ROWS)
    (saved / "state.json").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"state\.json: (not valid JSON|has no list)"):
        listed(saved)


def test_what_the_datasets_library_saves_is_read_as_it_reads_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "plain", num_shards=2)
    loaded = datasets.load_from_disk(tmp_path / "plain")
    loaded.map(lambda row: {"more": row["n"] + 1})
    loaded.shuffle(seed=1)
    assert len(list((tmp_path / "plain").glob("cache-*.arrow"))) == 2
    assert read(tmp_path / "plain") == loaded.to_list() == ROWS
    chosen = saved.select([7, 1, 3])
    datasets.DatasetDict({"train": saved, "odd": chosen}).save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "splits", split="odd") == chosen.to_list() == [ROWS[row] for row in (7, 1, 3)]
