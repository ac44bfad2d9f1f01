"""Lengths and fill are those of the shards, and bins hold all of them."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.artifacts import Manifest
from pipelines.report.lengths import Lengths, binned, edges, summary
from pipelines.shards import ShardReader
from tests.pipelines.report.written import SOURCES, write_prep


def test_lengths_are_counted_by_source_over_all_shards(tmp_path: Path) -> None:
    write_prep(tmp_path / "prep")
    reader = ShardReader(tmp_path / "prep")
    found = Lengths.of(tmp_path / "prep", reader.manifest)
    files = [one["source"] for one in reader.manifest.facts["files"]]
    for name in SOURCES:
        lengths = [
            length
            for pack in reader
            for length, file in zip(np.diff(pack.segments), pack.file, strict=True)
            if files[file] == name
        ]
        np.testing.assert_array_equal(found.by_source[name], np.bincount(lengths))
    np.testing.assert_array_equal(found.packs, np.bincount([pack.tokens.size for pack in reader]))
    assert found.all.sum() == sum(pack.segments.size - 1 for pack in reader)
    assert not found.why_not


def test_a_shard_that_is_not_there_is_said_and_the_others_are_counted(tmp_path: Path) -> None:
    write_prep(tmp_path / "prep")
    (tmp_path / "prep" / "shards" / "shard-00000.arrow").unlink()
    manifest = Manifest.read(tmp_path / "prep")
    assert manifest is not None
    found = Lengths.of(tmp_path / "prep", manifest)
    assert (found.packs.sum(), found.why_not) == (100, "shards/shard-00000.arrow is missing or damaged")


@given(st.lists(st.integers(1, 100_000), min_size=1), st.booleans())
def test_every_length_is_in_one_bin(lengths: list[int], logarithmic: bool) -> None:
    borders = edges(min(lengths), max(lengths), logarithmic=logarithmic)
    counts = binned([np.bincount(lengths)], borders)[0]
    assert counts.tolist() == np.histogram(lengths, [*borders[:-1], borders[-1] - 0.5])[0].tolist()
    assert counts.sum() == len(lengths)
    assert borders.size <= 42


@given(st.lists(st.integers(1, 1_000), min_size=1))
def test_percentiles_are_those_of_the_lengths(lengths: list[int]) -> None:
    found = summary(np.bincount(lengths))
    names = {"shortest": 0, "5 %": 5, "half": 50, "95 %": 95, "longest": 100}
    for name, share in names.items():
        assert found[name] == np.percentile(lengths, share, method="lower"), name
    assert np.isclose(found["mean"], np.mean(lengths))
