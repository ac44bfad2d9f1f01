"""What XTuner 0.1, and prep itself, read back from ftdp is what the shards hold."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings

from pipelines.config import load
from pipelines.shards import Attention, ShardReader
from prep.convert import convert
from prep.formats import ftdp as reader
from prep.run import run
from prep.store import LOSS_BIT
from tests.prep.convert.made_up import SOURCES, VOCABULARY, Segment, Shards, shards, write_prep
from tests.prep.small import TOKENIZER


def samples_of(packed: Shards, source: str) -> list[list[int]]:
    """The signed tokens of a source's segments, in order."""
    return [one.signed for packs in packed for pack in packs for one in pack if SOURCES[one.file] == source]


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.bin"))


@settings(max_examples=50)
@given(shards, shards)
def test_a_segment_is_a_line_in_its_sources_folder(train: Shards, held_out: Shards) -> None:
    with TemporaryDirectory() as place:
        out = Path(place, "ftdp")
        convert(write_prep(Path(place, "prep"), train, held_out), out, form="ftdp")
        for part, packed in (("train", train), ("eval", held_out)):
            for source in set(SOURCES):
                lines = [line for file in files_of(out / part / source) for line in file.read_bytes().splitlines()]
                assert [json.loads(line)["tokens"] for line in lines] == samples_of(packed, source)


@given(shards)
def test_our_own_reader_reads_the_same_samples(train: Shards) -> None:
    with TemporaryDirectory() as place:
        convert(write_prep(Path(place, "prep"), train), Path(place, "ftdp"), form="ftdp")
        for source in set(SOURCES):
            found = []
            for file in files_of(Path(place, "ftdp", "train", source)):
                for begin, end in reader.chunks(file):
                    for _, tokens in reader.samples(file, begin, end, vocab_size=VOCABULARY):
                        assert isinstance(tokens, np.ndarray)
                        ids = (tokens & ~LOSS_BIT).astype(np.int64)
                        found.append(np.where(tokens & LOSS_BIT, ids, -ids).tolist())
            assert found == samples_of(train, source)


def test_the_meta_file_is_int64_of_offsets_and_lengths(tmp_path: Path) -> None:
    packs = [[Segment(0, [10, 11], [False, True]), Segment(0, [7], [False])]]
    convert(write_prep(tmp_path / "prep", [packs]), tmp_path / "out", form="ftdp")
    file = tmp_path / "out" / "train" / "chat" / "shard-00000.bin"
    assert file.read_bytes() == b'{"tokens":[-10,11]}\n{"tokens":[-7]}\n'
    meta = np.load(f"{file}.meta", allow_pickle=False)
    assert meta.dtype == np.int64
    assert meta.tolist() == [[0, 2], [20, 1]]


def test_segments_stay_apart_in_packs_that_are_one_document(tmp_path: Path) -> None:
    packs = [[Segment(0, [5, 6], [False, True]), Segment(1, [8, 9], [False, True])]]
    attention = Attention(across_samples=True, window=3)
    convert(write_prep(tmp_path / "prep", [packs], attention=attention), tmp_path / "out", form="ftdp")
    assert (tmp_path / "out" / "train" / "chat" / "shard-00000.bin").read_bytes() == b'{"tokens":[-5,6]}\n'
    assert (tmp_path / "out" / "train" / "code" / "shard-00000.bin").read_bytes() == b'{"tokens":[-8,9]}\n'


def test_targets_of_id_0_are_counted_since_they_have_no_sign(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    packs = [[Segment(0, [0, 0, 5, 0], [False, True, True, False])]]
    with caplog.at_level("WARNING"):
        facts = convert(write_prep(tmp_path / "prep", [packs]), tmp_path / "out", form="ftdp")
    assert facts["parts"]["train"]["lost_targets"] == 1
    assert "1 of 2 targets have token id 0, which ftdp cannot mark" in caplog.text


def pipeline(folder: Path, path: Path, source: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.toml"
    file.write_text(
        f'schema_version = 1\n[run]\nname = "r"\n[model.scratch]\nmodel_type = "llama"\n'
        f'[tokenizer]\nname_or_path = "{TOKENIZER}"\n'
        f"[prep.output]\nshard_tokens = 400\n"
        f'[[prep.source]]\nname = "a"\npath = "{path}"\n{source}\n'
        f'[prep.pack]\ncapacity = 128\nstrategy = "none"\n'
        f'[prep.order]\nmode = "scan"\nshuffle = "none"\n'
    )
    return file


def test_prepping_what_was_converted_gives_the_same_samples(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    line = '{{"messages": [{{"role": "user", "content": "{0}?"}}, {{"role": "assistant", "content": "{0}!"}}]}}\n'
    text = "".join(line.format(f"word {number} " * (number % 4 + 1)) for number in range(60))
    (tmp_path / "data" / "a.jsonl").write_text(text)
    first = load(pipeline(tmp_path / "first", tmp_path / "data", ""))
    run(first, workers=1)
    convert(first.home / "prep", tmp_path / "ftdp", form="ftdp")
    again = load(pipeline(tmp_path / "again", tmp_path / "ftdp" / "train" / "a", 'map = "none"'))
    run(again, workers=1)
    one, two = ShardReader(first.home / "prep"), ShardReader(again.home / "prep")
    assert len(one) == len(two) == 60
    for left, right in zip(one, two, strict=True):
        assert left.tokens.tolist() == right.tokens.tolist()
        assert left.loss.tolist() == right.loss.tolist()


def test_xtuner_reads_the_same_samples(tmp_path: Path) -> None:
    intern_repo = pytest.importorskip("xtuner.dataset.intern_repo", reason="XTuner 0.1 or 0.2 is not here")
    train = [
        [[Segment(0, [5, 6, 0], [False, True, False]), Segment(1, [8, 9], [False, True])]],
        [[Segment(2, [4, 0, 3], [False, False, True])]],
    ]
    convert(write_prep(tmp_path / "prep", train), tmp_path / "out", form="ftdp")
    for source in set(SOURCES):
        # A source at a time, since across folders its order is the file system's.
        loaded = intern_repo.load_intern_repo_tokenized_dataset(str(tmp_path / "out" / "train" / source), min_length=0)
        found = [file[index] for file in loaded for index in range(len(file))]
        expected = [one for packs in train for pack in packs for one in pack if SOURCES[one.file] == source]
        assert [(one["input_ids"], one["labels"]) for one in found] == [(one.tokens, one.labels) for one in expected]
