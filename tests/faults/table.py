"""What was injected and what became of it."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

TOLD_EVERY_S = 60.0
"""Seconds after which a long run says how far it is."""


@dataclass
class Tally:
    """One kind of fault."""

    fault: str
    injected: int = 0
    lost: list[str] = field(default_factory=list)
    """What was not as it had to be, a line each."""
    note: str = ""
    """What was measured beside."""
    told: float = field(default_factory=time.monotonic)
    """When it was said last how far it is."""

    def add(self, finding: str | None) -> None:
        """One more fault, and what it cost if it did."""
        self.injected += 1
        if finding:
            print(f"lost: {self.fault}: {finding}", file=sys.stderr, flush=True)  # a long run tells at once
            self.lost.append(finding)
        if time.monotonic() > self.told + TOLD_EVERY_S:
            self.told = time.monotonic()
            print(f"{self.fault}: {self.injected:,} injected, {len(self.lost):,} lost", file=sys.stderr, flush=True)

    @property
    def survived(self) -> int:
        return self.injected - len(self.lost)


def table(tallies: Sequence[Tally]) -> str:
    """All of them for a terminal, the losses below."""
    width = max((len(one.fault) for one in tallies), default=5)
    lines = [f"{'fault':{width}}  {'injected':>8}  {'survived':>8}  {'lost':>4}  note"]
    lines += [
        f"{one.fault:{width}}  {one.injected:8,}  {one.survived:8,}  {len(one.lost):4,}  {one.note}".rstrip()
        for one in tallies
    ]
    for one in tallies:
        lines += [f"LOST  {one.fault}: {' | '.join(finding.splitlines())}" for finding in one.lost[:20]]
    return "\n".join(lines)
