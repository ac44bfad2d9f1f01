"""Disks that are full or fail: a clear error, what was there stays, and the same command ends when there is space."""

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.case import Case, Stage
from tests.faults.kill import before, changes_of, finish, spread
from tests.faults.table import Tally


def failing_changes(ready: Case, stage: Stage, points: int, folder: Path, seed: int, kind: str) -> Tally:
    """Every change from a chosen one on fails with EIO, ENOSPC or EROFS."""
    expected, draw = ready.tree(stage), random.Random(seed)
    tally = Tally(f"{kind} from a change of the disk on, in {stage}")
    for at in spread(changes_of(ready, stage, folder), points, draw):
        case = before(ready, stage, folder / "failing")
        code, output = case.run(stage, env=case.fault(kind, at))
        tally.add(_clear(code, output) or finish(case, stage, expected, f"change {at}"))
    return tally


def short_files(ready: Case, stage: Stage, points: int, folder: Path, seed: int) -> Tally:
    """No file may grow beyond a drawn size (RLIMIT_FSIZE): writes fail in the middle, in any library."""
    expected, draw = ready.tree(stage), random.Random(seed)
    largest = max(path.stat().st_size for path in (ready.home / stage).rglob("*") if path.is_file())
    tally = Tally(f"files that may not grow, in {stage}")
    for _ in range(points):
        case, limit = before(ready, stage, folder / "failing"), draw.randrange(1024, largest)
        code, output = case.run(stage, before=("prlimit", f"--fsize={limit}"))
        tally.add(_clear(code, output) or finish(case, stage, expected, f"{limit} bytes"))
    return tally


def full_disk(ready: Case, stage: Stage, points: int, folder: Path, seed: int) -> Tally | None:
    """A real file system that runs full; None where none can be mounted."""
    expected, draw = ready.tree(stage), random.Random(seed)
    needed = sum(path.stat().st_size for path in (ready.home / stage).rglob("*") if path.is_file())
    tally = Tally(f"a full disk in {stage}", note=f"{needed:,} bytes needed")
    for _ in range(points):
        case = before(ready, stage, folder / "failing")
        size = max(65536, int(needed * draw.uniform(0.1, 0.95)))
        with _small_disk(case.home / stage, size) as mounted:
            if not mounted:
                return None
            code, output = case.run(stage)
            finding = _clear(code, output)
            subprocess.run(["mount", "-o", "remount,size=1g", case.home / stage], check=True, capture_output=True)
            tally.add(finding or finish(case, stage, expected, f"{size} bytes"))
    return tally


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[bool]:
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True, capture_output=True)


def _clear(code: int, output: str) -> str | None:
    """What is wrong with the end of a stage that could not write."""
    if code == 0:
        return None  # it did not need what failed
    if "Traceback" in output:
        return f"a traceback: {output[-500:]}"
    return None if code in (5, 75) else f"exit {code}: {output[-300:]}"
