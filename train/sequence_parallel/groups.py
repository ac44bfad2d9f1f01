"""Which ranks share a sequence, and how they split attention over it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Axis:
    """A group of ranks, and this process among them."""

    group: ProcessGroup | None
    """None where it is a single rank."""
    rank: int
    size: int


@dataclass(frozen=True)
class Split:
    """The ranks of a sequence as a table: a row exchanges heads, a column exchanges keys and values."""

    heads: Axis
    """Ranks with neighbouring parts of the sequence; inside attention each has all of their tokens and a share of the
    heads."""
    queries: Axis
    """Ranks with the same heads; inside attention each keeps the queries of its row and gets the keys of all."""


@dataclass(frozen=True)
class SequenceParallel:
    """This process among the ranks that share a sequence with it, which are neighbours in rank order."""

    sequence: Axis
    """The ranks that share a sequence; rank i has its i-th part."""
    data: Axis
    """The groups of such ranks: each trains on sequences of its own. Without a process group, since nothing is
    exchanged between equals only."""
    splits: Mapping[int, Split]
    """By the number of ranks in a row, every divisor of the number of ranks that share a sequence."""

    @property
    def rank(self) -> int:
        return self.sequence.rank

    @property
    def size(self) -> int:
        return self.sequence.size


def init_sequence_parallel(size: int, *, timeout: timedelta | None = None) -> SequenceParallel:
    """Let every `size` consecutive ranks share a sequence. All ranks have to call this, once.

    Args:
        size: ranks a sequence; 1 also works without `torch.distributed`.
        timeout: how long a rank waits for the others in an exchange; by default what is usual for the backend.
    Raises:
        ValueError: if it does not divide the number of ranks.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if size < 1 or ranks % size:
        raise ValueError(f"sequence_parallel_size = {size}: does not divide the {ranks} ranks; {_choice(ranks)}")
    first = rank - rank % size
    sequence = _axis(range(first, first + size), rank, timeout)
    splits = {}
    for row in divisors(size):
        at, column = divmod(rank - first, row)
        row_ranks = range(first + at * row, first + (at + 1) * row)
        column_ranks = range(first + column, first + size, row)
        splits[row] = Split(
            heads=sequence if row == size else _axis(row_ranks, rank, timeout),
            queries=sequence if row == 1 else _axis(column_ranks, rank, timeout),
        )
    return SequenceParallel(sequence, Axis(None, rank // size, ranks // size), splits)


def divisors(number: int) -> list[int]:
    """In rising order."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def _choice(ranks: int) -> str:
    *most, last = map(str, divisors(ranks))
    return f"use {', '.join(most)} or {last}" if most else f"use {last}"


def _axis(members: Sequence[int], rank: int, timeout: timedelta | None) -> Axis:
    group = None
    if len(members) > 1:
        # Only the members of a group make it. All ranks make theirs in the same order, so none waits in a ring.
        group = dist.new_group(list(members), timeout, use_local_synchronization=True)
    return Axis(group, members.index(rank), len(members))
