"""Which pack is at each position of the endless sequence of epochs that a run trains on."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from pipelines.permutation import Permutation

Shuffle = Literal["hash", "none", "xtuner", "internrepo", "internevo"]


def epoch_packs(packs: int, shuffle: Shuffle, global_batch_size: int) -> int:
    """How many positions an epoch has: as many as there are packs, or as a sampler elsewhere makes whole steps of them.

    XTuner's samplers round up to a multiple of the data-parallel size, and a step is one of that; they repeat the
    epoch's first packs for it. Its InternRepoSampler and InternEvo's leave the last packs of the epoch's order out.
    """
    match shuffle:
        case "xtuner":
            return -(-packs // global_batch_size) * global_batch_size
        case "internrepo" | "internevo":
            return packs // global_batch_size * global_batch_size
    return packs


class PackOrder:
    """The index of the pack at each position. An epoch's order depends on its number and the seed alone.

    hash and none answer in constant time and memory; the others draw an epoch's whole permutation when it is reached,
    8 bytes a pack, which is what makes it the order of `torch.randperm`, or of NumPy's `RandomState.shuffle`.
    """

    def __init__(self, packs: int, *, shuffle: Shuffle, seed: int, global_batch_size: int = 1) -> None:
        self._packs, self._shuffle, self._seed = packs, shuffle, seed
        self._length = epoch_packs(packs, shuffle, global_batch_size)
        self._epoch = -1
        self._hashed = Permutation(packs, "packs", seed, 0)
        self._drawn: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, at = divmod(position, self._length)
        if self._shuffle == "none":
            return at
        if epoch != self._epoch:
            self._begin(epoch)
        return self._hashed.at(at) if self._shuffle == "hash" else int(self._drawn[at % self._packs])

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        if self._shuffle == "hash":
            self._hashed = Permutation(self._packs, "packs", self._seed, epoch)
        elif self._shuffle == "xtuner":
            self._drawn = _as_xtuner(self._packs, self._seed + epoch)
        elif self._shuffle == "internrepo":
            self._drawn = _as_internevo(self._packs, self._seed + epoch, 0)
        else:
            self._drawn = _as_internevo(self._packs, self._seed, epoch)


def _as_xtuner(packs: int, seed: int) -> npt.NDArray[np.int64]:
    """int64[packs]: the permutation of XTuner's DefaultSampler and SequenceParallelSampler.

    Of a step, its data-parallel rank r of d takes as micro-batch k what is at k * d + r: the order in which `Batches`
    deals packs, so that any number of ranks trains on the same packs in a step.
    """
    import torch  # a plan is laid out before that

    drawn: npt.NDArray[np.int64] = torch.randperm(packs, generator=torch.Generator().manual_seed(seed)).numpy()
    return drawn


def _as_internevo(packs: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """int64[packs]: the permutation of InternEvo's StaticBatchSampler, which draws one epoch after the other from one
    stream. In epoch 0 it is that of XTuner's InternRepoSampler, which begins a stream of its own in each epoch.

    Both deal packs as `_as_xtuner` says.
    """
    stream = np.random.RandomState(seed % 2**32)  # as far as NumPy takes seeds
    for _ in range(epoch + 1):
        drawn = np.arange(packs)
        stream.shuffle(drawn)
    return drawn
