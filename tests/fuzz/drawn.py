"""Inputs as Hypothesis draws them, for a while each: `python -m tests.fuzz.drawn SPAN SECONDS SEED [NAME...]`."""

import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.damage import DAMAGES
from tests.fuzz.findings import Findings
from tests.fuzz.targets import TARGETS


def draw(name: str, folder: Path, seconds: float, first: int) -> int:
    """Draw until the time is up; returns how many."""
    findings = Findings(TARGETS[DAMAGES[name].target], folder / name)
    until, count, inputs = time.monotonic() + seconds, 0, DAMAGES[name].inputs()

    @given(inputs)
    @settings(
        max_examples=500,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def one(data: bytes) -> None:
        nonlocal count
        if time.monotonic() < until:
            findings.take(data)
            count += 1

    while time.monotonic() < until:
        seed(first)(one)()
        first += 1
    return count


def main() -> None:
    """Draw for every name, and print how many."""
    folder, seconds, first = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    for name in sys.argv[4:] or DAMAGES:
        count = draw(name, folder, seconds, first)
        found = sorted(path.stem for path in (folder / name).glob("*.input"))
        print(f"{name:20}{count:8,} drawn   findings: {', '.join(found) or 'none'}", flush=True)


if __name__ == "__main__":
    main()
