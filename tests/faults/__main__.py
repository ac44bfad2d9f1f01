"""`make faults`: inject faults for a while and print what was lost; exits 1 if anything was."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.case import STAGES, Case
from tests.faults.damage import damage
from tests.faults.disk import failing_changes, full_disk, short_files
from tests.faults.kill import interrupt_twice, kill_at_changes, kill_at_moments
from tests.faults.same import same_bytes
from tests.faults.table import Tally, table
from tests.faults.twice import two_at_once

ERRORS = ("EIO", "ENOSPC")
Round = Callable[[Case, Path, int, int], Iterator[Tally]]


def _kills(ready: Case, folder: Path, points: int, seed: int) -> Iterator[Tally]:
    for stage in STAGES:
        yield kill_at_changes(ready, stage, points, folder, seed)
        yield kill_at_moments(ready, stage, points, folder, seed)
        yield interrupt_twice(ready, stage, points, folder, seed)


def _disks(ready: Case, folder: Path, points: int, seed: int) -> Iterator[Tally]:
    for stage in STAGES:
        for kind in ERRORS:
            yield failing_changes(ready, stage, points, folder, seed, kind)
        yield short_files(ready, stage, points, folder, seed)
        full = full_disk(ready, stage, points, folder, seed)
        yield full or Tally(f"a full disk in {stage}", note="not run: mounting is not allowed here")


def _damages(ready: Case, folder: Path, points: int, seed: int) -> Iterator[Tally]:
    yield from damage(ready, 250 * points, seed)


def _same(ready: Case, folder: Path, points: int, seed: int) -> Iterator[Tally]:
    yield same_bytes(ready, folder)


def _twice(ready: Case, folder: Path, points: int, seed: int) -> Iterator[Tally]:
    yield two_at_once(ready, points, folder)


ROUNDS: dict[str, Round] = {"kill": _kills, "disk": _disks, "damage": _damages, "same": _same, "twice": _twice}


def main() -> int:
    """Parse, run rounds until the time is up, print the table."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--points", type=int, default=3, help="faults of each kind and stage in a round")
    parser.add_argument("--hours", type=float, default=0.0, help="go on with other seeds until so long has passed")
    parser.add_argument("--only", choices=ROUNDS, action="append", help="these kinds alone")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    ended, totals = time.monotonic() + 3600 * asked.hours, dict[str, Tally]()
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        folder = Path(temporary)
        ready = finished(folder / "ready")
        for seed in _seeds(asked.seed, ended):
            for name in asked.only or ROUNDS:
                for tally in ROUNDS[name](ready, folder, asked.points, seed):
                    print("\n".join(table([tally]).splitlines()[1:]), flush=True)
                    _sum(totals, tally)
    print("\n" + table(list(totals.values())))
    return int(any(tally.lost for tally in totals.values()))


def finished(folder: Path) -> Case:
    """A case whose stages have all ended well."""
    ready = Case.make(folder)
    for stage in STAGES:
        code, output = ready.run(stage)
        if code:
            raise SystemExit(f"{stage} without a fault ends with {code}:\n{output}")
    return ready


def _seeds(first: int, ended: float) -> Iterator[int]:
    yield first
    while time.monotonic() < ended:
        first += 1
        yield first


def _sum(totals: dict[str, Tally], tally: Tally) -> None:
    known = totals.setdefault(tally.fault, Tally(tally.fault))
    known.injected += tally.injected
    known.lost += tally.lost
    known.note = tally.note


if __name__ == "__main__":
    sys.exit(main())
