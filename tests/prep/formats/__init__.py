"""Readers of input formats."""

from collections.abc import Iterable, Iterator
from typing import Any

from prep.formats.fault import RecordFault


def strict(outcomes: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The outcomes, with the first fault raised."""
    for number, outcome in outcomes:
        if isinstance(outcome, RecordFault):
            raise outcome
        yield number, outcome
