"""Which samples a rank reads: the same as the ranks it shares a sequence with, others than everyone else."""

import math
from collections.abc import Iterator, Sized

import torch
from torch.utils.data import Sampler

from train.sequence_parallel.groups import SequenceParallel


class SequenceParallelSampler(Sampler[int]):
    """Indices of a data set for one rank, in the order that XTuner's sampler of this name has for the same seed.

    Args:
        dataset: only its length matters.
        shuffle: a new order for each epoch of `set_epoch`, or the order of the data.
        round_up: give every rank the same number, by starting over at the front; else some get one less.
    """

    def __init__(
        self, dataset: Sized, parallel: SequenceParallel, *, shuffle: bool = True, seed: int = 0, round_up: bool = True
    ) -> None:
        self._samples = len(dataset)
        self._data = parallel.data
        self._shuffle, self._seed, self._epoch, self._round_up = shuffle, seed, 0, round_up

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for this epoch; to be called before iterating."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = list(range(self._samples))
        if self._shuffle:
            order = torch.randperm(
                self._samples, generator=torch.Generator().manual_seed(self._seed + self._epoch)
            ).tolist()
        places = range(
            self._data.rank, len(self) * self._data.size if self._round_up else self._samples, self._data.size
        )
        return (order[place % self._samples] for place in places)

    def __len__(self) -> int:
        missing = 0 if self._round_up else self._data.rank
        return math.ceil((self._samples - missing) / self._data.size)
