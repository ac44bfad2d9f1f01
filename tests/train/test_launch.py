"""Ranks started by the command itself: their errors, their death, and how they are stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.errors import MachineError
from tests.train.runs import checkpoints, rows, same, share, write_prep, write_toml
from train.launch import raise_failure

pytestmark = pytest.mark.slow
PACKTRAIN = Path(sys.executable).with_name("packtrain")


def work(folder: Path, shards: Path, *lines: str) -> Path:
    share(shards, folder / "work")
    write_toml(folder, lines)
    return folder


@contextmanager
def training(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`packtrain train` as a process."""
    command = [str(PACKTRAIN), "train", "tiny.toml", *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_steps(folder: Path, steps: int) -> None:
    """Until the run has taken some steps."""
    deadline = time.monotonic() + 120
    while not (folder / "work/tiny/train/metrics.jsonl").is_file() or len(rows(folder / "work")) < steps:
        assert time.monotonic() < deadline, "the run takes no steps"
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Processes that a process started."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in listed.stdout.split()]


def test_command_starts_ranks_that_stop_and_continue(tmp_path: Path, shards: Path) -> None:
    whole = work(tmp_path / "whole", shards, "nproc_per_node = 2", "max_steps = 60")
    stopped = work(tmp_path / "stopped", shards, "nproc_per_node = 2", "max_steps = 60")
    with training(whole) as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "training 0.0M parameters on 2 x CPU: ZeRO 0, fp32, sdpa attention" in errors
    with training(stopped) as process:
        wait_for_steps(stopped, 3)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 75
        assert errors.splitlines()[-1].startswith("stopped by SIGTERM after step ")
        assert "torch/distributed" not in errors
        assert len(checkpoints(stopped / "work")) == 1
    with training(stopped) as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0
        assert "resuming after step" in errors
    assert same(stopped / "work", whole / "work")


def test_user_error_in_ranks_is_one_line_with_its_exit_code(tmp_path: Path) -> None:
    write_prep(tmp_path / "work/tiny/prep", vocabulary=64)
    write_toml(tmp_path, ["nproc_per_node = 2"])
    with training(tmp_path) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 3
    assert output == ""
    assert errors.startswith("work/tiny/prep: the shards hold token id 63")
    assert len(errors.splitlines()) == 1


def test_killed_rank_is_named_and_not_those_that_were_stopped_for_it(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"rank 1 was killed by SIGKILL \(out of memory\?\)"):
        raise_failure({1: -signal.SIGKILL}, tmp_path, tmp_path, None)


def test_rank_that_dies_ends_the_run(tmp_path: Path, shards: Path) -> None:
    folder = work(tmp_path / "run", shards, "nproc_per_node = 2", "max_steps = 100000")
    with training(folder) as process:
        wait_for_steps(folder, 2)
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 5
    assert errors.splitlines()[-1].startswith("rank 1 was killed by SIGKILL in step ")
    assert "Traceback" not in errors


def test_ranks_end_with_the_process_that_started_them(tmp_path: Path, shards: Path) -> None:
    folder = work(tmp_path / "run", shards, "nproc_per_node = 2", "max_steps = 100000")
    with training(folder) as process:
        wait_for_steps(folder, 2)
        ranks = ranks_of(process)
        process.kill()
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{rank}/cmdline").is_file() and _runs(rank) for rank in ranks):
            assert time.monotonic() < deadline, "a rank outlived its launcher"
            time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
