import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipelines.shards
from pipelines.artifacts import FileRecord, Manifest, digest_file
from pipelines.errors import CheckError, DataError, MachineError
from pipelines.failing_disk import storing
from pipelines.shards import (
    FORMAT_VERSION,
    IGNORE,
    Attention,
    Packs,
    ShardReader,
    fill_pack,
    fill_pack_reference,
    loss_bits,
    read_shard,
    token_dtype,
    write_shard,
)

GOLDEN = Path(__file__).with_name("golden-shard.arrow")


def packs_of(lengths: Sequence[Sequence[int]], *, vocabulary: int = 60_000, seed: int = 0) -> Packs:
    """Packs with segments of these lengths and random content."""
    random = np.random.default_rng(seed)
    flat = np.array([length for pack in lengths for length in pack], np.int32)
    segments_per_pack = np.array([len(pack) for pack in lengths], np.int32)
    loss = random.random(flat.sum()) < 0.5
    return Packs(
        tokens=random.integers(0, vocabulary, flat.sum()).astype(token_dtype(vocabulary)),
        loss_mask=loss_bits(loss, flat, segments_per_pack),
        lengths=flat,
        segments_per_pack=segments_per_pack,
        file=random.integers(0, 9, flat.size, np.uint32),
        record=random.integers(0, 2**32, flat.size, np.uint32),
        start=random.integers(0, 9, flat.size, np.uint32),
    )


def golden_packs() -> Packs:
    """Two packs whose every value is written down: by counting, not by a library's random stream."""
    lengths, segments_per_pack = np.array([3, 9, 1, 20], np.int32), np.array([2, 2], np.int32)
    counting = np.arange(33)
    return Packs(
        tokens=(counting * 1999).astype(np.uint16),
        loss_mask=loss_bits(counting % 3 > 0, lengths, segments_per_pack),
        lengths=lengths,
        segments_per_pack=segments_per_pack,
        file=np.array([0, 0, 1, 0], np.uint32),
        record=np.array([7, 8, 0, 2**32 - 1], np.uint32),
        start=np.array([0, 5, 0, 0], np.uint32),
    )


def starts_of(packs: Packs) -> npt.NDArray[np.int64]:
    """[packs] the number of each pack's first segment."""
    return np.cumsum(packs.segments_per_pack) - packs.segments_per_pack


def prep_directory(folder: Path, shards: Sequence[Packs], attention: Attention | None = None) -> Path:
    """A finished prep directory with these shards."""
    (folder / "shards").mkdir(parents=True)
    records = []
    for number, packs in enumerate(shards):
        path = folder / "shards" / f"shard-{number:05}.arrow"
        write_shard(path, packs)
        records.append(FileRecord.of(folder, path))
    facts: dict[str, Any] = {
        "packs_per_shard": [packs.segments_per_pack.size for packs in shards],
        "capacity": max(int(np.add.reduceat(one.lengths, starts_of(one)).max()) for one in shards),
        "max_token_id": max(int(one.tokens.max()) for one in shards),
    }
    if attention:
        facts["attention"] = asdict(attention)
    Manifest("prep", FORMAT_VERSION, "0", {}, records, facts).write(folder)
    return folder


def refit(folder: Path, **facts: Any) -> None:
    """Write the manifest anew, with the digests of the files that are there and other facts."""
    manifest = Manifest.read(folder)
    assert manifest is not None
    files = [FileRecord.of(folder, folder / record.path) for record in manifest.files]
    replace(manifest, files=files, facts={**manifest.facts, **facts}).write(folder)


def flip_token(path: Path) -> None:
    """Change a token of a shard of `golden_packs` where it lies."""
    at = path.read_bytes().index((np.arange(33) * 1999).astype("<u2").tobytes())
    with path.open("r+b") as file:
        file.seek(at + 2)
        file.write(b"\x00")


def assert_same(found: Packs, expected: Packs) -> None:
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value, name)
        assert getattr(found, name).dtype == value.dtype


some_packs = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=5), min_size=1, max_size=6)


@given(some_packs, st.sampled_from([60_000, 65_536, 65_537, 200_000]))
def test_what_is_written_is_read_back(tmp_path_factory: Any, lengths: list[list[int]], vocabulary: int) -> None:
    packs = packs_of(lengths, vocabulary=vocabulary)
    path = tmp_path_factory.mktemp("shard") / "shard.arrow"
    assert write_shard(path, packs) == digest_file(path)
    assert_same(read_shard(path), packs)


