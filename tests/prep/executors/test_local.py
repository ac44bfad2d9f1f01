"""Chunks in processes of this machine: they stop at once, and never outlive the command."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.artifacts import Manifest
from pipelines.config import load
from pipelines.errors import DataError, MachineError
from prep.formats import lines
from prep.run import run
from tests.prep.executors.maps import OBEDIENT, asking, noted
from tests.prep.small import MakePipeline, conversations


def test_a_worker_that_dies_is_told_and_leaves_nothing_finished(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 200)
    file = make_pipeline(conversations(5) + asking(conversations(1), die=True) + conversations(5))
    with pytest.raises(MachineError, match=r"a worker process died.*lower prep\.workers"):
        run(load(file, [OBEDIENT]), workers=2)
    assert Manifest.read(load(file).home / "prep") is None
    assert not multiprocessing.active_children()


def test_the_first_fault_stops_the_work_on_later_chunks(
    make_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 200)
    later = asking(conversations(1), stay=True, note=str(tmp_path / "works"))
    file = make_pipeline("{" + " " * 300 + "\n" + later * 5)
    with pytest.raises(DataError, match=r"a\.jsonl:1:\d+: not valid JSON"):
        run(load(file, [OBEDIENT]), workers=2)
    assert not multiprocessing.active_children()


def started(file: Path, note: Path) -> tuple["subprocess.Popen[str]", int]:
    """The command, and the process id of a worker that is in the middle of its work."""
    command = [sys.executable, "-m", "pipelines", "prep", str(file), "--workers", "2", "--set", OBEDIENT]
    former = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, and so would this
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, former)
    while not (workers := noted(note)):
        assert process.poll() is None
        time.sleep(0.02)
    return process, min(workers)


@pytest.fixture
def endless(make_pipeline: MakePipeline, tmp_path: Path) -> Path:
    """A pipeline that is never done: the second of its files stays at work."""
    file = make_pipeline(asking(conversations(1), stay=True, note=str(tmp_path / "works")))
    (tmp_path / "data" / "b.jsonl").write_bytes((tmp_path / "data" / "a.jsonl").read_bytes())
    return file


def test_an_interrupt_ends_all_processes_with_one_line(endless: Path, tmp_path: Path) -> None:
    process, worker = started(endless, tmp_path / "works")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    _, told = process.communicate()
    assert process.returncode == 75
    assert told.splitlines()[-1] == "interrupted; the same command continues"
    assert "Traceback" not in told
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_workers_end_when_the_command_is_killed(endless: Path, tmp_path: Path) -> None:
    process, _ = started(endless, tmp_path / "works")
    process.kill()
    process.communicate(timeout=60)  # the workers hold the same stderr, so it ends with the last of them
