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
    first = case.start(stage, afresh=True)
    if not _stopped_while_it_holds(case.home / stage / ".lock", first.pid):
        first.wait()
        return f"{stage}: never held its directory"
    began = time.monotonic()
    code, output = case.run(stage, afresh=True)
    took = time.monotonic() - began - idle
    first.send_group(signal.SIGKILL)
    first.wait()
    if code != BUSY:
        return f"{stage}: exit {code}: {output[-300:]}"
    if str(first.pid) not in output:
        return f"{stage}: does not name process {first.pid}: {output[-300:]}"
    if took > LEAVES_WITHIN:
        return f"{stage}: left after {took:.1f} s"
    return finish(case, stage, expected, "after a dead holder")


def _stopped_while_it_holds(lock: Path, process: int) -> bool:
    """Stop a process and those below it at a moment at which one of them holds a directory."""
    while Path(f"/proc/{process}/stat").read_text().split()[2] != "Z":
        if _is_held(lock):
            os.killpg(process, signal.SIGSTOP)
            time.sleep(0.1)
            if _is_held(lock):  # some hold it for a moment only, to look
                return True
            os.killpg(process, signal.SIGCONT)
        time.sleep(0.01)
    return False


def _is_held(lock: Path) -> bool:
    """As the system tells, since trying it would hold it as well."""
    try:
        inode = str(lock.stat().st_ino)
    except FileNotFoundError:
        return False
    return any(line.split()[5].split(":")[-1] == inode for line in Path("/proc/locks").read_text().splitlines())


def _seconds(case: Case, option: str) -> float:
    began = time.monotonic()
    case.run("prep", option, afresh=True)
    return time.monotonic() - began
