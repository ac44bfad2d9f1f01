"""A table of measured figures, each beside the limit or the peer that was measured in the same run."""

import argparse
import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured figure."""

    what: str
    value: float
    unit: str
    beside: str = ""
    """The limit or peer it is held against."""
    other: float | None = None
    """What that gave, in the same unit."""
    target: str = ""

    @property
    def ratio(self) -> float | None:
        """value / other"""
        return self.value / self.other if self.other else None

    @property
    def met(self) -> bool | None:
        """Whether a target such as "<= 8" holds of the value, or one such as ">= 15 x" of the ratio."""
        read = re.fullmatch(r"(<=|>=) ([0-9.,]+)( x)?", self.target)
        if read is None:
            return None
        sign, bound, times = read.groups()
        value = self.ratio if times else self.value
        if value is None or math.isnan(value):
            return None
        limit = float(bound.replace(",", ""))
        return value <= limit if sign == "<=" else value >= limit


def fastest(
    work: Callable[[], Any], *, times: int = 3, seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of the fastest of `times` runs, or of more until they took `seconds` together.

    A first run, which compiles and fills caches, does not count.

    Args:
        clock: time.process_time for work that only computes, which other users of the machine then delay less.
    """
    work()
    runs: list[float] = []
    while len(runs) < times or sum(runs) < seconds:
        began = clock()
        work()
        runs.append(clock() - began)
    return min(runs)


def rows(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    """The table's cells, the header first."""
    found: list[tuple[str, ...]] = [HEADER]
    for one in figures:
        other = "" if one.other is None else f"{one.other:,.4g}"
        ratio = "" if one.ratio is None else f"{one.ratio:.3g}"
        value = "" if math.isnan(one.value) else f"{one.value:,.4g}"
        met = {True: "yes", False: "no", None: ""}[one.met]
        found.append((one.what, value, one.unit, one.target, met, one.beside, other, ratio))
    return found


HEADER = ("what", "value", "unit", "target", "met", "beside", "other", "ratio")
_RIGHT = [HEADER.index(name) for name in ("value", "other", "ratio")]


def show(figures: Sequence[Figure], *, as_json: bool) -> None:
    """Print the figures as a table, or as JSON."""
    if as_json:
        print(json.dumps([{**asdict(figure), "ratio": figure.ratio} for figure in figures], indent=2))
        return
    table = rows(figures)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [
            cell.rjust(width) if at in _RIGHT else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def command(figures: Callable[[Path], Iterable[Figure]], about: str | None) -> None:
    """Measure in a folder that is removed afterwards, and print the figures: what `python -m` of a bench file does."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as folder:
        show(list(figures(Path(folder))), as_json=options.json)
