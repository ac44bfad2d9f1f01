"""How much of each source, and all sources in one order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
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

_POSITIONS = 2**31 - 1
"""Places in the order are counted in 32 bits."""


@dataclass(frozen=True)
class Arrangement:
    """The samples to train on, in order; a sample stands once for every pass that takes it."""

    sequence: Int64
    """[positions] number of the sample."""
    source: Int32
    """[positions] index of its source in the TOML."""
    realised: Sequence[Mapping[str, Any]]
    """What each source contributes, for the manifest."""


@dataclass(frozen=True)
class Size:
    """What one pass over a source gives."""

    samples: int
    tokens: int

    def of(self, unit: str) -> int:
        return self.tokens if unit == "tokens" else self.samples


@dataclass(frozen=True)
class Amount:
    """What is taken of a source: exactly so many samples, or as many as come closest to so many tokens."""

    number: Fraction
    unit: str
    share: Fraction | None = None
    """Of a source with a weight: the number before it was rounded to whole samples."""

    def passes(self, size: Size) -> Fraction:
        return self.number / size.of(self.unit)


def arrange(samples: Samples, inputs: Sequence[Input], prep: Prep, *, seed: int) -> Arrangement:
    """Take from every source what the mix asks for, in the source's own order, and bring the sources together.

    Raises:
        DataError: if a source has no sample.
        ConfigError: if the mix asks a source for more than it may, or for nothing.
    """
    parts = source_parts(samples, inputs, len(prep.source))
    sizes = [Size(len(part), int(samples.lengths[part.start : part.stop].sum(dtype=np.int64))) for part in parts]
    asked = amounts(prep.source, prep.mix, sizes)
    sequences = source_orders(samples, inputs, parts, asked, prep, seed=seed)
    taken = [samples.lengths[sequence] for sequence in sequences]
    realised = _realised(prep, sizes, taken)
    counts = [sequence.size for sequence in sequences]
    if prep.order.interleave == "concat" or len(sequences) == 1:
        sequence = np.concatenate(sequences) if len(sequences) > 1 else sequences[0]
        return Arrangement(sequence, _sources(counts), realised)
    shares = taken if prep.mix.unit == "tokens" else [np.ones_like(lengths) for lengths in taken]
    spans = [_span(amount, share) for amount, share in zip(asked, shares, strict=True)]
    order = interleave(shares, spans, [one.name for one in prep.source])
    del taken, shares  # what samples take adds up: with many of them this is the peak
    sequence = np.concatenate(sequences)
    del sequences
    return Arrangement(sequence[order], _sources(counts)[order], realised)


def _sources(counts: Sequence[int]) -> Int32:
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def _span(amount: Amount, shares: Int32) -> Fraction:
    """What the source gives while the clock runs: exactly its share if it has a weight, else what is taken of it."""
    if amount.share is None:
        return Fraction(int(shares.sum(dtype=np.int64)))
    return max(amount.share, Fraction(1, 2))


def _realised(prep: Prep, sizes: Sequence[Size], taken: Sequence[Int32]) -> list[dict[str, Any]]:
    given = [Size(lengths.size, int(lengths.sum(dtype=np.int64))) for lengths in taken]
    whole = sum(one.of(prep.mix.unit) for one in given)
    return [
        {
            "name": source.name,
            "samples": one.samples,
            "tokens": one.tokens,
            "share": round(one.of(prep.mix.unit) / whole, 9),
            "passes": round(one.samples / size.samples, 6),
            "samples_per_pass": size.samples,
            "tokens_per_pass": size.tokens,
        }
        for source, size, one in zip(prep.source, sizes, given, strict=True)
    ]


def source_parts(samples: Samples, inputs: Sequence[Input], sources: int) -> list[range]:
    """For each source the numbers of its samples, which lie together since the inputs come source by source."""
    of_inputs = np.array([one.source for one in inputs], np.int64)
    assert np.all(np.diff(of_inputs) >= 0)
    first_files = np.searchsorted(of_inputs, np.arange(sources + 1)).astype(samples.file.dtype)
    bounds = np.searchsorted(samples.file, first_files).tolist()
    return [range(bounds[source], bounds[source + 1]) for source in range(sources)]


def source_orders(
    samples: Samples, inputs: Sequence[Input], parts: Sequence[range], asked: Sequence[Amount], prep: Prep, *, seed: int
) -> list[Int64]:
    """For each source the numbers of the samples taken of it, pass after pass, every pass in an order of its own.

    Raises:
        ConfigError: if what a source is asked for comes to no sample.
    """
    orders = []
    for source, part, amount in zip(prep.source, parts, asked, strict=True):
        passes: list[Int64] = []
        left = amount.number
        while left > 0:
            order = sample_order(
                samples,
                inputs,
                part,
                shuffle=prep.order.shuffle,
                seed=seed,
                turn=len(passes),
                every_record=not prep.min_length,
            )
            lengths = samples.lengths[order] if amount.unit == "tokens" else np.ones(order.size, np.int32)
            end, left = _take(lengths, left)
            passes.append(order[:end])
        taken = passes[0] if len(passes) == 1 else np.concatenate([np.zeros(0, np.int64), *passes])
        if not taken.size:
            number = float(amount.share or amount.number)
            raise ConfigError(
                f"[[prep.source]] {source.name!r}: {number:g} {amount.unit} of it come to no sample; ask for more of "
                "it, or remove it"
            )
        orders.append(taken)
    return orders


def _take(lengths: Int32, amount: Fraction) -> tuple[int, Fraction]:
    """How many items of one pass come closest to the amount, the fewer of two as close; and what is left after them."""
    ends = np.cumsum(lengths, dtype=np.int64)
    if amount >= int(ends[-1]):
        return ends.size, amount - int(ends[-1])
    whole = int(np.searchsorted(ends, floor(amount), side="right"))
    begin = int(ends[whole - 1]) if whole else 0
    return whole + (2 * amount > begin + int(ends[whole])), Fraction(0)


def amounts(sources: Sequence[Source], mix: Mix, sizes: Sequence[Size]) -> list[Amount]:
    """What the mix asks of each source, in exact arithmetic.

    Raises:
        DataError: if a source is empty.
        ConfigError: if a source would be repeated more often than prep.mix.max_repeat.
    """
    for source, size in zip(sources, sizes, strict=True):
        if not size.samples:
            raise DataError(
                f"[[prep.source]] {source.name!r}: has no sample to train on; find out why they were dropped, or "
                "remove it"
            )
    weighted = iter(_weighted(sources, mix, sizes))
    asked = []
    for source, size in zip(sources, sizes, strict=True):
        if source.weight is not None:
            asked.append(next(weighted))
        elif source.tokens is not None:
            asked.append(Amount(Fraction(source.tokens), "tokens"))
        elif source.samples is not None:
            asked.append(Amount(Fraction(source.samples), "samples"))
        else:
            passes = Fraction(Decimal(1) if source.repeat is None else source.repeat)
            asked.append(Amount(Fraction(_nearest(passes * size.samples)), "samples"))
    positions = floor(sum(amount.passes(size) * size.samples for size, amount in zip(sizes, asked, strict=True)))
    if positions >= _POSITIONS:
        raise ConfigError(f"the mix comes to {positions:,} samples, and the order holds {_POSITIONS:,}; ask for less")
    for source, size, amount in zip(sources, sizes, asked, strict=True):
        if (source.samples or source.tokens) and amount.passes(size) > Fraction(mix.max_repeat):
            raise ConfigError(
                f"[[prep.source]] {source.name!r}: {amount.unit} = {amount.number} is {float(amount.passes(size)):.2f} "
                f"times what it has, {size.of(amount.unit)}; ask for less, or raise prep.mix.max_repeat = "
                f"{mix.max_repeat}"
            )
    return asked


def _weighted(sources: Sequence[Source], mix: Mix, sizes: Sequence[Size]) -> list[Amount]:
    """What each source with a weight gives, in the unit of the mix."""
    weights = [(source, Fraction(source.weight), size) for source, size in zip(sources, sizes, strict=True)
               if source.weight is not None]  # fmt: skip
    if not weights:
        return []
    scarcest, weight, size = min(weights, key=lambda one: one[2].of(mix.unit) / one[1])
    allowed = size.of(mix.unit) / weight  # of every weight, without repeating a source
    per_weight = allowed
    if mix.total:
        per_weight = mix.total / sum((weight for _, weight, _ in weights), Fraction(0))
        if per_weight > allowed * Fraction(mix.max_repeat):
            if mix.on_shortage == "error":
                raise ConfigError(
                    f"prep.mix.total = {mix.total} {mix.unit} asks for {float(per_weight / allowed):.2f} times what "
                    f"[[prep.source]] {scarcest.name!r} has, {size.of(mix.unit)}; lower it or that weight, raise "
                    f'prep.mix.max_repeat = {mix.max_repeat}, or set prep.mix.on_shortage = "rescale"'
                )
            per_weight = allowed * Fraction(mix.max_repeat)
    shares = [per_weight * weight for _, weight, _ in weights]
    numbers = shares if mix.unit == "tokens" else _apportion(shares, [source.name for source, _, _ in weights])
    return [Amount(number, mix.unit, share) for number, share in zip(numbers, shares, strict=True)]


def _apportion(shares: Sequence[Fraction], names: Sequence[str]) -> list[Fraction]:
    """Each share rounded down or up, so that they add up to the rounded sum.

    Up go those with the largest fractions, and of equal ones the first names.
    """
    counts = [floor(share) for share in shares]
    missing = _nearest(sum(shares, Fraction(0))) - sum(counts)
    by_rest = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], names[i]))
    for i in by_rest[:missing]:
        counts[i] += 1
    return [Fraction(count) for count in counts]


def _nearest(number: Fraction) -> int:
    return floor(number + Fraction(1, 2))
