"""Worker processes end with the work they were made for."""

import multiprocessing
import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from prep.pool import pool


def told_then_stays(note: Path) -> None:
    note.with_suffix(".new").write_text(str(os.getpid()))
    note.with_suffix(".new").rename(note)
    time.sleep(600)


def interrupted(number: int) -> int:
    os.kill(os.getpid(), signal.SIGINT)
    return number + 1


def test_work_that_ends_leaves_no_process() -> None:
    with pool(2) as processes:
        assert list(processes.map(abs, [-1, 2, -3])) == [1, 2, 3]
    assert not multiprocessing.active_children()


def fail_beside(note: Path) -> None:
    with pool(2) as processes:
        processes.submit(told_then_stays, note)
        while not note.exists():
            time.sleep(0.02)
        raise KeyError


def test_an_error_stops_processes_in_the_middle_of_their_work_and_no_others(tmp_path: Path) -> None:
    with pool(1) as bystander:
        assert bystander.submit(abs, -1).result() == 1
        with pytest.raises(KeyError):
            fail_beside(tmp_path / "note")
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "note").read_text()), 0)
        assert bystander.submit(abs, -2).result() == 2


def test_workers_leave_an_interrupt_to_the_process_that_made_them() -> None:
    with pool(1) as processes:
        assert processes.submit(interrupted, 1).result() == 2
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def stubborn(note: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    told_then_stays(note)


def dies(note: Path) -> None:
    while not note.exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def stays_or_dies(note: Path) -> None:
    (dies if note.suffix else stubborn)(note.with_suffix(""))


def test_a_process_that_does_not_listen_ends_with_the_one_that_died(tmp_path: Path) -> None:
    with pytest.raises(BrokenProcessPool), pool(2) as processes:
        list(processes.in_order(stays_or_dies, [tmp_path / "note", tmp_path / "note.x"]))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "note").read_text()), 0)


def test_a_death_that_the_pool_does_not_notice_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prep.pool._PATIENCE", 0.1)
    monkeypatch.setattr("concurrent.futures.process._ExecutorManagerThread.terminate_broken", lambda *_: None)
    (tmp_path / "note").touch()
    with pytest.raises(BrokenProcessPool, match="did not notice"), pool(1) as processes:
        list(processes.in_order(dies, [tmp_path / "note"]))


def test_results_come_in_order_and_jobs_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []
    with pool(2) as processes:
        results = processes.in_order(abs, (taken.append(-n) or -n for n in range(9)), ahead=2)  # type: ignore[func-returns-value]
        assert (next(results), len(taken)) == (0, 3)
        assert list(results) == [1, 2, 3, 4, 5, 6, 7, 8]
