"""Two processes on one work directory: the second leaves at once and says who holds it; a dead holder does not."""

import os
import signal
import time
from pathlib import Path

from tests.faults.case import STAGES, Case, Stage
from tests.faults.kill import before, finish
from tests.faults.table import Tally

BUSY = 6
LEAVES_WITHIN = 2.0
"""Seconds, beyond what the command takes to start."""


def two_at_once(ready: Case, points: int, folder: Path) -> Tally:
    """Start a stage, stop it while it holds the directory, and start it again beside."""
    tally = Tally("two at once")
    for at in range(points):
        stage = STAGES[at % len(STAGES)]
        tally.add(_one(ready, stage, folder))
    return tally


def _one(ready: Case, stage: Stage, folder: Path) -> str | None:
    expected = ready.tree(stage)
    case = before(ready, stage, folder / "twice")
    idle = _seconds(case, "--help")
    first = case.start(stage)
    if not _holds(case.home / stage, first.pid):
        first.communicate()
        return f"{stage}: never held its directory"
    os.killpg(first.pid, signal.SIGSTOP)
    began = time.monotonic()
    code, output = case.run(stage)
    took = time.monotonic() - began - idle
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    if code != BUSY:
        return f"{stage}: exit {code}: {output[-300:]}"
    if str(first.pid) not in output:
        return f"{stage}: does not name process {first.pid}: {output[-300:]}"
    if took > LEAVES_WITHIN:
        return f"{stage}: left after {took:.1f} s"
    return finish(case, stage, expected, "after a dead holder")


def _holds(folder: Path, process: int) -> bool:
    """Wait until a process, or one below it, has locked a directory."""
    for _ in range(1200):
        try:
            if (folder / ".lock").read_text().strip():
                return True
        except OSError:
            pass
        time.sleep(0.05)
        if not Path(f"/proc/{process}").exists():
            return False
    return False


def _seconds(case: Case, option: str) -> float:
    began = time.monotonic()
    case.run("prep", option)
    return time.monotonic() - began
