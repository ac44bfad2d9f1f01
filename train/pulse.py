"""The pulse of every rank: a small file that says what it does, so that those left can name the one that is missing.

PyTorch's errors say that a connection was lost or that time is up, not whose fault it is. The files lie beside the
checkpoints, where all machines of a run write anyway, so this works under every launcher.
"""

import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipelines.errors import InterruptedRun, MachineError, PacktrainError
from train.launchers import Ranks
from train.stop import told

log = logging.getLogger(__name__)

FOLDER = "ranks"
FAILURE = "failed.json"
"""Written by the first rank that fails by itself, for those that would wait for it."""
BYTES = 400
"""Of a rank's file: one size, so that writing it again needs no truncation."""
LONGEST_INTERVAL_S = 10.0
MISSED_BEATS = 3
"""Beats that a rank may miss before it counts as missing."""
GRACE_S = 10.0
"""How long a rank has to end by itself after another one failed."""
SHARED_S = 60.0
"""How long a new directory may take to be seen on another machine."""


class LostRanks(MachineError):  # noqa: N818 (they are what was lost)
    """Another rank is gone, or did not come in time."""


@dataclass(frozen=True)
class Beat:
    """What one rank says of itself."""

    rank: int
    host: str
    machine: str
    """Host and process namespace: within one, a process id says whether the rank runs."""
    pid: int
    step: int
    """Optimizer step under way, from 1; 0 before the first."""
    doing: str
    ended: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (process {self.pid})"

    @property
    def place(self) -> str:
        return f"step {self.step}, {self.doing}" if self.step else self.doing


