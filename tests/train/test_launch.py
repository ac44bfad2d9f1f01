"""Ranks started by the command itself: their errors, their death, and how they are stopped."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

import pytest

from pipelines.errors import MachineError
from tests.train.runs import checkpoints, same, share, write_prep, write_toml
from train.launch import ERRORS, raise_failure, rank_errors, start_ranks
from train.launchers import Address, Node, Ranks
from train.pulse import FAILURE, FOLDER, Beat, machine

pytestmark = pytest.mark.slow
PACKTRAIN = Path(sys.executable).with_name("packtrain")
STEPS = 150
PATIENCE_S = 600
"""So long that a machine that does many other things does not matter."""


def work(folder: Path, shards: Path, *lines: str) -> Path:
    share(shards, folder / "work")
    write_toml(folder, lines)
    return folder


@contextmanager
def training(
    folder: Path, launcher: str = "", *, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[subprocess.Popen[str]]:
    """`packtrain train` as a process, below a launcher."""
    command = [*launcher.split(), str(PACKTRAIN), "train", "tiny.toml"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PATH": path(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def path(folder: Path) -> str:
    """PATH with the commands of this installation, and with what stands for Slurm's."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name in ("srun", "scontrol"):
        if not (tools / name).exists():
            (tools / name).symlink_to(Path(__file__).with_name("slurm.py"))
    return f"{tools}:{PACKTRAIN.parent}:{os.environ['PATH']}"