@given(some_packs)
def test_every_pack_is_read_by_its_index(tmp_path_factory: Any, lengths: list[list[int]]) -> None:
    packs = packs_of(lengths)
    reader = ShardReader(prep_directory(tmp_path_factory.mktemp("prep"), [packs]))
    assert len(reader) == len(lengths)
    token = segment = byte = 0
    for index, expected in enumerate(lengths):
        pack, size = reader[index], sum(expected)
        assert pack.cu_seqlens.tolist() == [0, *np.cumsum(expected)]
        np.testing.assert_array_equal(pack.tokens, packs.tokens[token : token + size])
        bits = np.unpackbits(packs.loss_mask[byte : byte + (size + 7) // 8], bitorder="little")
        np.testing.assert_array_equal(pack.loss, bits[:size])
        for name in ("file", "record", "start"):
            np.testing.assert_array_equal(getattr(pack, name), getattr(packs, name)[segment : segment + len(expected)])
        token, segment, byte = token + size, segment + len(expected), byte + (size + 7) // 8


@given(some_packs, st.booleans(), st.one_of(st.none(), st.integers(1, 40)))
def test_documents_are_segments_or_packs_cut_at_the_window(
    tmp_path_factory: Any, lengths: list[list[int]], across_samples: bool, window: int | None
) -> None:
    folder = prep_directory(tmp_path_factory.mktemp("prep"), [packs_of(lengths)], Attention(across_samples, window))
    for pack, segments in zip(ShardReader(folder), lengths, strict=True):
        assert pack.segments.tolist() == [0, *np.cumsum(segments)]
        assert pack.file.size == pack.record.size == pack.start.size == len(segments)
        positions: list[int] = []
        for document in [sum(segments)] if across_samples else segments:
            positions += [position % (window or document) for position in range(document)]
        assert pack.positions.tolist() == positions
        begins = [place for place, position in enumerate(positions) if position == 0]
        assert pack.cu_seqlens.tolist() == [*begins, len(positions)]
        assert not pack.loss[pack.segments[:-1]].any()  # where samples meet there is no target, whatever they attend to


def test_packs_are_numbered_across_shards(tmp_path: Path) -> None:
    shards = [packs_of([[4, 2], [3]], seed=0), packs_of([[5]], seed=1), packs_of([[1], [2], [6, 6]], seed=2)]
    reader = ShardReader(prep_directory(tmp_path, shards))
    assert [pack.tokens.size for pack in reader] == [6, 3, 5, 1, 2, 12]
    assert reader[2].tokens.tolist() == shards[1].tokens.tolist()
    for outside in (-1, 6):
        with pytest.raises(IndexError):
            reader[outside]


def test_labels_are_the_targets_and_positions_count_in_every_segment(tmp_path: Path) -> None:
    pack = ShardReader(prep_directory(tmp_path, [golden_packs()]))[0]
    assert pack.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    targets = [1, 2, 4, 5, 7, 8, 10, 11]
    assert pack.labels.tolist() == [1999 * at if at in targets else IGNORE for at in range(12)]


@given(some_packs)
def test_the_first_token_of_a_segment_is_no_target(lengths: list[list[int]]) -> None:
    flat = [length for pack in lengths for length in pack]
    mask = loss_bits(np.ones(sum(flat), np.bool_), np.array(flat), np.array([len(pack) for pack in lengths]))
    bits = []
    for pack in lengths:
        bits += [at > 0 for length in pack for at in range(length)]
        bits += [False] * (-len(bits) % 8)  # the next pack begins on a byte
    assert np.unpackbits(mask, bitorder="little").tolist() == bits


def test_a_shard_is_the_golden_one_byte_for_byte(tmp_path: Path) -> None:
    """Other bytes need another FORMAT_VERSION, and then another golden shard."""
    write_shard(tmp_path / "shard.arrow", golden_packs())
    assert (tmp_path / "shard.arrow").read_bytes() == GOLDEN.read_bytes()
    assert_same(read_shard(GOLDEN), golden_packs())


def test_a_shard_carries_no_metadata() -> None:
    assert pa.ipc.open_file(GOLDEN).schema.metadata is None


def test_reading_copies_nothing_but_the_mask(tmp_path: Path) -> None:
    reader = ShardReader(prep_directory(tmp_path, [packs_of([[40_000]] * 3)]))
    before = pa.total_allocated_bytes()
    packs = list(reader)
    assert pa.total_allocated_bytes() == before
    assert not any(array.flags.owndata for pack in packs for array in (pack.tokens, pack.cu_seqlens, pack.record))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_shortened_shard_is_refused_by_name(tmp_path: Path, share: float) -> None:
    folder = prep_directory(tmp_path, [packs_of([[50, 50], [70]])])
    path = folder / "shards" / "shard-00000.arrow"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"shard-00000\.arrow: .*run `packtrain prep` again"):
        ShardReader(folder)[0]


@pytest.mark.parametrize("content", [b"", b"no shard" * 100])
def test_another_file_in_its_place_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = prep_directory(tmp_path, [golden_packs()])
    (folder / "shards" / "shard-00000.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"shard-00000\.arrow: not a shard"):
        ShardReader(folder)[0]


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = prep_directory(tmp_path, [golden_packs()])
    (folder / "shards" / "shard-00000.arrow").unlink()
    with pytest.raises(DataError, match=r"shard-00000\.arrow: not a shard .*No such file"):
        ShardReader(folder)[0]


def test_another_shard_in_its_place_is_refused(tmp_path: Path) -> None:
    folder = prep_directory(tmp_path, [golden_packs()])
    write_shard(folder / "shards" / "shard-00000.arrow", packs_of([[5]]))
    with pytest.raises(DataError, match=r"1 packs, the manifest says 2"):
        ShardReader(folder)[0]
    write_shard(folder / "shards" / "shard-00000.arrow", packs_of([[12], [1, 20]]))  # as many, and as long
    with pytest.raises(CheckError, match=r"shard-00000\.arrow: SHA-256 differs from manifest\.json"):
        ShardReader(folder)[0]


def test_another_arrow_file_in_its_place_is_refused(tmp_path: Path) -> None:
    folder = prep_directory(tmp_path, [golden_packs()])
    table = pa.table({"input_ids": [[1]]})
    with pa.ipc.new_file(folder / "shards" / "shard-00000.arrow", table.schema) as writer:
        writer.write(table)
    with pytest.raises(DataError, match="not the columns of a shard"):
        ShardReader(folder)[0]


@pytest.mark.parametrize(
    ("found", "put"),
    [
        ([0, 3, 12], [0, 13, 12]),  # a segment that ends before it begins
        ([0, 3, 12], [0, 3, 11]),  # a pack that is longer than its segments
        ([0, 3, 12], [1, 3, 12]),
    ],
)
def test_segments_that_do_not_fill_their_pack_are_refused(tmp_path: Path, found: list[int], put: list[int]) -> None:
    folder = prep_directory(tmp_path, [golden_packs()])
    path = folder / "shards" / "shard-00000.arrow"
    old, new = (np.array(values, np.int32).tobytes() for values in (found, put))
    assert path.read_bytes().count(old) == 1
    path.write_bytes(path.read_bytes().replace(old, new))
    refit(folder)
    with pytest.raises(DataError, match=r"shard-00000\.arrow: pack 0 does not hold together"):
        ShardReader(folder)[0]
    with pytest.raises(DataError, match=r"shard-00000\.arrow: its packs do not follow each other"):
        read_shard(path)


int32 = st.integers(-(2**31), 2**31 - 1)


@given(
    st.one_of(
        st.lists(int32, max_size=6),
        st.lists(st.integers(-2, 9), max_size=6),
        st.sets(st.integers(1, 8), max_size=5).map(lambda ends: [0, *sorted(ends), 9]),
    ),
    st.sampled_from([0, 1, 8, 9, 10, 2**31 - 1]),
)
def test_any_boundaries_fill_their_pack_or_are_refused(cu_seqlens: list[int], tokens: int) -> None:
    found = np.array(cu_seqlens, np.int32)
    assert fill_pack(found, tokens) == fill_pack_reference(found, tokens)


@given(st.data())
def test_boundaries_that_do_not_fill_their_pack_are_read_by_nobody(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Whatever int32 stand in cu_seqlens, and whatever offsets lead to them: who reads a pack gets a sound one."""
    folder = prep_directory(tmp_path_factory.mktemp("prep"), [golden_packs()])
    path = folder / "shards" / "shard-00000.arrow"
    ends = data.draw(st.sampled_from([[0, 3, 6], [0, 2, 6], [1, 3, 6], [0, 6, 6], [0, 7, 6], [-3, 3, 6], [0, -1, 6]]))
    boundaries = data.draw(st.lists(st.one_of(int32, st.integers(0, 24)), min_size=6, max_size=6))
    near = data.draw(st.permutations([0, 3, 12, 0, 1, 21]))
    values = data.draw(st.sampled_from([boundaries, near, [0, 3, 12, 0, 1, 21]]))
    content = path.read_bytes()
    for old, new in (([0, 3, 6], ends), ([0, 3, 12, 0, 1, 21], values)):
        before, after = (np.array(one, np.int32).tobytes() for one in (old, new))
        assert content.count(before) == 1
        content = content.replace(before, after)
    path.write_bytes(content)
    refit(folder)
    expected = [values[max(0, begin) : max(0, end)] for begin, end in pairwise(ends)]
    sound = [
        begin >= 0 and fill_pack_reference(np.array(one, np.int32), size)
        for begin, one, size in zip(ends, expected, (12, 21), strict=False)
    ]
    reader = ShardReader(folder)
    for index, holds in enumerate(sound):
        if holds and ends == [0, 3, 6]:
            assert reader[index].segments.tolist() == expected[index]
        elif holds:
            with suppress(DataError):  # as the columns beside it lead elsewhere
                assert reader[index].segments.tolist() == expected[index]
        else:
            with pytest.raises(DataError, match="shard-00000"):
                reader[index]
    if all(sound) and ends == [0, 3, 6]:
        assert read_shard(path).lengths.tolist() == [*np.diff(values[:3]), *np.diff(values[3:])]
    else:
        with pytest.raises(DataError, match="shard-00000"):
            read_shard(path)


@pytest.mark.parametrize(
    ("fact", "value", "finding"),
    [
        ("capacity", 20, r"pack 1 has 21 tokens, the manifest says 20 at most"),
        ("max_token_id", 1999 * 32 - 1, r"pack 1 has the token id 63968, the manifest says 63967 at most"),
    ],
)
def test_packs_and_ids_beyond_what_the_manifest_says_reach_nobody(
    tmp_path: Path, fact: str, value: int, finding: str
) -> None:
    folder = prep_directory(tmp_path, [golden_packs()])
    refit(folder, **{fact: value})
    assert ShardReader(folder)[0].tokens.size == 12
    with pytest.raises(DataError, match=rf"shard-00000\.arrow: {finding}; it was changed"):
        ShardReader(folder)[1]


def test_a_shard_is_compared_with_its_digest_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prep_directory(tmp_path, [golden_packs(), golden_packs()])
    looked: list[str] = []

    def digest(path: Path) -> str:
        looked.append(path.name)
        return digest_file(path)

    monkeypatch.setattr("pipelines.shards.digest_file", digest)
    manifest = ShardReader(folder).manifest
    reader = ShardReader(folder, seen=manifest.stamps(folder))
    assert [reader[0].tokens.size, reader[1].tokens.size, looked] == [12, 21, []]
    flip_token(folder / "shards" / "shard-00001.arrow")  # since it was looked at
    assert reader[0].tokens.size == 12
    with pytest.raises(CheckError, match=r"shard-00001\.arrow: SHA-256 differs"):
        reader[2]
    with pytest.raises(CheckError, match=r"shard-00001\.arrow: SHA-256 differs"):
        ShardReader(folder)[2]
    assert looked == ["shard-00001.arrow"] * 2


def test_a_shard_that_changes_while_it_is_read_is_found(tmp_path: Path) -> None:
    folder = prep_directory(tmp_path, [golden_packs(), golden_packs()])
    one, other = (folder / "shards" / f"shard-{number:05}.arrow" for number in range(2))
    reader = ShardReader(folder)
    assert reader[0].tokens[0] == 0
    os.utime(one)
    flip_token(other)  # which was not read
    reader.refuse_changed()
    one.rename(tmp_path / "gone")
    reader.refuse_changed()  # what is mapped is as it was
    (tmp_path / "gone").rename(one)
    flip_token(one)
    for look in (reader.refuse_changed, reader.refuse_changed, lambda: ShardReader(folder)[0]):
        with pytest.raises(CheckError, match=r"shard-00000\.arrow: SHA-256 differs"):
            look()


def test_a_shard_that_only_other_ranks_read_is_looked_at_as_well(tmp_path: Path) -> None:
    folder = prep_directory(tmp_path, [golden_packs(), golden_packs()])
    first, second = (ShardReader(folder, seen=ShardReader(folder).manifest.stamps(folder)) for _ in range(2))
    assert (first[0].tokens.size, second[2].tokens.size) == (12, 12)
    first.refuse_changed()
    flip_token(folder / "shards" / "shard-00001.arrow")
    with pytest.raises(CheckError, match=r"shard-00001\.arrow: SHA-256 differs"):
        first.refuse_changed()


def test_a_damaged_shard_is_refused_every_time_it_is_asked_for(tmp_path: Path) -> None:
    folder = prep_directory(tmp_path, [golden_packs()])
    flip_token(folder / "shards" / "shard-00000.arrow")
    reader = ShardReader(folder)
    for _ in range(2):
        with pytest.raises(CheckError, match=r"shard-00000\.arrow: SHA-256 differs"):
            reader[1]


def test_a_shard_that_is_replaced_while_it_is_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prep_directory(tmp_path, [golden_packs()])
    sound, path = tmp_path / "sound", folder / "shards" / "shard-00000.arrow"
    sound.write_bytes(path.read_bytes())
    flip_token(path)
    opened = pipelines.shards._Shard

    def replacing(*given: Any, **more: Any) -> Any:
        shard = opened(*given, **more)
        if sound.exists():
            sound.rename(path)  # mapped was the other one
        return shard

    monkeypatch.setattr("pipelines.shards._Shard", replacing)
    assert ShardReader(folder)[0].tokens.tolist() == [1999 * number for number in range(12)]


def test_a_disk_that_fails_is_no_damage_of_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prep_directory(tmp_path, [golden_packs()])

    def full(_: str) -> None:
        raise OSError(errno.EMFILE, "Failed to open local file")

    monkeypatch.setattr("pipelines.shards.pa.memory_map", full)
    said = rf"^{folder / 'shards' / 'shard-00000.arrow'}: Too many open files .*raise the limit"
    with pytest.raises(MachineError, match=said), storing(folder, "x", int):
        ShardReader(folder)[0]


def test_no_damage_of_a_byte_is_worse_than_an_error(tmp_path: Path) -> None:
    """A changed byte either changes content, which its digest tells, or is refused; it never crashes."""
    folder = prep_directory(tmp_path, [golden_packs()])
    path = folder / "shards" / "shard-00000.arrow"
    whole = path.read_bytes()
    refused = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with pytest.raises((CheckError, DataError), match=r"shard-00000\.arrow: "):
            list(ShardReader(folder))
        refit(folder)
        try:
            for pack in ShardReader(folder):
                assert pack.tokens.size == pack.labels.size == pack.positions.size == pack.cu_seqlens[-1]
        except DataError:
            refused += 1
        with suppress(DataError):
            read_shard(path)
    assert refused > 50


def test_an_unfinished_directory_and_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished prep output here"):
        ShardReader(tmp_path)
    folder = prep_directory(tmp_path / "prep", [golden_packs()])
    manifest = Manifest.read(folder)
    assert manifest is not None
    replace(manifest, format_version=FORMAT_VERSION + 1).write(folder)
    with pytest.raises(DataError, match=f"prep of format {FORMAT_VERSION + 1}, this version reads"):
        ShardReader(folder)


@pytest.mark.parametrize(
    "facts",
    [
        {"packs_per_shard": 3},
        {"packs_per_shard": [1, 1, 1, 1, 1, 1, 1]},
        {"packs_per_shard": ["1"]},
        {"capacity": None},
        {"attention": "across"},
        {"attention": {"window": 0}},
        {"attention": {"more": 1}},
    ],
)
def test_a_manifest_that_does_not_say_what_the_shards_hold_is_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    prep_directory(tmp_path, [golden_packs()])
    refit(tmp_path, **facts)
    with pytest.raises(DataError, match="its manifest does not say what its shards hold"):
        ShardReader(tmp_path)
