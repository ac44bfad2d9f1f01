"""Worker processes end with the work they were made for."""

import multiprocessing
import os
import signal
import time
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
