"""Training on two ranks: both are killed at a change of the disk, or one is killed or stopped and the other ends."""

import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tests.faults.case import Case
from tests.faults.kill import before, other_bytes, spread, taken_for_finished
from tests.faults.process import HUNG, Process
from tests.faults.table import Tally

RANKS = 2
TIMEOUT_S = 30.0
"""train.runtime.timeout_minutes of these runs, in seconds."""
ENDS_WITHIN = 15.0
"""Seconds that a rank may outlive one that was killed."""
SLACK = 15.0
"""Seconds that a busy machine may add."""
OPTIONS = ("--set", f"train.runtime.timeout_minutes={TIMEOUT_S / 60}")
_JOINING = "did not join|did not come|did not answer"
"""Before ranks have met there is no pulse to name one by."""
_OF_ALL = "(No space left on device|Input/output error) \\("
"""What all ranks say alike, where one of them wrote for all."""


def faults(ready: Case, points: int, folder: Path, seed: int) -> Iterator[Tally]:
    """All kinds, each from a run on two ranks that nothing happened to."""
    whole = before(ready, "train", folder / "whole")
    began = time.monotonic()
    finding = _finish(whole, None, "without a fault")
    if finding:
        raise SystemExit(finding)
    took, expected = time.monotonic() - began, whole.tree("train")
    sites = [len(_sites(ready, folder, rank)) for rank in (None, 0, 1)]
    yield _both_killed(ready, points, folder, seed, expected, sites[0])
    yield _one_killed(ready, points, folder, seed, expected, sites[1:])
    few = -(-points // 10)
    yield _disk_fails(ready, -(-points // 3), folder, seed, expected, sites[1:])
    yield _killed_below_a_launcher(ready, few, folder, seed, expected)
    yield _stopped(ready, few, folder, seed, expected, took)


def _both_killed(ready: Case, points: int, folder: Path, seed: int, expected: dict[str, str], changes: int) -> Tally:
    tally = Tally("kill both ranks at a change of the disk", note=f"of {changes} changes")
    for point, at in enumerate(spread(changes, points, random.Random(seed))):
        case, kind = before(ready, "train", folder / "ranks"), ("kill", "torn")[(point + seed) % 2]
        processes = start(case, RANKS, env=[case.fault("change", kind, at)] * RANKS, together=True)
        ended = [process.wait() for process in processes]
        where = f"{kind} {at}"
        finding = next((f"{where}: {said[-600:]}" for code, said in ended if code not in (0, -9)), None)
        tally.add(finding or _finish(case, expected, where))
    return tally


def _one_killed(
    ready: Case, points: int, folder: Path, seed: int, expected: dict[str, str], changes: Sequence[int]
) -> Tally:
    tally, longest = Tally("kill one of two ranks at a change of the disk"), 0.0
    draw = random.Random(seed)
    for point, drawn in enumerate(spread(max(changes), points, draw)):
        victim = (point + seed) % RANKS
        at = 1 + drawn * (changes[victim] - 1) // max(changes)
        case, kind = before(ready, "train", folder / "ranks"), ("kill", "torn")[(point // RANKS) % 2]
        struck = case.fault("change", kind, at)
        processes = start(case, RANKS, env=[struck if rank == victim else {} for rank in range(RANKS)])
        where = f"rank {victim}, {kind} {at}"
        processes[victim].wait()
        finding, took = _left_by(processes[1 - victim], victim, "is gone", ENDS_WITHIN + SLACK)
        longest = max(longest, took)
        tally.add(f"{where}: {finding}" if finding else _finish(case, expected, where))
    tally.note = f"the other one ended within {longest:.1f} s"
    return tally


def _disk_fails(
    ready: Case, points: int, folder: Path, seed: int, expected: dict[str, str], changes: Sequence[int]
) -> Tally:
    tally, longest = Tally("a disk that fails under one of two ranks"), 0.0
    for point, drawn in enumerate(spread(max(changes), points, random.Random(seed))):
        victim = (point + seed) % RANKS
        at, kind = 1 + drawn * (changes[victim] - 1) // max(changes), ("EIO", "ENOSPC")[(point // RANKS) % 2]
        case = before(ready, "train", folder / "ranks")
        struck = case.fault("change", kind, at)
        processes = start(case, RANKS, env=[struck if rank == victim else {} for rank in range(RANKS)])
        code, said = processes[victim].wait()
        where, finding = f"rank {victim}, {kind} {at}", None
        if code not in (0, 5) or "Traceback" in said or (code and "work/" not in said):
            finding = f"exit {code}: {said[-900:]}"
        others, took = _left_by(processes[1 - victim], victim, "is gone", ENDS_WITHIN + SLACK)
        longest, finding = max(longest, took), finding or others
        tally.add(f"{where}: {finding}" if finding else _finish(case, expected, where))
    tally.note = f"the other one ended within {longest:.1f} s"
    return tally


def _killed_below_a_launcher(ready: Case, points: int, folder: Path, seed: int, expected: dict[str, str]) -> Tally:
    tally, longest, draw = Tally("kill one of two ranks that packtrain train started"), 0.0, random.Random(seed)
    for point in range(points):
        case, victim = before(ready, "train", folder / "ranks"), point % RANKS
        launcher = case.start("train", *OPTIONS, "--set", f"train.nproc_per_node={RANKS}")
        _wait_for_pulses(case, launcher)
        time.sleep(draw.uniform(0, 1))
        signal_to(_children(launcher.pid)[victim : victim + 1], signal.SIGKILL)
        began = time.monotonic()
        code, said = launcher.wait(ENDS_WITHIN + SLACK)
        longest = max(longest, time.monotonic() - began)
        finding = None
        if code and (code != 5 or not re.search(rf"rank {victim} was killed by SIGKILL in .+; the same", said)):
            finding = f"rank {victim}: exit {code}: {said[-600:]}"
        tally.add(finding or _finish(case, expected, f"rank {victim}"))
    tally.note = f"it ended within {longest:.1f} s"
    return tally


def _stopped(ready: Case, points: int, folder: Path, seed: int, expected: dict[str, str], took: float) -> Tally:
    tally, longest, draw = Tally("SIGSTOP to one of two ranks"), 0.0, random.Random(seed)
    for point in range(points):
        case, victim = before(ready, "train", folder / "ranks"), point % RANKS
        processes = start(case, RANKS)
        _wait_for_pulses(case, processes[0])
        time.sleep(draw.uniform(0, took / 2))
        processes[victim].send(signal.SIGSTOP)
        finding, waited = _left_by(processes[1 - victim], victim, "is stopped", TIMEOUT_S + ENDS_WITHIN + SLACK)
        longest = max(longest, waited)
        processes[victim].send(signal.SIGKILL)
        processes[victim].wait()
        where = f"rank {victim} stopped"
        tally.add(f"{where}: {finding}" if finding else _finish(case, expected, where))
    tally.note = f"timeout {TIMEOUT_S:g} s; the other one ended within {longest:.1f} s"
    return tally


def _left_by(other: Process, victim: int, how: str, limit_s: float) -> tuple[str | None, float]:
    """What is wrong with the end of a rank that lost another one, and how long it took to end."""
    began = time.monotonic()
    code, said = other.wait(limit_s)
    took = time.monotonic() - began
    if code == 0:
        return None, took  # it needed nothing more of the other
    if code == HUNG:
        return f"still there after {limit_s:g} s: {said[-300:]}", took
    if code != 5 or "Traceback" in said:
        return f"exit {code}: {said[-900:]}", took
    named = rf"rank {victim} (on \S+ \(process \d+\) {how}, in|ended in) .+"
    if not re.search(f"{named}|{_JOINING}|{_OF_ALL}", said):
        return f"does not name rank {victim}: {said[-600:]}", took
    return None, took


def start(
    case: Case,
    ranks: int,
    *options: str,
    env: Sequence[dict[str, str]] | None = None,
    together: bool = False,
    first: Callable[[], None] | None = None,
) -> list[Process]:
    """Training as so many ranks, as a launcher that is not ours starts them.

    Args:
        env: more variables, of each.
        together: they are one process group, which the first one leads.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes: list[Process] = []
    for rank in range(ranks):
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            **(env[rank] if env else {}),
        }
        group = processes[0].pid if together and processes else 0
        processes.append(case.start("train", *OPTIONS, *options, env=variables, group=group, first=first))
    return processes


def signal_to(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to processes that another one started, where they are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _finish(case: Case, expected: dict[str, str] | None, where: str) -> str | None:
    """What is wrong with what was left, and with what the same ranks make of it."""
    if finding := taken_for_finished(case):
        return f"{where}: {finding}"
    for process in start(case, RANKS):
        code, said = process.wait()
        if code:
            return f"{where}: again ends with {code}: {said[-600:]}"
    return other_bytes(case, "train", expected, where) if expected is not None else None


def _sites(ready: Case, folder: Path, rank: int | None) -> list[str]:
    """Changes that one rank makes, or all of them."""
    case = before(ready, "train", folder / "counted")
    listed = folder / "sites"
    listed.unlink(missing_ok=True)
    counting = case.fault("change", "count", 0) | {"FAULT_SITES": str(listed)}
    for process in start(case, RANKS, env=[counting if rank in (None, one) else {} for one in range(RANKS)]):
        code, said = process.wait()
        assert code == 0, said
    return listed.read_text().splitlines()


def _children(pid: int) -> list[int]:
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _wait_for_pulses(case: Case, process: Process) -> None:
    """Until all ranks have said what they do, or the process has ended."""
    while process.poll() is None and len(list((case.home / "train" / "ranks").glob("0*.json"))) < RANKS:
        time.sleep(0.02)
