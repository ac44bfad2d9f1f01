"""Faulty records, counted by kind: what is wrong, how often, and where the first few are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prep.formats.fault import RecordFault

_PLACES = 4
"""Records of a kind that are named."""
_KINDS = 5
"""Kinds that are told; a file in another encoding has one, of a foreign form a handful."""


class FaultyRecords:
    """The faulty records among those that were looked at."""

    def __init__(self) -> None:
        self.looked_at = 0
        self.count = 0
        self._kinds: dict[str, _Kind] = {}

    def add(self, file: Path, number: int, fault: RecordFault) -> None:
        """Count a fault in this file's record, numbered from 0."""
        self.count += 1
        place = f"{file}:{number + 1}" + (f":{fault.byte}" if fault.byte else "")
        kind = self._kinds.setdefault(_kind(fault.message), _Kind(file, f"{place}: {fault.message}"))
        kind.count += 1
        if 1 < kind.count <= _PLACES:
            kind.others.append(str(number + 1) if file == kind.file else f"{file.name}:{number + 1}")

    def lines(self) -> Iterator[str]:
        """A line for each of the first kinds: its first record as prep would name it, and where others are. One more
        for the other kinds, if there are any."""
        kinds = list(self._kinds.values())
        for kind in kinds[:_KINDS]:
            yield kind.first + (f" ({self._of_all(kind.count)}: also {kind.named})" if kind.others else "")
        if left := kinds[_KINDS:]:
            count = sum(kind.count for kind in left)
            yield f"{left[0].first} ({self._of_all(count)}, of this kind and {len(left) - 1:,} others)"

    def _of_all(self, count: int) -> str:
        return f"{count:,} such of {self.looked_at:,} records looked at"


@dataclass
class _Kind:
    file: Path
    """Of its first record."""
    first: str
    """Where that is, what is wrong, what to do."""
    count: int = 0
    others: list[str] = field(default_factory=list)
    """Where the next are."""

    @property
    def named(self) -> str:
        more = self.count - 1 - len(self.others)
        return ", ".join(self.others) + (f" and {more:,} more" if more else "")


def _kind(message: str) -> str:
    """The same for messages that differ in numbers and quoted text alone."""
    return re.sub(r"\d[\d,.]*|'[^']*'|\"[^\"]*\"", "*", message)
