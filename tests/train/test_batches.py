"""Which packs a step trains on, and what a rank computes of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.shards import Attention, Pack, ShardReader
from tests.train.runs import write_prep
from train.batches import Batches, micro_batch
from train.order import PackOrder

PACKS = 10


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    folder = tmp_path_factory.mktemp("batches") / "prep"
    write_prep(folder, packs=PACKS)
    return ShardReader(folder)


def batches(packs: ShardReader, size: int, *, rank: int = 0, ranks: int = 1) -> Batches:
    return Batches(packs, global_batch_size=size, shuffle="hash", seed=3, rank=rank, ranks=ranks)


@given(size=st.integers(1, 12), ranks=st.integers(1, 5), step=st.integers(0, 9))
def test_ranks_share_out_the_same_global_batch(packs: ShardReader, size: int, ranks: int, step: int) -> None:
    whole = batches(packs, size)[step]
    parts = [batches(packs, size, rank=rank, ranks=ranks)[step] for rank in range(ranks)]
    assert {len(part.micro_batches) for part in parts} == {-(-size // ranks)}
    assert {(part.loss_tokens, part.tokens, part.documents.tobytes()) for part in parts} == {
        (whole.loss_tokens, whole.tokens, whole.documents.tobytes())
    }
    seen = [micro for part in parts for micro in part.micro_batches if micro.targets.numel()]
    assert sorted(micro.seed for micro in seen) == sorted(
        micro.seed for micro in whole.micro_batches if micro.targets.numel()
    )
    assert sum(micro.targets.numel() for micro in seen) == whole.loss_tokens


def test_step_reaches_over_the_end_of_an_epoch(packs: ShardReader) -> None:
    order = PackOrder(PACKS, shuffle="hash", seed=3)
    step = batches(packs, 4)[2]
    expected = [packs[order[position]].tokens.tolist() for position in (8, 9, 10, 11)]
    assert [micro.input_ids[0].tolist() for micro in step.micro_batches] == expected


def test_targets_are_shifted_inside_each_document() -> None:
    pack = Pack(
        tokens=np.array([10, 11, 12, 20, 30, 31], np.uint16),
        loss=np.array([False, False, True, False, False, True]),
        cu_seqlens=np.array([0, 3, 4, 6], np.int32),
        segments=np.array([0, 3, 4, 6], np.int32),
        file=np.zeros(3, np.uint32),
        record=np.zeros(3, np.uint32),
        start=np.zeros(3, np.uint32),
    )
    batch = micro_batch(pack, torch.device("cpu"))
    assert batch.predictors.tolist() == [1, 4]
    assert batch.targets.tolist() == [12, 31]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch.segments.lengths == [3, 1, 2]
    assert batch.segments.cu_seqlens.tolist() == [0, 3, 4, 6]


def test_samples_that_share_a_document_or_are_cut_for_attention_keep_their_targets(packs: ShardReader) -> None:
    plain = packs[0]
    targets = np.flatnonzero(plain.loss).tolist()
    for attention in (Attention(across_samples=True), Attention(across_samples=True, window=5), Attention(window=3)):
        pack = replace(plain, cu_seqlens=attention.documents(plain.segments))
        batch = micro_batch(pack, torch.device("cpu"))
        assert batch.predictors.tolist() == [target - 1 for target in targets]
        assert batch.segments.cu_seqlens.tolist() == pack.cu_seqlens.tolist()
        assert batch.position_ids[0].tolist() == pack.positions.tolist()
    assert pack.cu_seqlens.size > plain.segments.size


@given(index=st.integers(0, PACKS - 1), parts=st.integers(2, 7))
def test_parts_of_a_pack_are_the_pack(packs: ShardReader, index: int, parts: int) -> None:
    cpu, pack = torch.device("cpu"), packs[index]
    whole = micro_batch(pack, cpu)
    cut = [micro_batch(pack, cpu, part=part, parts=parts) for part in range(parts)]
    length, missing = cut[0].input_ids.shape[1], -pack.tokens.size % parts
    assert all(one.input_ids.shape == one.position_ids.shape == (1, length) for one in cut)
    joined = torch.cat([one.input_ids[0] for one in cut])
    assert joined.tolist() == [*pack.tokens.tolist(), *[0] * missing]
    assert torch.cat([one.position_ids[0] for one in cut]).tolist() == [*pack.positions.tolist(), *range(missing)]
    at = [predictor + part * length for part, one in enumerate(cut) for predictor in one.predictors.tolist()]
    assert at == whole.predictors.tolist()
    assert [target for one in cut for target in one.targets.tolist()] == whole.targets.tolist()
    assert all(0 <= predictor < length for one in cut for predictor in one.predictors.tolist())
