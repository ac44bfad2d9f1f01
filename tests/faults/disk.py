"""Disks that are full or fail: a clear error, what was there stays, and the same command ends when there is space."""

import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.case import Case, Stage
from tests.faults.kill import alone, before, finish, is_afresh, sites_of, spread
from tests.faults.table import Tally

NO_ROOM = r"needs .*\d (bytes|[MG]B) .*\d (bytes|[MG]B) (are )?free|\d [MG]B are needed .*\d [MG]B are free"
"""How a message about a full disk says what is needed and what is there."""


def failing_changes(ready: Case, stage: Stage, points: int, folder: Path, seed: int, kind: str) -> Tally:
    """Every change from a chosen one on fails with EIO, ENOSPC or EROFS."""
    return _failing(ready, stage, points, folder, seed, "change", kind)


def failing_reads(ready: Case, stage: Stage, points: int, folder: Path, seed: int, kind: str) -> Tally:
    """Every read from a chosen one on fails with EIO, or gives half of what was asked for."""
    return _failing(ready, stage, points, folder, seed, "read", kind)


def _failing(ready: Case, stage: Stage, points: int, folder: Path, seed: int, what: str, kind: str) -> Tally:
    expected, sites = ready.tree(stage), sites_of(ready, stage, what, folder)
    tally, ended = Tally(f"{what}s: {kind}, in {stage}", note=f"of {len(sites)} {what}s"), 0
    for point, at in enumerate(spread(len(sites), points, random.Random(seed))):
        case = before(ready, stage, folder / "failing")
        options = () if is_afresh(point) else alone(stage)
        code, output = case.run(stage, *options, env=case.fault(what, kind, at), afresh=is_afresh(point))
        finding, where = _clear(code, output, lacks_room=kind == "ENOSPC"), f"{at}, {sites[at - 1]}"
        tally.add(f"{where}: {finding}" if finding else finish(case, stage, expected, where))
        ended += code != 0
    tally.note += f", {ended} ended the stage"
    return tally


def short_files(ready: Case, stage: Stage, points: int, folder: Path, seed: int) -> Tally:
    """No file may grow beyond a drawn size (RLIMIT_FSIZE): writes fail in the middle, in any library."""
    expected, draw = ready.tree(stage), random.Random(seed)
    largest = max(path.stat().st_size for path in (ready.home / stage).rglob("*") if path.is_file())
    tally = Tally(f"files that may not grow, in {stage}")
    for point in range(points):
        case, limit = before(ready, stage, folder / "failing"), draw.randrange(1024, largest)
        options = () if is_afresh(point) else alone(stage)
        code, output = case.run(stage, *options, largest=limit, afresh=is_afresh(point))
        finding, where = _clear(code, output), f"{limit} bytes"
        tally.add(f"{where}: {finding}" if finding else finish(case, stage, expected, where))
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
            code, output = case.run(stage, *alone(stage))
            finding, where = _clear(code, output, lacks_room=True), f"{size} bytes"
            subprocess.run(["mount", "-o", "remount,size=1g", case.home / stage], check=True, capture_output=True)
            tally.add(f"{where}: {finding}" if finding else finish(case, stage, expected, where))
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


def _clear(code: int, output: str, *, lacks_room: bool = False) -> str | None:
    """What is wrong with the end of a stage that could not write or read."""
    if code == 0:
        return None  # it did not need what failed
    if "Traceback" in output:
        return f"a traceback: {output[-900:]}"
    if code not in (3, 4, 5, 75):
        return f"exit {code}: {output[-300:]}"
    if lacks_room and not re.search(NO_ROOM, output):
        return f"does not say what is needed and free: {output[-300:]}"
    if "/" not in output:
        return f"names no place: {output[-300:]}"
    return None
