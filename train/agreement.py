"""Ranks that agree: when work fails on one of them, all of them say so, at once and alike."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from pipelines.errors import PacktrainError

Found = TypeVar("Found")
OF_THE_USER = (PacktrainError, OSError)
"""Errors that may meet one rank alone, such as that its node does not see a file."""


def on_every_rank(work: Callable[[], Found]) -> Sequence[Found]:
    """Work on every rank; what it returned on each, in their order.

    Raises:
        PacktrainError or OSError: what the first rank that failed raised, on all of them.
    """
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, _outcome(work))
    for _, error in outcomes:
        if error is not None:
            raise error
    return [found for found, _ in outcomes]


def on_rank_0(work: Callable[[], Found]) -> Found:
    """Work on rank 0 alone, while the others wait; what it returned, or raised, on all of them."""
    outcome: list[Any] = [_outcome(work) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(outcome, src=0)
    found, error = outcome[0]
    if error is not None:
        raise error
    result: Found = found
    return result


def _outcome(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except OF_THE_USER as error:
        return None, error
