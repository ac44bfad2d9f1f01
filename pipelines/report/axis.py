"""An axis: from numbers to places along it, and where its ticks are."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.report.numerals import short

Numbers = npt.NDArray[np.float64]

DECADES = 1.5
"""A range over more of them is easier to read on a logarithmic axis."""

_LONGEST = 30  # decades on an axis
_MOST, _LEAST = 1e300, 1e-300  # so that ends and differences are finite, and steps between ticks above zero


@dataclass(frozen=True)
class Axis:
    """A stretch of numbers, linear or logarithmic."""

    low: float
    high: float
    logarithmic: bool = False
    counts: bool = False
    """Of whole numbers, so that no tick stands between two of them."""

    @classmethod
    def over(
        cls, values: Iterable[float] | Numbers, *, logarithmic: bool | None = False, counts: bool = False
    ) -> "Axis":
        """An axis that shows all of the values, with room around them.

        Args:
            logarithmic: None chooses it where they are positive and span more than DECADES; of what spans more than
                _LONGEST, only the upper part has places of its own.
            counts: they are whole numbers, and the axis begins and ends with them.
        """
        found = np.asarray(values if isinstance(values, np.ndarray) else list(values), np.float64)
        found = np.clip(found[np.isfinite(found)], -_MOST, _MOST)
        if not found.size:
            return cls(0.0, 1.0)
        if logarithmic is None:
            logarithmic = bool(found.min() > 0) and math.log10(found.max()) - math.log10(found.min()) > DECADES
        positive = found[found > 0]
        if logarithmic and positive.size:
            return cls._by_factors(positive)
        low, high = float(found.min()), float(found.max())
        room = 0.0 if counts else (high - low) * 0.04
        if high - low < _LEAST:
            room = abs(low) / 2 if abs(low) > _LEAST else 1.0
        # What is never negative should not seem to be.
        return cls(max(low - room, 0.0) if low >= 0 else low - room, high + room, counts=counts)

    @classmethod
    def _by_factors(cls, values: Numbers) -> "Axis":
        high = max(float(values.max()), _LEAST)
        low = max(float(values.min()), high / 10.0**_LONGEST, _LEAST)
        room = (high / low) ** 0.04 if high > low else 2.0
        return cls(low / room, high * room, logarithmic=True)

    def place(self, values: Numbers | float) -> Numbers:
        """0 to 1 along the axis; what lies outside of it is put at its end."""
        found = np.asarray(values, np.float64)
        if self.logarithmic:
            found = np.log(np.maximum(found, self.low))
            low, high = math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return np.clip((found - low) / (high - low), 0.0, 1.0)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers along it, rising: at most so many, and two at least."""
        found = self._decades(most) if self.logarithmic else self._steps(most)
        return found if len(found) > 1 or not self.logarithmic else self._steps(most)

    def labels(self, most: int = 6) -> list[tuple[float, str]]:
        """The ticks and what is written there."""
        ticks = self.ticks(most)
        return [(tick, tick_label(tick, ticks)) for tick in ticks]

    def _steps(self, most: int) -> list[float]:
        step = _nice((self.high - self.low) / most)
        if self.counts:
            step = max(step, 1.0)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def _decades(self, most: int) -> list[float]:
        low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for parts in ((1, 2, 5), (1, 3), (1,)):
            found = [part * 10.0**power for power in range(low, high + 1) for part in parts]
            found = [one for one in found if self.low <= one <= self.high]
            if len(found) <= most:
                return found
        return found[:: -(-len(found) // most)]


def tick_label(tick: float, ticks: list[float]) -> str:
    """A tick in as few characters as tell it from the others, all written alike."""
    if tick == 0:
        return "0"
    most = max(map(abs, ticks))
    if abs(tick) < 1e-3 or most < 1e-2:
        mantissa, exponent = f"{tick:.2e}".split("e")
        return f"{_trimmed(mantissa)}e{int(exponent)}"
    if most >= 10_000:
        labels = [_trimmed(short(one)) for one in ticks if one]
        return _trimmed(short(tick)) if len(set(labels)) == len(labels) else f"{tick:,.10g}"
    return f"{tick:,.10g}"


def _trimmed(label: str) -> str:
    """Without zeros at the end of a fraction: 10.0k is 10k."""
    digits = label.rstrip("kMBT")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + label[len(digits) :]


def _nice(step: float) -> float:
    """The next 1, 2 or 5 times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * part for part in (1, 2, 5, 10) if power * part >= step * (1 - 1e-9))