def stop(folder: Path, process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal after some more steps."""
    wait_for_steps(folder, process)
    process.send_signal(number)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_steps(folder: Path, process: subprocess.Popen[str], more: int = 3) -> None:
    """Until the run has taken some more steps."""
    metrics = folder / "work/tiny/train/metrics.jsonl"
    before = metrics.read_bytes().count(b"\n") if metrics.is_file() else 0
    deadline = time.monotonic() + PATIENCE_S
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < before + more:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the run takes no steps"
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Processes that a process started."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in listed.stdout.split()]


def test_every_launcher_trains_the_same_and_every_signal_saves(tmp_path: Path, shards: Path) -> None:
    keys = ("nproc_per_node = 2", f"max_steps = {STEPS}")
    whole, parts = work(tmp_path / "whole", shards, *keys), work(tmp_path / "parts", shards, *keys)
    with training(whole) as process:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
        assert "training 0.0M parameters on 2 x CPU: ZeRO 0, fp32, sdpa attention" in errors
        assert not (whole / "work/tiny/train/ranks").exists()

    with training(parts) as process:  # the process that starts the ranks gets the signal
        stop(parts, process, signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 75, errors
        assert re.search(r"stopped by SIGTERM after step \d+, saved", errors.splitlines()[-1])
        assert "torch/distributed" not in errors
        assert len(checkpoints(parts / "work")) == 1

    (parts / "tiny.toml").write_text((parts / "tiny.toml").read_text().replace("nproc_per_node = 2\n", ""))
    by_hand = {"NNODES": "2", "NPROC_PER_NODE": "1", "ADDR": "127.0.0.1", "PORT": str(free_port())}
    with (
        training(parts, environment={**by_hand, "NODE_RANK": "0"}) as first,
        training(parts, environment={**by_hand, "NODE_RANK": "1"}) as second,
    ):
        wait_for_steps(parts, first)
        os.kill(ranks_of(second)[0], signal.SIGUSR1)  # one rank, and not that which saves
        for process in (first, second):
            _, errors = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 75, errors
            assert re.search(r"stopped by SIGUSR1 after step \d+, saved", errors.splitlines()[-1])

    two_tasks = {"SLURM_JOB_ID": str(free_port()), "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "2"}
    with training(parts, "srun", environment=two_tasks) as process:
        stop(parts, process, signal.SIGUSR1)
        assert process.wait(timeout=PATIENCE_S) == 75

    with training(parts, "torchrun --standalone --no-python --nproc-per-node 2") as process:
        stop(parts, process, signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1, "torchrun keeps no exit code"
        assert re.search(r"stopped by SIGTERM after step \d+, saved", errors)

    deepspeed = f"deepspeed --num_gpus 2 --no_python --master_port {free_port()}"
    with training(parts, deepspeed, environment={"DS_ACCELERATOR": "cpu"}) as process:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
    assert same(parts / "work", whole / "work")


def test_user_error_in_ranks_is_one_line_with_its_exit_code(tmp_path: Path) -> None:
    write_prep(tmp_path / "work/tiny/prep", vocabulary=64)
    write_toml(tmp_path, ["nproc_per_node = 2"])
    with training(tmp_path) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3
    assert output == ""
    assert errors.startswith("work/tiny/prep: the shards hold token id 63")
    assert len(errors.splitlines()) == 1


def test_a_disk_that_fails_under_a_rank_is_the_users_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.launch._end", sys.exit)
    with pytest.raises(SystemExit, match=r"^5$"), rank_errors(Ranks(1, 2, 1, 2)):
        raise OSError(errno.EIO, "Input/output error", "shards/a.arrow")
    assert capsys.readouterr().err.startswith("shards/a.arrow: Input/output error")


def test_a_rank_that_cannot_leave_its_error_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.launch._end", sys.exit)
    monkeypatch.setenv(ERRORS, str(tmp_path / "on a full disk"))
    for error, code, said in ((MachineError("no room"), 5, r"^no room\n$"), (KeyError("x"), 1, r"KeyError: 'x'\n$")):
        with pytest.raises(SystemExit, match=f"^{code}$"), rank_errors(Ranks(1, 2, 1, 2)):
            raise error
        assert re.search(said, capsys.readouterr().err)
    with pytest.raises(MachineError, match=r"rank 1 ended with exit code 5; what it said stands above"):
        raise_failure({1: 5}, tmp_path, {}, None)


def test_killed_rank_is_named_and_not_those_that_were_stopped_for_it(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"rank 1 was killed by SIGKILL \(out of memory\?\)"):
        raise_failure({1: -signal.SIGKILL}, tmp_path, {}, None)


def test_what_another_run_left_or_does_is_no_business_of_ranks_that_never_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.launch._installed_command", lambda: Path("/bin/sh"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / FOLDER).mkdir()
    said = Beat(rank=1, host="b", machine=machine(), pid=os.getpid(), step=41, doing="training")
    file = tmp_path / FOLDER / "00001.json"
    file.write_text(json.dumps(asdict(said)))
    second = Node(1, 2, Address("127.0.0.1", 1))
    with pytest.raises(MachineError, match=r"^rank 1 was killed by SIGKILL \(out of memory\?\)"):
        start_ranks(second, 1, ["-c", "kill -9 $$"], home=tmp_path)
    assert list((tmp_path / FOLDER).iterdir()) == [file], "it may be of a run that goes on"

    says_it = f'sed -i s/{os.getpid()}/$$/ "$0"; kill -9 $$'
    with pytest.raises(MachineError, match=r"^rank 1 was killed by SIGKILL in step 41, training \(out"):
        start_ranks(second, 1, ["-c", says_it, str(file)], home=tmp_path)
    assert "killed by SIGKILL in step 41" in json.loads((tmp_path / FOLDER / FAILURE).read_bytes())["message"]


def test_rank_that_dies_or_hangs_is_named_with_its_step(tmp_path: Path, shards: Path) -> None:
    folder = work(
        tmp_path / "run", shards, "nproc_per_node = 2", "max_steps = 100000", "runtime.timeout_minutes = 0.25"
    )
    with training(folder) as process:
        wait_for_steps(folder, process, 2)
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 5
    assert re.match(r"rank 1 was killed by SIGKILL in step \d+, \w+ \(out of memory\?\)", errors.splitlines()[-1])
    assert "Traceback" not in errors
    with training(folder) as process:
        wait_for_steps(folder, process, 2)
        os.kill(ranks_of(process)[0], signal.SIGSTOP)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 5
    assert re.match(r"rank 0 on \S+ \(process \d+\) is stopped, in step \d+, \w+; the same", errors.splitlines()[-1])


def test_ranks_of_another_launcher_end_by_themselves(tmp_path: Path, shards: Path) -> None:
    folder = work(tmp_path / "run", shards, "max_steps = 100000")
    three_tasks = {"SLURM_JOB_ID": str(free_port()), "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "3"}
    with training(folder, "srun", environment=three_tasks) as process:
        wait_for_steps(folder, process, 2)
        os.kill(ranks_of(process)[2], signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGKILL, "the highest of 5, 5 and this"
    said = [line for line in errors.splitlines() if line.startswith("rank 2 on ")]
    assert len(said) == 2
    assert all(re.search(r"\(process \d+\) is gone, in step \d+, \w+; the same command", line) for line in said)


def test_ranks_end_with_the_process_that_started_them(tmp_path: Path, shards: Path) -> None:
    folder = work(tmp_path / "run", shards, "nproc_per_node = 2", "max_steps = 100000")
    with training(folder) as process:
        wait_for_steps(folder, process, 2)
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
