"""What XTuner 1 reads from the preset form is what the shards hold, each pack filled up to its length."""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings

from pipelines.shards import Attention
from prep.convert import convert
from tests.prep.convert.made_up import CAPACITY, Segment, Shards, shards, write_prep

Item = tuple[list[int], list[int]]
"""Tokens and labels."""


def packs_of(packed: Shards) -> list[list[Item]]:
    """The items each pack has to have, written the obvious way."""
    found = []
    for packs in packed:
        for pack in packs:
            missing = CAPACITY - sum(len(one.tokens) for one in pack)
            filling = [([0] * missing, [-100] * missing)] if missing else []
            found.append([*((list(one.tokens), one.labels) for one in pack), *filling])
    return found


def read(folder: Path) -> list[list[Item]]:
    """The packs as the format's own description says, in the order in which to train on them."""
    paths = json.loads((folder / "pack" / "paths.json").read_bytes())
    boundaries = np.load(folder / "pack" / "boundaries.npy", mmap_mode="r")
    samples = np.load(folder / "pack" / "samples.npy", mmap_mode="r")
    order = np.load(folder / "order.npy", mmap_mode="r")
    assert boundaries.dtype == samples.dtype == order.dtype == np.int64
    assert samples.shape == (boundaries[-1], 6)
    lines = [Path(path).read_bytes().splitlines() for path in paths]
    packs = []
    for index in order:
        items = []
        for path, line, char_start, char_end, begin, end in samples[boundaries[index] : boundaries[index + 1]].tolist():
            assert (char_start, char_end) == (-1, -1)
            sample = json.loads(lines[path][line])
            items.append((sample["input_ids"][begin:end], sample["labels"][begin:end]))
        packs.append(items)
    return packs


@settings(max_examples=50)
@given(shards, shards)
def test_every_pack_holds_its_segments_and_is_full(train: Shards, held_out: Shards) -> None:
    with TemporaryDirectory() as place:
        out = Path(place, "out")
        convert(write_prep(Path(place, "prep"), train, held_out), out, form="xtuner")
        assert read(out / "train") == packs_of(train)
        assert read(out / "eval") == packs_of(held_out)


FULL = [[Segment(0, [7] * CAPACITY, [False] + [True] * (CAPACITY - 1))]]
SHORT = [[Segment(0, [0, 1], [False, True]), Segment(1, [5], [False])]]


def test_full_packs_need_no_padding(tmp_path: Path) -> None:
    facts = convert(write_prep(tmp_path / "prep", [FULL]), tmp_path / "out", form="xtuner")
    assert facts["parts"]["train"]["padding"] == 0
    assert [path.name for path in (tmp_path / "out" / "train" / "data").iterdir()] == ["shard-00000.jsonl"]


def test_an_item_is_what_attention_stays_inside_of(tmp_path: Path) -> None:
    attention = Attention(across_samples=True, window=7)
    convert(write_prep(tmp_path / "prep", [FULL, SHORT], attention=attention), tmp_path / "out", form="xtuner")
    full, short = read(tmp_path / "out" / "train")
    assert full == [([7] * 7, [-100] + [7] * 6), ([7] * 5, [7] * 5)]
    assert short == [([0, 1, 5], [-100, 1, -100]), ([0] * 9, [-100] * 9)]


def test_a_directory_that_was_moved_finds_its_data_again(tmp_path: Path) -> None:
    prep = write_prep(tmp_path / "prep", [SHORT])
    convert(prep, tmp_path / "out", form="xtuner")
    shutil.move(tmp_path / "out", tmp_path / "moved")
    stamp = (tmp_path / "moved" / "manifest.json").stat().st_mtime_ns
    convert(prep, tmp_path / "moved", form="xtuner")
    assert read(tmp_path / "moved" / "train") == packs_of([SHORT])
    assert (tmp_path / "moved" / "manifest.json").stat().st_mtime_ns == stamp


def test_xtuner_loads_the_same_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset_pack = pytest.importorskip("xtuner.v1.datasets.preset_pack", reason="XTuner 1 is not here")
    jsonl = pytest.importorskip("xtuner.v1.datasets.jsonl")
    train = [SHORT, FULL]
    out = tmp_path / "out"
    convert(write_prep(tmp_path / "prep", train), out, form="xtuner")
    monkeypatch.setenv("XTUNER_TOKENIZE_WORKERS", "1")
    monkeypatch.syspath_prepend(out)
    samples = __import__("packtrain_samples").Samples()
    paths = json.loads((out / "train" / "pack" / "paths.json").read_bytes())
    data = [jsonl.JsonlDataset(path, tokenize_fn=samples.build(None), disable_filter=True) for path in paths]
    loaded = preset_pack.PresetPackDataset(data, str(out / "train" / "pack"), pack_max_length=CAPACITY)
    found = [[(item["input_ids"], item["labels"]) for item in loaded[index]] for index in range(len(loaded))]
    sys.modules.pop("packtrain_samples")
    assert found == packs_of(train)
