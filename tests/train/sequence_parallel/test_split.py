"""Sequences to parts, samples to ranks, and the loss of all: what needs no second process to see."""

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.sequence_parallel import (
    SequenceParallel,
    SequenceParallelSampler,
    init_sequence_parallel,
    pad_for_sequence_parallel,
    reduce_sequence_parallel_loss,
    split_for_sequence_parallel,
)
from train.sequence_parallel.groups import Axis


def layout(size: int, rank: int = 0, *, group: int = 0, groups: int = 1) -> SequenceParallel:
    """This process as a rank of its sequence, in one of several groups of ranks."""
    return SequenceParallel(Axis(None, rank, size), Axis(None, group, groups), {})


@given(tokens=st.integers(1, 20), size=st.integers(1, 6), dim=st.sampled_from([1, -2]))
def test_parts_end_to_end_are_the_padded_sequence(tokens: int, size: int, dim: int) -> None:
    whole = torch.arange(2 * tokens * 3).view(2, tokens, 3)
    parts = []
    for rank in range(size):
        padded = pad_for_sequence_parallel(whole, layout(size), value=-100, dim=dim)
        parts.append(split_for_sequence_parallel(padded, layout(size, rank), dim=dim))
    assert {part.shape for part in parts} == {(2, -(-tokens // size), 3)}
    joined = torch.cat(parts, dim=1)
    assert torch.equal(joined[:, :tokens], whole)
    assert (joined[:, tokens:] == -100).all()


def test_sequence_that_is_not_padded_is_an_error() -> None:
    with pytest.raises(ValueError, match="7 tokens are not divided by 2 ranks; pad_for_sequence_parallel first"):
        split_for_sequence_parallel(torch.zeros(1, 7), layout(2))


@given(samples=st.integers(0, 20), groups=st.integers(1, 5), shuffle=st.booleans(), epoch=st.integers(0, 3))
def test_every_sample_is_read_by_one_group(samples: int, groups: int, shuffle: bool, epoch: int) -> None:
    def read(*, round_up: bool) -> list[list[int]]:
        found = []
        for group in range(groups):
            ranks = [
                SequenceParallelSampler(
                    range(samples), layout(2, rank, group=group, groups=groups), shuffle=shuffle, round_up=round_up
                )
                for rank in range(2)
            ]
            for sampler in ranks:
                sampler.set_epoch(epoch)
            assert list(ranks[0]) == list(ranks[1]), "ranks that share a sequence read the same"
            assert len(list(ranks[0])) == len(ranks[0])
            found.append(list(ranks[0]))
        return found

    assert sorted(chain.from_iterable(read(round_up=False))) == list(range(samples))
    even = read(round_up=True)
    assert len({len(each) for each in even}) == 1
    assert set(chain.from_iterable(even)) == set(range(samples))


def test_order_is_that_of_torch_for_the_seed_and_epoch() -> None:
    sampler = SequenceParallelSampler(range(9), layout(1), seed=5)
    sampler.set_epoch(2)
    assert list(sampler) == torch.randperm(9, generator=torch.Generator().manual_seed(7)).tolist()


def test_one_process_needs_no_process_group() -> None:
    alone = init_sequence_parallel(1)
    assert (alone.rank, alone.size, alone.data.rank, alone.data.size) == (0, 1, 0, 1)
    weight = torch.tensor(3.0, requires_grad=True)
    loss = reduce_sequence_parallel_loss(weight * 4, 8)
    loss.backward()  # type: ignore[no-untyped-call]
    assert (float(loss.detach()), float(weight.grad or 0)) == (1.5, 0.5)


def test_size_that_does_not_divide_the_ranks_is_an_error() -> None:
    with pytest.raises(ValueError, match="sequence_parallel_size = 2: does not divide the 1 ranks; use 1"):
        init_sequence_parallel(2)


def test_rank_without_targets_has_zero_loss_and_gradient() -> None:
    weight = torch.tensor(3.0, requires_grad=True)
    reduce_sequence_parallel_loss(weight * 0, 0).backward()  # type: ignore[no-untyped-call]
    assert float(weight.grad if weight.grad is not None else -1) == 0
