"""SIGKILL at chosen changes and at random moments: the same command again ends with the same bytes."""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from pipelines.artifacts import Manifest
from pipelines.errors import CheckError
from pipelines.provenance import verify
from tests.faults.case import Case, Stage
from tests.faults.process import HUNG
from tests.faults.table import Tally

AFRESH = 20
"""One of so many faults meets a process that was started as a user starts it, with all of its workers."""


def kill_at_changes(ready: Case, stage: Stage, points: int, folder: Path, seed: int) -> Tally:
    """Kill a stage before, after or in the middle of `points` of its changes of the disk, spread over all of them.

    Args:
        ready: with the stages before, and this one, finished without a fault.
    """
    expected, sites = ready.tree(stage), sites_of(ready, stage, "change", folder)
    tally, commits = Tally(f"kill {stage} at a change of the disk"), 0
    for point, at in enumerate(spread(len(sites), points, random.Random(seed))):
        case, kind = before(ready, stage, folder / "killed"), ("kill", "torn")[(point + seed) % 2]
        code, output = _run(case, stage, point, env=case.fault("change", kind, at))
        where = f"{kind} {at}, {sites[at - 1]}"
        # Workers share out work differently each time, so the last changes may not come.
        finding = None if code in (-signal.SIGKILL, 0) else f"{where}: exit {code}: {output[-300:]}"
        tally.add(finding or finish(case, stage, expected, where))
        commits += sites[at - 1].startswith("rename")
    tally.note = f"of {len(sites)} changes; {commits} at a rename"
    return tally


def kill_at_moments(ready: Case, stage: Stage, points: int, folder: Path, seed: int) -> Tally:
    """Kill a stage at random moments."""
    expected, draw = ready.tree(stage), random.Random(seed)
    tally = Tally(f"kill {stage} at a random moment")
    took = _durations(ready, stage, folder)
    for point in range(points):
        case, moment = before(ready, stage, folder / "killed"), draw.uniform(0, took[is_afresh(point)])
        process = case.start(stage, *_options(stage, point), afresh=is_afresh(point))
        time.sleep(moment)
        process.send_group(signal.SIGKILL)
        process.wait()
        tally.add(finish(case, stage, expected, f"after {moment:.2f} s"))
    return tally


def interrupt_twice(ready: Case, stage: Stage, points: int, folder: Path, seed: int) -> Tally:
    """SIGTERM or SIGINT, and again while the first is being obeyed: it ends soon, without a traceback, and resumes."""
    expected, draw = ready.tree(stage), random.Random(seed)
    tally = Tally(f"SIGTERM and SIGINT twice in {stage}")
    took = _durations(ready, stage, folder)
    for point in range(points):
        number = (signal.SIGTERM, signal.SIGINT)[(point // AFRESH + point) % 2]
        case, moment = before(ready, stage, folder / "killed"), draw.uniform(0, took[is_afresh(point)])
        process = case.start(stage, *_options(stage, point), afresh=is_afresh(point))
        time.sleep(moment)
        for _ in range(2):
            process.send(number)
            time.sleep(draw.uniform(0, 0.2))
        where = f"{number.name} after {moment:.2f} s"
        code, output = process.wait(timeout=60)
        process.send_group(signal.SIGKILL)
        finding = f"{where}: still there a minute later" if code == HUNG else None
        if "Traceback" in output:
            finding = f"{where}: a traceback:\n{output[-600:]}"
        tally.add(finding or finish(case, stage, expected, where))
    return tally


def finish(case: Case, stage: Stage, expected: dict[str, str], where: str) -> str | None:
    """What is wrong with what was left, and with what the same command makes of it."""
    if finding := taken_for_finished(case):
        return f"{where}: {finding}"
    code, output = case.run(stage, *alone(stage))
    if code:
        return f"{where}: again ends with {code}: {output[-600:]}"
    return other_bytes(case, stage, expected, where)


def taken_for_finished(case: Case) -> str | None:
    """An artefact that a reader would take, and that is not whole."""
    for folder in _named(case.home):
        try:
            if Manifest.read(folder):
                verify(folder)
        except CheckError as error:
            return f"taken for finished: {error}"
    return None


def other_bytes(case: Case, stage: Stage, expected: dict[str, str], where: str) -> str | None:
    """What differs from what an uninterrupted run leaves."""
    found = case.tree(stage)
    changed = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    return f"{where}: other bytes in {', '.join(changed[:5])}" if changed else None


def before(ready: Case, stage: Stage, folder: Path) -> Case:
    """A copy in which a stage has not run."""
    shutil.rmtree(folder, ignore_errors=True)
    case = ready.copy(folder)
    shutil.rmtree(case.home / stage)
    return case


def sites_of(ready: Case, stage: Stage, what: str, folder: Path) -> list[str]:
    """The changes or reads of a stage in their order, without workers."""
    return before(ready, stage, folder / "counted").sites(stage, what, *alone(stage))


def alone(stage: Stage) -> tuple[str, ...]:
    """Options with which a stage works in one process."""
    return ("--workers", "1") if stage == "prep" else ()


def is_afresh(point: int) -> bool:
    return point % AFRESH == AFRESH - 1


def spread(sites: int, points: int, draw: random.Random) -> list[int]:
    """`points` of the numbers 1..sites: all of them if they are that few, otherwise one of each equal stretch."""
    if points >= sites:
        return [1 + at % sites for at in range(points)] if points > sites else list(range(1, sites + 1))
    return [1 + int((at + draw.random()) * sites / points) for at in range(points)]


def _run(case: Case, stage: Stage, point: int, *, env: dict[str, str]) -> tuple[int, str]:
    return case.run(stage, *_options(stage, point), env=env, afresh=is_afresh(point))


def _options(stage: Stage, point: int) -> tuple[str, ...]:
    return () if is_afresh(point) else alone(stage)


def _named(home: Path) -> Iterator[Path]:
    """Every directory that a reader would look at."""
    for path in sorted(home.rglob("manifest.json")):
        if not any(part.startswith(".") for part in path.relative_to(home).parts):
            yield path.parent


def _durations(ready: Case, stage: Stage, folder: Path) -> tuple[float, float]:
    """Seconds that a stage takes where it is forked, and where it is started afresh."""
    took = []
    for options, afresh in ((alone(stage), False), ((), True)):
        case, began = before(ready, stage, folder / "timed"), time.monotonic()
        code, output = case.run(stage, *options, afresh=afresh)
        assert code == 0, output
        took.append(time.monotonic() - began)
    return took[0], took[1]
