import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.artifacts import Manifest, digest_file
from pipelines.errors import DataError
from pipelines.schema import PackTable
from pipelines.shards import FORMAT_VERSION, Pack, Packs, ShardReader, read_shard
from prep.assemble import ShardFacts, assemble, forget_digests
from prep.packing import Packing, pack
from prep.store import LOSS_BIT, Samples

VOCABULARY = 70_000


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    """Three chunks of samples, the second without any, with tokens that tell where they come from."""
    random = np.random.default_rng(7)
    counts = [5, 0, 9]
    lengths = random.integers(1, 40, sum(counts)).astype(np.int32)
    chunk = np.repeat(np.arange(3, dtype=np.int32), counts)
    files, offset = [], np.zeros(lengths.size, np.int64)
    for number in range(3):
        mine = lengths[chunk == number]
        offset[chunk == number] = np.cumsum(mine) - mine
        tokens = np.arange(mine.sum(), dtype=np.uint32) + 1000 * number
        tokens[random.random(tokens.size) < 0.6] |= LOSS_BIT
        files.append(tmp_path / f"tokens-{number}.u32")
        tokens.tofile(files[-1])
    return Samples(
        lengths=lengths,
        loss_tokens=np.zeros(lengths.size, np.int32),
        file=chunk.astype(np.uint32),
        record=np.concatenate([np.arange(n, dtype=np.uint32) for n in counts]),
        start=np.zeros(lengths.size, np.uint32),
        chunk=chunk,
        offset=offset,
        token_files=files,
        records=np.array(counts, np.int64),
    )


SEQUENCE = np.array([3, 1, 13, 0, 9, 7, 3, 5, 11, 10, 2, 12, 8])  # 3 is repeated; 4 and 6 are left out


def plan(samples: Samples, **table: Any) -> Packing:
    return pack(samples.lengths[SEQUENCE], PackTable(capacity=40, scope="global", **table))


def write(samples: Samples, packing: Packing, folder: Path, **options: Any) -> Sequence[ShardFacts]:
    options = {"vocabulary": VOCABULARY, "shard_tokens": 60, "workers": 1, **options}
    return list(assemble(samples, SEQUENCE, packing, folder, **options))


def read(folder: Path, facts: Sequence[ShardFacts]) -> list[Pack]:
    counts = {
        "packs_per_shard": [shard.packs for shard in facts],
        "capacity": 40,
        "max_token_id": max(shard.max_token_id for shard in facts),
    }
    Manifest("prep", FORMAT_VERSION, "0", {}, [shard.record for shard in facts], counts).write(folder)
    return list(ShardReader(folder))


@pytest.mark.parametrize("strategy", ["best_fit", "concat_split", "none"])
def test_packs_hold_the_samples_of_the_plan(samples: Samples, tmp_path: Path, strategy: str) -> None:
    packing = plan(samples, strategy=strategy)
    facts = write(samples, packing, tmp_path)
    segment = 0
    for found, segments in zip(read(tmp_path, facts), packing.segments_per_pack, strict=True):
        assert found.cu_seqlens.size == segments + 1
        for i in range(segments):
            sample = SEQUENCE[packing.sample[segment]]
            first = samples.offset[sample] + packing.start[segment]
            chunk = np.fromfile(samples.token_files[samples.chunk[sample]], np.uint32)
            expected = chunk[first : first + packing.length[segment]]
            here = slice(found.cu_seqlens[i], found.cu_seqlens[i + 1])
            assert found.tokens[here].tolist() == (expected & ~LOSS_BIT).tolist()
            assert found.loss[here].tolist() == [False, *((expected[1:] & LOSS_BIT) > 0)]
            assert (found.file[i], found.record[i]) == (samples.file[sample], samples.record[sample])
            assert found.start[i] == packing.start[segment]
            segment += 1
    assert segment == packing.sample.size


def test_workers_do_not_change_a_byte(samples: Samples, tmp_path: Path) -> None:
    packing = plan(samples)
    one = write(samples, packing, tmp_path / "one")
    assert len(one) > 3
    assert write(samples, packing, tmp_path / "two", workers=2) == one


