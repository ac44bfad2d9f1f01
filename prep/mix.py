"""How much of each source, and all of it in one order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import ConfigError, DataError
from pipelines.schema import Mix, Prep, Source
from prep.inputs import Input
from prep.interleave import interleave
from prep.shuffle import sample_order
from prep.store import Samples

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Arrangement:
    """The samples to train on, in order; a repeated sample stands once for every pass."""

    sequence: Int64
    """[positions] number of the sample."""
    source: Int32
    """[positions] index of its source in the TOML."""
    realised: Sequence[Mapping[str, Any]]
    """What each source contributes, for the manifest."""


def arrange(samples: Samples, inputs: Sequence[Input], prep: Prep, *, seed: int) -> Arrangement:
    """Take from every source what the mix asks for, in the source's order, and bring the sources together.

    Raises:
        ConfigError, DataError: if a source has nothing to give, or not as much as is asked for.
    """
    parts = source_parts(samples, inputs, len(prep.source))
    sizes = [Size(len(part), int(samples.lengths[part.start : part.stop].sum(dtype=np.int64))) for part in parts]
    asked = amounts(prep.source, prep.mix, sizes)
    sequences = source_orders(samples, inputs, parts, asked, prep, seed=seed)
    sequence = np.concatenate(sequences)
    source = np.repeat(np.arange(len(sequences), dtype=np.int32), [one.size for one in sequences])
    realised = _realised(prep.source, sizes, sequences, samples.lengths)
    if prep.order.interleave == "fractional" and len(sequences) > 1:
        by_tokens = prep.mix.unit == "tokens"
        takes = [samples.lengths[one] if by_tokens else np.ones(one.size, np.int32) for one in sequences]
        order = interleave(takes, [one.name for one in prep.source], seed=seed)
        sequence, source = sequence[order], source[order]
    return Arrangement(sequence, source, realised)


@dataclass(frozen=True)
class Size:
    """What one pass over a source gives."""

    samples: int
    tokens: int


@dataclass(frozen=True)
class Amount:
    """What is taken from a source: so many samples, or as many as come closest to so many tokens."""

    samples: int | None = None
    tokens: Fraction | None = None


def source_parts(samples: Samples, inputs: Sequence[Input], sources: int) -> list[range]:
    """For each source, the numbers of its samples; they lie together, since inputs are ordered by source."""
    of_inputs = np.array([one.source for one in inputs], np.int64)
    assert np.all(np.diff(of_inputs) >= 0)
    files = np.searchsorted(of_inputs, np.arange(sources + 1))
    bounds = np.searchsorted(samples.file, files).tolist()
    return [range(bounds[source], bounds[source + 1]) for source in range(sources)]


def source_orders(
    samples: Samples, inputs: Sequence[Input], parts: Sequence[range], asked: Sequence[Amount], prep: Prep, *, seed: int
) -> list[Int64]:
    """For each source, the numbers of the samples that are taken from it, pass after pass.

    Raises:
        ConfigError: if what is asked for rounds to no sample.
    """
    orders = []
    for source, part, amount in zip(prep.source, parts, asked, strict=True):
        left = amount
        passes: list[Int64] = []
        while left.samples or left.tokens:
            order = sample_order(
                samples, inputs, part, shuffle=prep.order.shuffle, seed=seed, turn=len(passes)
            )
            order, left = _take(order, left, samples.lengths)
            passes.append(order)
        taken = np.concatenate(passes) if passes else np.zeros(0, np.int64)
        if not taken.size:
            raise ConfigError(
                f"[[prep.source]] {source.name!r}: what it is asked for comes to no sample; ask for more of it, or "
                "remove it"
            )
        orders.append(taken)
    return orders


def _take(order: Int64, amount: Amount, lengths: Int32) -> tuple[Int64, Amount]:
    """What one pass gives towards an amount, and what is left to take."""
    if amount.samples is not None:
        return order[: amount.samples], Amount(samples=max(amount.samples - order.size, 0))
    assert amount.tokens is not None
    ends = np.cumsum(lengths[order], dtype=np.int64)
    if amount.tokens >= int(ends[-1]):
        return order, Amount(tokens=amount.tokens - int(ends[-1]))
    # The sample in which the amount is reached counts as taken if more than half of it is needed.
    whole = int(np.searchsorted(ends, floor(amount.tokens), side="right"))
    begin = int(ends[whole - 1]) if whole else 0
    nearer = 2 * amount.tokens > begin + int(ends[whole])
    return order[: whole + nearer], Amount(tokens=Fraction(0))


def amounts(sources: Sequence[Source], mix: Mix, sizes: Sequence[Size]) -> list[Amount]:
    """What the mix asks of each source, exactly.

    Raises:
        DataError: if a source is empty.
        ConfigError: if a source would be repeated more than prep.mix.max_repeat allows.
    """
    for source, size in zip(sources, sizes, strict=True):
        if not size.samples:
            raise DataError(
                f"[[prep.source]] {source.name!r}: has no sample to train on; see what was dropped, or remove it"
            )
    scale = _scale(sources, mix, sizes)
    asked = [_amount(source, mix, size, scale) for source, size in zip(sources, sizes, strict=True)]
    if mix.unit == "samples" and mix.total and scale == _share(sources, mix):
        asked = _apportioned(sources, asked, mix.total)
    for source, size, amount in zip(sources, sizes, asked, strict=True):
        passes = _passes(amount, size)
        if source.repeat is None and passes > Fraction(mix.max_repeat):
            raise ConfigError(
                f"[[prep.source]] {source.name!r}: is asked for {float(passes):.2f} times what it has, more than "
                f"prep.mix.max_repeat = {mix.max_repeat}; raise that"
                + (
                    f', lower prep.mix.total, or set prep.mix.on_shortage = "rescale"'
                    if source.weight is not None
                    else f", or ask for less"
                )
            )
    return asked
