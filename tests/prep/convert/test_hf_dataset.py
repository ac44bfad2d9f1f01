"""What `datasets` loads is what the shards hold."""

import json
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings

from pipelines.shards import Attention
from prep.convert import convert, hf_dataset
from tests.prep.convert.made_up import Segment, Shards, shards, write_prep


def rows_of(packed: Shards) -> list[dict[str, list[int]]]:
    """What a row has to hold, written the obvious way."""
    return [
        {
            "input_ids": [token for segment in pack for token in segment.tokens],
            "labels": [label for segment in pack for label in segment.labels],
            "position_ids": [position for segment in pack for position in range(len(segment.tokens))],
            "seq_lengths": [len(segment.tokens) for segment in pack],
        }
        for packs in packed
        for pack in packs
    ]


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of a split, by Arrow alone."""
    names = [file["filename"] for file in json.loads((folder / "state.json").read_bytes())["_data_files"]]
    return [row for name in names for row in pa.ipc.open_stream(str(folder / name)).read_all().to_pylist()]


@settings(max_examples=50)
@given(shards, shards)
def test_a_pack_is_a_row_with_labels_positions_and_lengths(train: Shards, held_out: Shards) -> None:
    with TemporaryDirectory() as place:
        prep = write_prep(Path(place, "prep"), train, held_out)
        convert(prep, Path(place, "hf"), form="hf")
        assert read(Path(place, "hf", "train")) == rows_of(train)
        assert read(Path(place, "hf", "eval")) == rows_of(held_out)


@given(shards)
def test_the_lengths_say_where_segments_are_so_nothing_is_lost(train: Shards) -> None:
    with TemporaryDirectory() as place:
        convert(write_prep(Path(place, "prep"), train), Path(place, "hf"), form="hf")
        found = []
        for row in read(Path(place, "hf", "train")):
            ends = [0, *accumulate(row["seq_lengths"])]
            for begin, end in pairwise(ends):
                found.append((row["input_ids"][begin:end], row["labels"][begin:end]))
        assert found == [(list(one.tokens), one.labels) for packs in train for pack in packs for one in pack]


@pytest.mark.parametrize(
    ("attention", "lengths"),
    [(Attention(across_samples=True), [5]), (Attention(window=2), [2, 1, 2]), (Attention(True, 2), [2, 2, 1])],
)
def test_lengths_and_positions_are_of_what_attention_stays_inside_of(
    tmp_path: Path, attention: Attention, lengths: list[int]
) -> None:
    packs = [[Segment(0, [5, 6, 7], [False, True, True]), Segment(1, [8, 9], [False, True])]]
    convert(write_prep(tmp_path / "prep", [packs], attention=attention), tmp_path / "hf", form="hf")
    [row] = read(tmp_path / "hf" / "train")
    assert row["seq_lengths"] == lengths
    assert row["position_ids"] == [position for length in lengths for position in range(length)]
    assert row["labels"] == [-100, 6, 7, -100, 9]


def test_large_shards_are_written_in_batches_of_whole_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_dataset, "BATCH_TOKENS", 5)
    packs = [[Segment(0, list(range(1, length + 1)), [False] * length)] for length in (3, 3, 6, 1, 1)]
    convert(write_prep(tmp_path / "prep", [packs]), tmp_path / "hf", form="hf")
    stream = pa.ipc.open_stream(str(tmp_path / "hf" / "train" / "data-00000-of-00001.arrow"))
    assert [batch.num_rows for batch in stream] == [2, 1, 2]


def test_the_datasets_library_loads_both_parts(tmp_path: Path) -> None:
    train = [
        [[Segment(0, [5, 6, 7], [False, True, True]), Segment(1, [8, 9], [False, True])]],
        [[Segment(2, [4, 0, 3], [False, False, True])], [Segment(0, [1, 2], [False, True])]],
    ]
    held_out = [[[Segment(0, [3, 2, 1], [False, True, False])]]]
    convert(write_prep(tmp_path / "prep", train, held_out), tmp_path / "hf", form="hf")
    loaded = datasets.load_from_disk(str(tmp_path / "hf"))
    assert isinstance(loaded, datasets.DatasetDict)
    assert loaded["train"].to_list() == rows_of(train)
    assert loaded["eval"].to_list() == rows_of(held_out)
    assert loaded["train"][1] == rows_of(train)[1]
    assert loaded["train"].features["labels"].feature.dtype == "int32"