def test_a_shard_ends_with_the_pack_that_reaches_its_tokens(samples: Samples, tmp_path: Path) -> None:
    facts = write(samples, plan(samples), tmp_path)
    assert sum(shard.packs for shard in facts) == plan(samples).packs
    assert all(60 <= shard.tokens < 60 + 40 for shard in facts[:-1])


def test_loss_tokens_are_the_targets(samples: Samples, tmp_path: Path) -> None:
    facts = write(samples, plan(samples, strategy="concat_split"), tmp_path)
    assert sum(shard.loss_tokens for shard in facts) == sum(pack.loss.sum() for pack in read(tmp_path, facts))


def test_a_small_vocabulary_takes_two_bytes_a_token(samples: Samples, tmp_path: Path) -> None:
    packs = read(tmp_path, write(samples, plan(samples), tmp_path, vocabulary=65_536))
    assert {pack.tokens.dtype for pack in packs} == {np.dtype(np.uint16)}


def test_max_token_id_is_the_largest_written(samples: Samples, tmp_path: Path) -> None:
    facts = write(samples, plan(samples), tmp_path)
    packs = iter(read(tmp_path, facts))
    for shard in facts:
        assert shard.max_token_id == max(next(packs).tokens.max() for _ in range(shard.packs))


def test_nothing_makes_no_shards(samples: Samples, tmp_path: Path) -> None:
    nothing = pack(np.zeros(0, np.int32), PackTable(capacity=40, scope="global"))
    assert write(samples, nothing, tmp_path) == []


def test_an_interrupted_call_is_continued(samples: Samples, tmp_path: Path) -> None:
    packing, folder = plan(samples), tmp_path / "interrupted"
    options: Any = {"vocabulary": VOCABULARY, "shard_tokens": 60, "workers": 1}
    interrupted: Any = assemble(samples, SEQUENCE, packing, folder, **options)
    first = next(interrupted)
    interrupted.close()
    (folder / "shards" / ".shard-00001.arrow.tmp").write_bytes(b"half a shard")
    written = (folder / first.record.path).stat().st_mtime_ns
    assert write(samples, packing, folder) == write(samples, packing, tmp_path / "whole")
    assert (folder / first.record.path).stat().st_mtime_ns == written
    assert sorted(path.name for path in (folder / "shards").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole" / "shards").iterdir()
    )


@pytest.mark.parametrize("found", [b"", b"damaged", "another"])
def test_what_is_not_the_plans_shard_is_not_taken_over(samples: Samples, tmp_path: Path, found: bytes | str) -> None:
    facts = write(samples, plan(samples), tmp_path)
    first, second = (tmp_path / shard.record.path for shard in facts[:2])
    first.write_bytes(found if isinstance(found, bytes) else second.read_bytes())
    assert write(samples, plan(samples), tmp_path) == facts
    assert digest_file(first) == facts[0].record.sha256


def test_a_shard_that_was_damaged_since_is_not_taken_over(samples: Samples, tmp_path: Path) -> None:
    facts = write(samples, plan(samples), tmp_path)
    first = tmp_path / facts[0].record.path
    content = bytearray(first.read_bytes())
    content[content.index(read_shard(first).tokens.tobytes())] ^= 1
    first.write_bytes(content)
    assert write(samples, plan(samples), tmp_path) == facts
    assert digest_file(first) == facts[0].record.sha256
    forget_digests(tmp_path)
    assert {path.suffix for path in first.parent.iterdir()} == {".arrow"}
    first.write_bytes(content)
    assert write(samples, plan(samples), tmp_path) == facts
    assert digest_file(first) == facts[0].record.sha256


@pytest.mark.parametrize("workers", [1, 2])
def test_a_chunk_shorter_than_its_samples_is_refused_by_name(samples: Samples, tmp_path: Path, workers: int) -> None:
    chunk = samples.token_files[2]
    chunk.write_bytes(chunk.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"tokens-2\.u32: segments reach beyond the \d+ tokens"):
        write(samples, plan(samples), tmp_path, workers=workers)


def test_a_full_disk_is_reported_and_leaves_no_shard(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, packs: Packs) -> str:
        path.write_bytes(b"half a shard")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("prep.assemble.write_shard", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/shard-00000\.arrow'"):
        write(samples, plan(samples), tmp_path)
    assert list((tmp_path / "shards").iterdir()) == []
