"""The order of samples inside a source: by a keyed hash of each one's identity, as in the files, or as in XTuner.

A sample's identity is its source, the path and record it comes from, its first token within the record where that was
split, and the pass. Its key is a pure function of seed and identity, so samples that come or go elsewhere never change
the order of two that stay.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numba import njit

from prep.hash_sort import hash_order
from prep.inputs import Input
from prep.store import Samples

Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]


def sample_order(
    samples: Samples,
    inputs: Sequence[Input],
    part: range,
    *,
    shuffle: str,
    seed: int,
    turn: int,
    every_record: bool = True,
) -> Int64:
    """One pass over a source.

    Args:
        part: the numbers of the source's samples.
        shuffle: "hash", "none" or "xtuner", as prep.order.shuffle.
        turn: the pass, from 0.
        every_record: with "xtuner": whether records that gave no sample take part in the permutation, as those
            without tokens do in XTuner unless its min_length leaves them out beforehand.
    Returns:
        int64[samples of the part], their numbers in order. "hash": by key, equal keys in the data's order. "xtuner":
        file by file, each file's records as `numpy.random.RandomState(seed + turn).shuffle` leaves them (modulo 2^32),
        the pieces of a record together.
    """
    if shuffle == "hash":
        order = hash_order(sample_keys(samples, inputs, part, seed=seed, turn=turn))
        order += part.start
        return order
    order = np.arange(part.start, part.stop, dtype=np.int64)
    if shuffle == "xtuner":
        firsts = np.flatnonzero(np.diff(samples.file[part.start : part.stop].astype(np.int64), prepend=-1))
        random = np.random.RandomState()
        for begin, end in pairwise([*(firsts + part.start).tolist(), part.stop]):
            random.seed((seed + turn) % 2**32)  # every file's permutation begins anew; a new generator is slow to make
            place = _xtuner_places(samples, begin, end, random, every_record=every_record)
            order[begin - part.start : end - part.start] = begin + np.argsort(place, kind="stable")
    return order


def _xtuner_places(
    samples: Samples, begin: int, end: int, random: np.random.RandomState, *, every_record: bool
) -> Int64:
    """int64[samples begin..end, which one file gave]: where XTuner's permutation puts the record of each."""
    record: npt.NDArray[np.integer] = samples.record[begin:end]
    count = int(samples.records[samples.file[begin]])
    if not every_record:
        kept, record = np.unique(record, return_inverse=True)
        count = kept.size
    permutation = np.arange(count)
    random.shuffle(permutation)
    place = np.empty(count, np.int64)
    place[permutation] = np.arange(count)
    return np.asarray(place[record])


def sample_keys(samples: Samples, inputs: Sequence[Input], part: range, *, seed: int, turn: int) -> UInt64:
    """uint64[samples of the part], the key of each in one pass, as `sample_key` computes it."""
    rows = slice(part.start, part.stop)
    file = samples.file[rows]
    first, last = (int(file[0]), int(file[-1])) if file.size else (0, -1)
    file_keys = [file_key(seed, one.name, one.path, turn) for one in inputs[first : last + 1]]
    keys = np.empty(file.size, np.uint64)
    _sample_keys(np.array(file_keys, np.uint64), first, file, samples.record[rows], samples.start[rows], keys)
    return keys


def record_keys(file_keys: UInt64, file: UInt32, record: UInt32) -> UInt64:
    """uint64[samples], the key of each one's record, from a key for every input file; pieces of a record share it."""
    keys = np.empty(file.size, np.uint64)
    _sample_keys(file_keys, 0, file, record, np.zeros(file.size, np.uint32), keys)
    return keys


def file_key(seed: int, source: str, path: str, turn: int) -> int:
    """64 bits of SHA-256 that a file's samples share; no part can contain the NUL between the parts."""
    identity = f"sample\0{seed}\0{source}\0{path}\0{turn}"
    return int.from_bytes(hashlib.sha256(identity.encode("utf-8")).digest()[:8], "big")


def sample_key(file_key: int, record: int, start: int) -> int:
    """A sample's key: number `record` of the SplitMix64 stream that begins at its file's key.

    A later piece of a split record has number `start` of the stream that begins at the record's key.
    """
    key = _splitmix(file_key, record + 1)
    return _splitmix(key, start) if start else key


def _splitmix(state: int, number: int) -> int:
    value = (state + number * 0x9E3779B97F4A7C15) % 2**64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) % 2**64
    return value ^ value >> 31


@njit(cache=True)
def _sample_keys(file_keys: UInt64, first_file: int, file: UInt32, record: UInt32, start: UInt32, keys: UInt64) -> None:
    for sample in range(keys.size):
        key = _splitmix_64(file_keys[file[sample] - first_file], np.uint64(record[sample]) + np.uint64(1))
        if start[sample]:
            key = _splitmix_64(key, np.uint64(start[sample]))
        keys[sample] = key


@njit(cache=True, inline="always")
def _splitmix_64(state: np.uint64, number: np.uint64) -> np.uint64:
    value = state + number * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)