class Pulse:
    """The pulse of this rank, and the others' as it sees them.

    Args:
        folder: all ranks' files; exists. None for one rank, which has nobody to tell.
        timeout_s: how long an exchange waits; a rank counts as silent after a part of that.
        warns: also say what is missing shortly before time is up.
    """

    def __init__(self, folder: Path | None, ranks: Ranks, *, timeout_s: float, warns: bool = False) -> None:
        self._folder, self._ranks = folder or Path(), ranks
        self._timeout_s, self._warns = timeout_s, warns
        self._interval_s = min(LONGEST_INTERVAL_S, timeout_s / 20)
        self._lock = threading.Lock()
        self._moved = time.monotonic()
        self._beat = Beat(
            ranks.rank, socket.gethostname()[:100], machine(), os.getpid(), step=0, doing="loading the model"
        )
        self._file = None if folder is None else os.open(self._path(ranks.rank), os.O_CREAT | os.O_WRONLY, 0o644)
        self._write()

    @classmethod
    def alone(cls) -> "Pulse":
        return cls(None, Ranks.alone(), timeout_s=1)

    @property
    def step(self) -> int:
        """Optimizer step under way, from 1; 0 before the first."""
        return self._beat.step

    @property
    def place(self) -> str:
        """`step 41, training`, or what comes before it."""
        return self._beat.place

    def at(self, step: int, doing: str = "training") -> None:
        """Say what this rank begins to do."""
        with self._lock:
            self._beat = replace(self._beat, step=step, doing=doing)
            self._moved = time.monotonic()
            self._write()

    def end(self) -> None:
        """Say that this rank ends, so that nobody takes it for the cause."""
        with self._lock:
            self._beat = replace(self._beat, ended=True)
            self._write()
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def fail(self, error: PacktrainError | None) -> None:
        """Tell the others that this rank failed by itself, unless one did before."""
        message = str(error) if error else "a bug of packtrain or of a library, see its output"
        leave_failure(
            self._folder,
            rank=self._ranks.rank,
            message=f"rank {self._ranks.rank} ended in {self._beat.place}: {message}",
            exit_code=error.exit_code if error else 1,
        )

    def failure(self) -> Mapping[str, Any] | None:
        """What another rank that failed left."""
        content = _read(self._folder / FAILURE)
        return None if content is None or content["rank"] == self._ranks.rank else content

    def missing(self) -> str:
        """Which ranks are gone, stopped or behind, and where they were, as far as this rank can see.

        Takes a few beats where only their silence tells.
        """
        before = {rank: _seen(self._path(rank)) for rank in range(self._ranks.ranks)}
        if not (found := self._told_by_processes()):
            time.sleep(MISSED_BEATS * self._interval_s)
            silent = [rank for rank, seen in before.items() if _seen(self._path(rank)) == seen]
            found = [f"{beat} gives no sign, in {beat.place}" for beat in self._others() if beat.rank in silent]
        if not found:
            here = (self._beat.step, self._beat.doing)
            found = [f"{beat} is still in {beat.place}" for beat in self._others() if (beat.step, beat.doing) != here]
        if not found:
            found = [f"all {self._ranks.ranks} ranks run and are in {self._beat.place}; the network may have failed"]
        return "; ".join(found[:8]) + (f"; and {len(found) - 8} more" if len(found) > 8 else "")

    def keep(self, leave: Callable[[Mapping[str, Any]], None], stop: threading.Event) -> None:
        """Beat until `stop`, and end this process by `leave` if another rank failed and it waits for that rank."""
        warned = False
        while not stop.wait(self._interval_s):
            with self._lock:
                self._write()
                waits_s = time.monotonic() - self._moved
            self._flush()
            if (failure := self.failure()) and not stop.wait(GRACE_S):
                leave(failure)
            if self._warns and not warned and waits_s > 0.9 * self._timeout_s:
                warned = True
                log.error("rank %d: no progress in %s: %s", self._ranks.rank, self._beat.place, self.missing())

    def _told_by_processes(self) -> list[str]:
        told = []
        for beat in self._others():
            if beat.machine != self._beat.machine:
                continue
            state = process_state(beat.pid)
            if state in ("", "Z", "X"):
                told.append(f"{beat} is gone, in {beat.place}")
            elif state in ("T", "t"):
                told.append(f"{beat} is stopped, in {beat.place}")
        return told

    def _others(self) -> Iterator[Beat]:
        for rank in range(self._ranks.ranks):
            beat = read_beat(self._folder, rank)
            if rank != self._ranks.rank and beat is not None and not beat.ended:
                yield beat

    def _path(self, rank: int) -> Path:
        return self._folder / f"{rank:05d}.json"

    def _write(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk stops a run that saves, and not one that says where it is
                os.pwrite(self._file, json.dumps(asdict(self._beat)).encode().ljust(BYTES)[:BYTES], 0)

    def _flush(self) -> None:
        # For other machines; those of this one see it at once. Training does not wait for it.
        if self._file is not None:
            with suppress(OSError):
                os.fsync(self._file)


@contextmanager
def watched(
    home: Path, ranks: Ranks, *, timeout: timedelta, leave: Callable[[Mapping[str, Any]], None]
) -> Iterator[Pulse]:
    """Keep this rank's pulse, and turn the loss of another rank into an error that names it.

    Args:
        home: a directory that all ranks share.
        timeout: how long an exchange waits; a rank counts as silent after a part of that.
        leave: ends this process, given what another rank that failed left.
    Raises:
        MachineError: if the ranks do not share the directory.
        LostRanks: in place of PyTorch's error, if an exchange failed.
    """
    if ranks.ranks == 1:
        yield Pulse.alone()
        return
    import torch.distributed as dist

    with joining():
        folder = _shared_folder(home / FOLDER, ranks)
    # When time is up for nccl, PyTorch ends the process itself, and nothing can be said any more.
    pulse = Pulse(folder, ranks, timeout_s=timeout.total_seconds(), warns=dist.get_backend() == "nccl")
    done = threading.Event()
    thread = threading.Thread(target=pulse.keep, args=(leave, done), name="pulse", daemon=True)
    thread.start()
    try:
        yield pulse
        if ranks.rank == 0:  # which holds the directory; a rank that ends late would remove what the next run has
            shutil.rmtree(folder, ignore_errors=True)
    except PacktrainError as error:
        if not (isinstance(error, InterruptedRun) and pulse.step):  # that all ranks agreed on
            pulse.fail(error)
        raise
    except KeyboardInterrupt as error:
        pulse.fail(InterruptedRun(told(error)))
        raise
    except Exception as error:
        if not is_lost_connection(error):
            pulse.fail(None)
            raise
        if failure := pulse.failure():
            leave(failure)
        raise LostRanks(f"{pulse.missing()}; the same command continues the run") from error
    finally:
        done.set()
        thread.join()
        pulse.end()


@contextmanager
def joining() -> Iterator[None]:
    """Before there is a pulse: turn the loss of another rank into an error that says what can be said."""
    try:
        yield
    except Exception as error:
        if not is_lost_connection(error):
            raise
        raise LostRanks(
            "the ranks did not join: another one ended, see what that one says, or the network is not as "
            f"train.runtime.env says ({(str(error).splitlines() or [''])[0]})"
        ) from error


def is_lost_connection(error: Exception) -> bool:
    """Whether an exchange between ranks failed."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def read_beat(folder: Path, rank: int) -> Beat | None:
    """What a rank said last, if it said anything."""
    content = _read(folder / f"{rank:05d}.json")
    return None if content is None else Beat(**content)


def leave_failure(folder: Path, *, rank: int, message: str, exit_code: int) -> None:
    """Tell all ranks that one failed; the first to fail is the one that is told of."""
    partial = folder / f".{FAILURE}.{rank}"
    try:
        partial.write_text(json.dumps({"rank": rank, "message": message, "exit_code": exit_code}), encoding="utf-8")
        os.link(partial, folder / FAILURE)
    except OSError:
        return  # one was there before, or the disk is full, which is what they are told soon enough
    finally:
        partial.unlink(missing_ok=True)


def machine() -> str:
    """Where a process id means this process: the host, and on Linux the namespace of process ids."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def process_state(pid: int) -> str:
    """A process's state as Linux writes it (T: stopped, Z: dead), "" if there is none, "?" if nobody says."""
    if not Path("/proc/self/stat").exists():
        return "?"
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _shared_folder(folder: Path, ranks: Ranks) -> Path:
    """The empty directory of this run's pulses, once all ranks see it.

    Raises:
        MachineError: on all ranks alike, if one does not see it or rank 0 cannot make it.
    """
    from train.agreement import on_every_rank, on_rank_0

    mark = on_rank_0(lambda: new_folder(folder))
    on_every_rank(lambda: wait_for(folder / mark, ranks))
    return folder


def new_folder(folder: Path) -> str:
    """Make the directory anew, whatever a former run left; the name of a file in it that no other run has."""
    mark = f"run-{uuid4().hex}"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / mark).touch()
    except OSError as error:
        raise MachineError(f"{folder}: {error.strerror}; free room there, or set run.work_dir elsewhere") from error
    return mark


def wait_for(mark: Path, ranks: Ranks) -> None:
    """Until this rank sees what `new_folder` made, and may write beside it.

    Raises:
        MachineError: if it does not within a minute.
    """
    folder = mark.parent
    deadline = time.monotonic() + SHARED_S
    while not (mark.is_file() and os.access(folder, os.W_OK)):
        if time.monotonic() > deadline:
            raise MachineError(
                f"{folder}: rank 0 made it, and rank {ranks.rank} on {socket.gethostname()} does not see it or may not "
                "write there; set run.work_dir to a directory that all machines share"
            )
        time.sleep(0.5)
        for seen in (folder.parent, folder):  # makes a network file system look again
            with suppress(OSError):
                os.listdir(seen)  # noqa: PTH208


def _seen(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # not there yet, or being written
        return None
