"""Which samples are held out for evaluation, and which of the others are left when a source is cut to its first few.

Both go by a hash of each record's identity, so a sample stays on its side whatever else comes or goes.
"""

import hashlib
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from pipelines.errors import DataError
from pipelines.schema import Prep
from prep.inputs import Input
from prep.shuffle import record_keys, sample_order
from prep.store import Samples

Chosen = npt.NDArray[np.int64]
"""Numbers of samples, rising."""


def divide(samples: Samples, inputs: Sequence[Input], prep: Prep, *, seed: int) -> tuple[Chosen, Chosen]:
    """The numbers of the samples to train on, and of those held out; a record's pieces are on one side.

    A record is held out if the hash of its source, path and number, as a part of 2^64, is below prep.eval.fraction.
    So a larger fraction holds out the same records and more, and the seed has no say.

    Raises:
        DataError: if a fraction holds out nothing, or everything.
    """
    held_out = is_held_out(samples, inputs, prep.eval.fraction)
    if prep.eval.fraction and not 0 < np.count_nonzero(held_out) < held_out.size:
        which = "all" if held_out.any() else "none"
        raise DataError(
            f"prep.eval.fraction = {prep.eval.fraction} holds out {which} of {held_out.size:,} samples; "
            f"{'lower' if held_out.any() else 'raise'} it"
        )
    trained = np.flatnonzero(~held_out)
    if prep.max_samples:
        trained = _first(samples, inputs, trained, len(prep.source), count=prep.max_samples, seed=seed)
    return trained, np.flatnonzero(held_out)


def is_held_out(samples: Samples, inputs: Sequence[Input], fraction: Decimal) -> npt.NDArray[np.bool_]:
    """[samples] whether each is held out."""
    if not fraction:
        return np.zeros(samples.lengths.size, np.bool_)
    files = np.array([_file_key(one) for one in inputs], np.uint64)
    bound = np.uint64(int(Fraction(fraction) * 2**64))
    return np.asarray(record_keys(files, samples.file, samples.record) < bound)


def _file_key(one: Input) -> int:
    identity = f"held-out\0{one.name}\0{one.path}"
    return int.from_bytes(hashlib.sha256(identity.encode("utf-8")).digest()[:8], "big")


def _first(
    samples: Samples, inputs: Sequence[Input], numbers: Chosen, sources: int, *, count: int, seed: int
) -> Chosen:
    """Of every source the `count` samples among `numbers` that its hash order has first."""
    of_input = np.array([one.source for one in inputs])
    source = of_input[samples.file[numbers]] if numbers.size else numbers
    left = samples.taken(numbers)
    chosen = []
    for one in range(sources):
        begin, end = np.searchsorted(source, [one, one + 1]).tolist()
        order = sample_order(left, inputs, range(begin, end), shuffle="hash", seed=seed, turn=0)
        chosen.append(numbers[np.sort(order[:count])])
    return np.concatenate(chosen)
