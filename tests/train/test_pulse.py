"""What ranks say of themselves, and what the others make of it."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError, DataError, MachineError
from train.launchers import Ranks
from train.pulse import (
    FAILURE,
    FOLDER,
    Beat,
    LostRanks,
    Pulse,
    is_lost_connection,
    joining,
    leave_failure,
    machine,
    new_folder,
    process_state,
    wait_for,
)

TIMEOUT_S = 2.0
"""Beats come ten times a second then."""


def pulse(folder: Path, rank: int = 0, ranks: int = 3, **how: Any) -> Pulse:
    return Pulse(folder, Ranks(rank, ranks, rank, ranks), timeout_s=TIMEOUT_S, **how)


def beat(folder: Path, rank: int, **what: Any) -> None:
    """What another rank would say."""
    said = {"rank": rank, "host": "b", "machine": machine(), "pid": os.getpid(), "step": 41, "doing": "training"}
    (folder / f"{rank:05d}.json").write_text(json.dumps(asdict(Beat(**{**said, **what}))))


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield child
    child.kill()
    child.wait()


def test_a_process_that_is_stopped_or_gone_is_named_at_once(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    mine = pulse(tmp_path)
    mine.at(41)
    beat(tmp_path, 1, pid=process.pid)
    beat(tmp_path, 2)
    process.send_signal(signal.SIGSTOP)
    while process_state(process.pid) != "T":
        time.sleep(0.01)
    assert mine.missing() == f"rank 1 on b (process {process.pid}) is stopped, in step 41, training"
    process.kill()
    process.wait()
    assert mine.missing() == f"rank 1 on b (process {process.pid}) is gone, in step 41, training"
    beat(tmp_path, 1, pid=process.pid, ended=True)  # because of somebody else
    assert mine.missing() == f"rank 2 on b (process {os.getpid()}) gives no sign, in step 41, training"


def test_a_rank_of_another_machine_is_missing_when_it_is_silent(tmp_path: Path) -> None:
    mine, other = pulse(tmp_path, ranks=3), pulse(tmp_path, rank=2, ranks=3)
    mine.at(41)
    other.at(41)
    beat(tmp_path, 1, machine="elsewhere", pid=1)
    stop = threading.Event()
    beating = threading.Thread(target=other.keep, args=(lambda _: None, stop))
    beating.start()
    try:
        assert mine.missing() == "rank 1 on b (process 1) gives no sign, in step 41, training"
        beat(tmp_path, 1, machine="elsewhere", ended=True)
        other.at(40, "saving")
        assert mine.missing().endswith(f"(process {os.getpid()}) is still in step 40, saving")
        other.at(41)
        assert mine.missing().startswith("all 3 ranks run and are in step 41, training; the network may have failed")
    finally:
        stop.set()
        beating.join()


def test_a_rank_that_waits_for_one_that_failed_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.pulse.GRACE_S", 0.1)
    mine, first, second = pulse(tmp_path), pulse(tmp_path, rank=1), pulse(tmp_path, rank=2)
    first.at(7)
    first.fail(DataError("shards/x: damaged"))
    second.fail(ConfigError("because of that"))
    assert first.failure() is None
    left: list[Mapping[str, Any]] = []
    stop = threading.Event()

    def leave(failure: Mapping[str, Any]) -> None:
        left.append(failure)
        stop.set()

    mine.keep(leave, stop)
    assert left == [{"rank": 1, "message": "rank 1 ended in step 7, training: shards/x: damaged", "exit_code": 3}]
    assert [path.name for path in tmp_path.glob("*fail*")] == [FAILURE]


def test_where_time_ends_the_process_what_is_missing_is_said_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = pulse(tmp_path, ranks=2, warns=True)
    mine.at(41)
    beat(tmp_path, 1, step=40)
    stop = threading.Event()
    threading.Timer(0.9 * TIMEOUT_S + 1, stop.set).start()
    mine.keep(lambda _: None, stop)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("rank 0: no progress in step 41, training: rank 1 on b")
    assert line.endswith("gives no sign, in step 40, training")


def test_a_machine_that_does_not_share_the_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.pulse.SHARED_S", 0)
    folder = tmp_path / FOLDER
    not_seen = r"ranks: rank 0 made it, and rank 1 on \S+ does not see it or may not write there; set run.work_dir"
    for left_by_a_former_run in (False, True):
        if left_by_a_former_run:
            (folder / new_folder(folder)).unlink()
        with pytest.raises(MachineError, match=not_seen):
            wait_for(folder / "run-1", Ranks(1, 2, 0, 1))
    leave_failure(folder, rank=1, message="of a former run", exit_code=3)
    wait_for(folder / new_folder(folder), Ranks(1, 2, 0, 1))
    assert pulse(folder).failure() is None


def test_a_full_disk_does_not_end_a_run_that_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    mine = pulse(tmp_path)
    monkeypatch.setattr("os.pwrite", fail)
    mine.at(41)
    assert mine.place == "step 41, training"
    mine.end()


def test_only_errors_of_exchanges_are_taken_for_lost_ranks() -> None:
    assert is_lost_connection(RuntimeError("[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer"))
    assert not is_lost_connection(RuntimeError("shapes do not match"))
    assert not is_lost_connection(ValueError("gloo/"))


def test_what_kept_ranks_from_joining_is_said() -> None:
    finding = r"did not join: .*train.runtime.env says \(\[gloo/x.cc\] no address for eth9\)$"
    with pytest.raises(LostRanks, match=finding), joining():
        raise RuntimeError("[gloo/x.cc] no address for eth9\nframe #0")
