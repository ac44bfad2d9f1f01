"""Which ranks share a sequence, and the exchanges between them."""

from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.train.ranks import run_on_ranks


def _check(size: int) -> None:
    from train.sequence_parallel.collectives import all_gather, all_to_all
    from train.sequence_parallel.groups import init_sequence_parallel

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    parallel = init_sequence_parallel(size)
    assert (parallel.rank, parallel.data.rank) == (rank % size, rank // size)
    first = rank - rank % size
    rows = [row for row in range(1, size + 1) if size % row == 0]
    assert list(parallel.splits) == rows
    for row, split in parallel.splits.items():
        assert (split.heads.size, split.queries.size) == (row, size // row)
        for axis, start, step in (
            (split.heads, first + split.queries.rank * row, 1),
            (split.queries, first + split.heads.rank, row),
        ):
            members = [start + step * at for at in range(axis.size)]
            assert members[axis.rank] == rank
            # [i, j] is what rank i has for rank j; every one weighs the results in its own way. Permuted, since the
            # gradients of attention are.
            mine = torch.tensor([[100.0 * rank + other] for other in members]).T.contiguous().T.requires_grad_()
            got = all_to_all(mine, axis)
            assert got.flatten().tolist() == [100.0 * other + rank for other in members]
            (got * rank).sum().backward()  # type: ignore[no-untyped-call]
            assert mine.grad is not None
            assert mine.grad.flatten().tolist() == members
            part = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T.requires_grad_()
            whole = all_gather(part + rank, axis)
            assert whole.tolist() == [[value + other for value in row] for other in members for row in part.tolist()]
            (whole * (rank + 1)).sum().backward()  # type: ignore[no-untyped-call]
            assert part.grad is not None
            assert torch.equal(part.grad, torch.full((2, 2), 1.0 * sum(other + 1 for other in members)))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "size"), [(4, 2), (4, 4), (6, 6)])
def test_ranks_exchange_what_is_meant_for_each_other(ranks: int, size: int) -> None:
    assert run_on_ranks(ranks, _check, size) == [0] * ranks


def _mean(found: Path) -> None:
    from train.sequence_parallel import reduce_sequence_parallel_loss

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    weight = torch.tensor(1.0, requires_grad=True)
    # Two micro-batches on each rank; rank r has r targets in all, each with a loss of 10 times the weight.
    shares = [reduce_sequence_parallel_loss(weight * 10 * part, rank) for part in (rank, 0)]
    for share in shares:
        share.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    dist.all_reduce(weight.grad)
    weight.grad /= dist.get_world_size()  # as DistributedDataParallel averages
    assert (sum(float(share.detach()) for share in shares), float(weight.grad)) == (10.0, 10.0)
    dist.destroy_process_group()


@pytest.mark.slow
def test_reduced_loss_is_one_mean_over_all_targets(tmp_path: Path) -> None:
    assert run_on_ranks(3, _mean, tmp_path) == [0] * 3


def test_every_pair_of_heads_and_ranks_has_a_split() -> None:
    from math import gcd

    from train.sequence_parallel.groups import divisors

    for heads, size in product(range(1, 65), range(1, 33)):
        assert gcd(heads, size) in divisors(size)
