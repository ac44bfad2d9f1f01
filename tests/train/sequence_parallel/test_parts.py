"""The parts of a pack that ranks get, end to end, are the pack."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.shards import ShardReader
from tests.train.runs import write_prep
from train.batches import Batches, MicroBatch, micro_batch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    folder = tmp_path_factory.mktemp("parts") / "prep"
    write_prep(folder)
    return ShardReader(folder)


@given(index=st.integers(0, 9), parts=st.integers(1, 50))
def test_parts_of_a_pack_are_the_padded_pack(packs: ShardReader, index: int, parts: int) -> None:
    whole = micro_batch(packs[index], CPU)
    found = [micro_batch(packs[index], CPU, part=part, parts=parts) for part in range(parts)]
    tokens = whole.input_ids.numel()
    length = -(-tokens // parts)
    assert all(part.input_ids.shape == part.position_ids.shape == (1, length) for part in found)
    assert all(part.segments.lengths == whole.segments.lengths for part in found)
    for name in ("input_ids", "position_ids"):
        joined = torch.cat([getattr(part, name) for part in found], dim=1)
        assert torch.equal(joined[:, :tokens], getattr(whole, name))
    padding = torch.cat([part.position_ids for part in found], dim=1)[0, tokens:]
    assert padding.tolist() == list(range(length * parts - tokens)), "a document of its own"
    predictors = torch.cat([part.predictors + length * at for at, part in enumerate(found)])
    assert torch.equal(predictors, whole.predictors)
    assert torch.equal(torch.cat([part.targets for part in found]), whole.targets)


@given(size=st.integers(1, 9), groups=st.integers(1, 3), parts=st.integers(1, 3), step=st.integers(0, 4))
def test_ranks_that_share_packs_get_the_same_ones(
    packs: ShardReader, size: int, groups: int, parts: int, step: int
) -> None:
    def of(group: int, part: int) -> list[MicroBatch]:
        batches = Batches(
            packs, global_batch_size=size, shuffle="hash", seed=3, rank=group, ranks=groups, part=part, parts=parts
        )
        return batches[step].micro_batches

    alone = Batches(packs, global_batch_size=size, shuffle="hash", seed=3)[step]
    found = [[of(group, part) for part in range(parts)] for group in range(groups)]
    assert {len(micro_batches) for group in found for micro_batches in group} == {-(-size // groups)}
    for group in found:
        for shared in zip(*group, strict=True):
            assert len({tuple(part.segments.lengths) for part in shared}) == 1
            trained = [part for part in shared if part.seed]  # an empty micro-batch has none
            assert len({part.seed for part in trained}) == len(trained), "each drops out elements of its own"
    targets = sum(micro.targets.numel() for group in found for micros in group for micro in micros)
    assert targets == alone.loss_tokens
