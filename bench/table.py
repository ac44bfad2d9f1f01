"""A table of measured figures, each beside the limit or the peer that was measured in the same run."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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


def show(figures: Sequence[Figure], *, as_json: bool) -> None:
    """Print the figures as a table, or as JSON."""
    if as_json:
        print(json.dumps([{**asdict(figure), "ratio": figure.ratio} for figure in figures], indent=2))
        return
    rows = [("what", "", "", "target", "beside", "", "ratio")]
    for one in figures:
        other = "" if one.other is None else f"{one.other:,.4g}"
        ratio = "" if one.ratio is None else f"{one.ratio:.3g}"
        rows.append((one.what, f"{one.value:,.4g}", one.unit, one.target, one.beside, other, ratio))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if at in (1, 5, 6) else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
