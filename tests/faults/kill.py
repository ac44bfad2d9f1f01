"""SIGKILL at chosen changes and at random moments: the same command again ends with the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipelines.artifacts import Manifest
from pipelines.errors import CheckError
from pipelines.provenance import verify
from tests.faults.case import PATIENCE, Case, Stage
from tests.faults.table import Tally


def kill_at_changes(ready: Case, stage: Stage, points: int, folder: Path, seed: int) -> Tally:
    """Kill a stage at `points` of its changes of the disk, spread over all of them.

    Args:
        ready: with the stages before, and this one, finished without a fault.
    """
    expected, changes = ready.tree(stage), changes_of(ready, stage, folder)
    tally, killed = Tally(f"kill {stage} at a change of the disk"), 0
    for at in spread(changes, points, random.Random(seed)):
        case = before(ready, stage, folder / "killed")
        code, output = case.run(stage, env=case.fault("kill", at))
        # Processes share out work differently each time, so the last changes may not come in any.
        killed += code == -9
        finding = None if code in (-9, 0) else f"change {at}: exit {code}: {output[-300:]}"
        tally.add(finding or finish(case, stage, expected, f"change {at}"))
    tally.note = f"{killed} killed, of {changes} changes"
    return tally


def kill_at_moments(ready: Case, stage: Stage, points: int, folder: Path, seed: int) -> Tally:
    """Kill a stage at random moments."""
    expected, draw = ready.tree(stage), random.Random(seed)
    tally = Tally(f"kill {stage} at a random moment")
    took = _duration(before(ready, stage, folder / "timed"), stage)
    for _ in range(points):
        case, moment = before(ready, stage, folder / "killed"), draw.uniform(0, took)
        process = case.start(stage)
        time.sleep(moment)
        _end(process, signal.SIGKILL)
        tally.add(finish(case, stage, expected, f"after {moment:.2f} s"))
    return tally


def interrupt_twice(ready: Case, stage: Stage, points: int, folder: Path, seed: int) -> Tally:
    """SIGTERM or SIGINT, and again while the first is being obeyed: it ends soon, without a traceback, and resumes."""
    expected, draw = ready.tree(stage), random.Random(seed)
    tally = Tally(f"SIGTERM and SIGINT twice in {stage}")
    took = _duration(before(ready, stage, folder / "timed"), stage)
    for point in range(points):
        number = (signal.SIGTERM, signal.SIGINT)[point % 2]
        case, moment = before(ready, stage, folder / "killed"), draw.uniform(0, took)
        process = case.start(stage)
        time.sleep(moment)
        for _ in range(2):
            if process.poll() is None:
                os.kill(process.pid, number)
            time.sleep(draw.uniform(0, 0.2))
        where = f"{number.name} after {moment:.2f} s"
        try:
            output = process.communicate(timeout=60)[0].decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            _end(process, signal.SIGKILL)
            tally.add(f"{where}: still there a minute later")
            continue
        finding = f"{where}: a traceback:\n{output[-600:]}" if "Traceback" in output else None
        tally.add(finding or finish(case, stage, expected, where))
    return tally


def finish(case: Case, stage: Stage, expected: dict[str, str], where: str) -> str | None:
    """What is wrong with what was left, and with what the same command makes of it."""
    for folder in _named(case.home):
        try:
            if Manifest.read(folder):
                verify(folder)
        except CheckError as error:
            return f"{where}: taken for finished: {error}"
    code, output = case.run(stage)
    if code:
        return f"{where}: again ends with {code}: {output[-600:]}"
    found = case.tree(stage)
    if found != expected:
        changed = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        return f"{where}: other bytes in {', '.join(changed[:5])}"
    return None


def _named(home: Path) -> Iterator[Path]:
    """Every directory that a reader would look at."""
    for path in sorted(home.rglob("manifest.json")):
        if not any(part.startswith(".") for part in path.relative_to(home).parts):
            yield path.parent


def before(ready: Case, stage: Stage, folder: Path) -> Case:
    """A copy in which a stage has not run."""
    shutil.rmtree(folder, ignore_errors=True)
    case = ready.copy(folder)
    shutil.rmtree(case.home / stage)
    return case


def changes_of(ready: Case, stage: Stage, folder: Path) -> int:
    return before(ready, stage, folder / "counted").changes(stage)


def _duration(case: Case, stage: Stage) -> float:
    began = time.monotonic()
    code, output = case.run(stage)
    assert code == 0, output
    return min(time.monotonic() - began, PATIENCE)


def spread(changes: int, points: int, draw: random.Random) -> list[int]:
    """`points` of the numbers 1..changes: all of them if they are that few, otherwise one of each equal stretch."""
    if points >= changes:
        return [1 + at % changes for at in range(points)] if points > changes else list(range(1, changes + 1))
    return [1 + int((at + draw.random()) * changes / points) for at in range(points)]


def _end(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.communicate()
