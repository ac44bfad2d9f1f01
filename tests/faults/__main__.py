"""`make faults`: inject faults for a while and print what was lost; exits 1 if anything was."""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults import elastic, ranks
from tests.faults.case import STAGES, Case, Stage
from tests.faults.damage import damage
from tests.faults.disk import failing_changes, failing_reads, full_disk, short_files
from tests.faults.kill import interrupt_twice, kill_at_changes, kill_at_moments
from tests.faults.process import import_stages
from tests.faults.same import same_bytes
from tests.faults.strike import library
from tests.faults.table import Tally, table
from tests.faults.twice import two_at_once

CHANGES = ("EIO", "ENOSPC")
READS = ("EIO", "short")


@dataclass(frozen=True)
class Asked:
    """How much of which faults."""

    points: int
    seed: int
    stages: Sequence[Stage]


Round = Callable[[Case, Path, Asked], Iterator[Tally]]


def _kills(ready: Case, folder: Path, asked: Asked) -> Iterator[Tally]:
    for stage in asked.stages:
        yield kill_at_changes(ready, stage, asked.points, folder, asked.seed)
        yield kill_at_moments(ready, stage, -(-asked.points // 4), folder, asked.seed)
        yield interrupt_twice(ready, stage, -(-asked.points // 4), folder, asked.seed)


def _disks(ready: Case, folder: Path, asked: Asked) -> Iterator[Tally]:
    for stage in asked.stages:
        for kind in CHANGES:
            yield failing_changes(ready, stage, asked.points, folder, asked.seed, kind)
        yield short_files(ready, stage, -(-asked.points // 4), folder, asked.seed)
        full = full_disk(ready, stage, -(-asked.points // 4), folder, asked.seed)
        yield full or Tally(f"a full disk in {stage}", note="not run: mounting is not allowed here")


def _reads(ready: Case, folder: Path, asked: Asked) -> Iterator[Tally]:
    for stage in asked.stages:
        for kind in READS:
            yield failing_reads(ready, stage, asked.points, folder, asked.seed, kind)


def _ranks(ready: Case, folder: Path, asked: Asked) -> Iterator[Tally]:
    yield from ranks.faults(ready, asked.points, folder, asked.seed)


def _elastic(ready: Case, folder: Path, asked: Asked) -> Iterator[Tally]:
    yield elastic.changes(ready, folder)


def _damages(ready: Case, folder: Path, asked: Asked) -> Iterator[Tally]:
    yield from damage(ready, 250 * asked.points, asked.seed)


def _same(ready: Case, folder: Path, asked: Asked) -> Iterator[Tally]:
    yield same_bytes(ready, folder)


def _twice(ready: Case, folder: Path, asked: Asked) -> Iterator[Tally]:
    yield two_at_once(ready, min(asked.points, 9), folder)


ROUNDS: dict[str, Round] = {
    "kill": _kills,
    "disk": _disks,
    "read": _reads,
    "ranks": _ranks,
    "elastic": _elastic,
    "damage": _damages,
    "same": _same,
    "twice": _twice,
}


def main() -> int:
    """Parse, run rounds until the time is up, print the table."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--points", type=int, default=3, help="faults of each kind and stage in a round")
    parser.add_argument("--hours", type=float, default=0.0, help="go on with other seeds until so long has passed")
    parser.add_argument("--only", choices=ROUNDS, action="append", help="these kinds alone")
    parser.add_argument("--without", choices=ROUNDS, action="append", default=[], help="not these kinds")
    parser.add_argument("--stage", choices=STAGES, action="append", help="kills, disks and reads of these stages alone")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    _be_struck()
    import_stages()
    began, totals = time.monotonic(), dict[str, Tally]()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))  # TemporaryDirectory would also end with processes forked here
    try:
        ready = finished(folder / "ready")
        for seed in _seeds(asked.seed, began + 3600 * asked.hours):
            for name in [name for name in asked.only or ROUNDS if name not in asked.without]:
                for tally in ROUNDS[name](ready, folder, Asked(asked.points, seed, asked.stage or STAGES)):
                    print("\n".join(table([tally]).splitlines()[1:]), flush=True)
                    _sum(totals, tally)
    finally:
        shutil.rmtree(folder)
    print(f"\n{table(list(totals.values()))}\n{(time.monotonic() - began) / 60:.1f} minutes")
    return int(any(tally.lost for tally in totals.values()))


def finished(folder: Path) -> Case:
    """A case whose stages have all ended well."""
    ready = Case.make(folder, forks=True)
    for stage in STAGES:
        code, output = ready.run(stage)
        if code:
            raise SystemExit(f"{stage} without a fault ends with {code}:\n{output}")
    return ready


def _be_struck() -> None:
    """Start this process again as one whose children can be struck, with what has to stand before torch is imported."""
    if library() is None:
        raise SystemExit("make faults: needs a C compiler (cc) to inject faults")
    needed = {"LD_PRELOAD": str(library()), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    if any(os.environ.get(name) != value for name, value in needed.items()):
        os.execve(sys.executable, [sys.executable, "-m", "tests.faults", *sys.argv[1:]], os.environ | needed)


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
