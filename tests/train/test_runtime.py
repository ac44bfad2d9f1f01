"""[train.runtime] and what a machine lacks, on one CPU rank in this process."""

import json
import os
import re
import signal
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import ConfigError, InterruptedRun, MachineError
from tests.train.conftest import SETTINGS
from tests.train.runs import pipeline, share
from tests.train.test_launch import free_port
from train.launch import choose_backend, gpu_of, meet
from train.launchers import Address, Ranks
from train.plan import Plan
from train.run import run
from train.shortage import too_little
from train.stop import stopped_at_once

SHORT = {**SETTINGS, "max_steps": 1, "checkpoint": {"save_steps": 0}}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NCCL_IB_TIMEOUT", "CUBLAS_WORKSPACE_CONFIG", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)


def failing(monkeypatch: pytest.MonkeyPatch, fail: Any) -> None:
    def at_a_row(*_: Any, **__: Any) -> None:
        fail()

    monkeypatch.setattr("train.loop.row", at_a_row)


def test_variables_are_set_and_recorded(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = share(shards, tmp_path / "work")
    monkeypatch.setenv("NCCL_IB_TIMEOUT", "18")
    with caplog.at_level("INFO", "train"):
        run(pipeline(folder, **SHORT, runtime={"env": {"NCCL_IB_TIMEOUT": "22"}, "deterministic": True}))
    assert os.environ["NCCL_IB_TIMEOUT"] == "22"
    assert "train.runtime.env: NCCL_IB_TIMEOUT is 22 here, not 18" in caplog.text
    recorded = json.loads((folder / "tiny/train/run.json").read_bytes())
    assert recorded["environment"]["NCCL_IB_TIMEOUT"] == "22"
    assert recorded["deterministic"] is True
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled(), "as before the run"


def test_runtime_is_no_part_of_what_a_run_is(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    runtime = {"timeout_minutes": 1, "deterministic": True, "env": {"OMP_PROC_BIND": "true"}}
    assert Plan.of(pipeline(folder, runtime=runtime)).identity == Plan.of(pipeline(folder)).identity


def test_operation_without_a_deterministic_form_is_named(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda: torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0])))
    with pytest.raises(ConfigError, match=r"train.runtime.deterministic.*: put_ has no deterministic form in PyTorch"):
        run(pipeline(share(shards, tmp_path / "work"), **SHORT, runtime={"deterministic": True}))


def test_gpu_that_is_too_small_says_what_fits(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    failing(monkeypatch, fail)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2**30, 80 * 2**30))
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 60 * 2**30)
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 70 * 2**30)
    with pytest.raises(MachineError) as caught:
        run(pipeline(share(shards, tmp_path / "work"), **SHORT))
    assert str(caught.value).startswith(
        "rank 0, step 1, training: the GPU is out of memory (60.0 GB of 80.0 GB in use here, 10.0 GB reserved besides, "
        "9.0 GB by CUDA and other processes; packs of 40 tokens); by estimate this takes"
    )


def test_memory_that_is_too_small_is_told_of_before_training(tmp_path: Path, shards: Path) -> None:
    plan = Plan.of(pipeline(share(shards, tmp_path / "work")))
    assert too_little(plan, Ranks.alone(), 100 * 2**30) == ""
    assert too_little(plan, Ranks.alone(), 2**20).startswith("0.0 GB of this GPU are free: by estimate this takes")


def test_machine_without_memory_is_one_line(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise MemoryError

    failing(monkeypatch, fail)
    with pytest.raises(MachineError, match="rank 0, step 1, training: this machine is out of memory; use fewer ranks"):
        run(pipeline(share(shards, tmp_path / "work"), **SHORT))


def test_backend_goes_with_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def runtime(backend: str) -> Any:
        train = pipeline(tmp_path, runtime={"backend": backend}).train
        assert train is not None
        return train.runtime

    assert [choose_backend(runtime(backend)) for backend in ("auto", "gloo")] == ["gloo", "gloo"]
    with pytest.raises(MachineError, match='backend = "nccl": needs a CUDA device'):
        choose_backend(runtime("nccl"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert [choose_backend(runtime(backend)) for backend in ("auto", "nccl")] == ["nccl", "nccl"]
    with pytest.raises(MachineError, match='backend = "gloo": exchanges between CPUs'):
        choose_backend(runtime("gloo"))


def test_rank_takes_its_gpu_or_the_only_one_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    third = Ranks(rank=10, ranks=16, local_rank=2, local_ranks=8)
    for gpus, index in ((8, 2), (1, 0)):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        assert gpu_of(third) == index
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(MachineError, match=r"8 ranks on .*, which has 2 GPUs; start one rank a GPU"):
        gpu_of(third)


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"env": {"HF_TOKEN": "x"}}, "expected a name that begins with one of NCCL_"),
        ({"env": {"OMP_NUM_THREADS": 4}}, "expected text in quotes"),
        ({"timeout_minutes": 0}, "greater than 0"),
        ({"backend": "hccl"}, "'auto', 'nccl' or 'gloo'"),
    ],
    ids=str,
)
def test_values_that_cannot_be_are_refused(runtime: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(tmp_path, runtime=runtime)


def test_rank_that_does_not_come_is_named() -> None:
    second = timedelta(seconds=1)
    here = Address("127.0.0.1", free_port())
    with pytest.raises(MachineError, match=r"rank 1 of 2 did not come to 127.0.0.1:\d+ within 0.0166667 minutes"):
        meet(Ranks(0, 2, 0, 1, here), second)
    here = Address("127.0.0.1", free_port())
    with pytest.raises(MachineError, match=r"127.0.0.1:\d+, where rank 0 waits for the others: did not answer within"):
        meet(Ranks(1, 2, 0, 1, here), second)
    with socket.create_server(("", here.port)), pytest.raises(MachineError, match="waits for the others: is not free"):
        meet(Ranks(0, 2, 0, 1, here), second)


def test_rank_that_waits_for_others_ends_on_a_signal() -> None:
    here = Address("127.0.0.1", free_port())
    for rank, number in ((0, signal.SIGTERM), (1, signal.SIGUSR1), (1, signal.SIGINT)):
        begin = time.monotonic()
        later = threading.Timer(1, os.kill, (os.getpid(), number))
        later.start()
        with pytest.raises(InterruptedRun, match=f"stopped by {number.name} at once; the same"), stopped_at_once():
            meet(Ranks(rank, 2, 0, 1, here), timedelta(seconds=60))
        assert time.monotonic() - begin < 30


def test_machines_that_were_told_other_numbers_of_ranks_are_refused() -> None:
    here = Address("127.0.0.1", free_port())
    said: list[str] = []

    def join(rank: int, ranks: int) -> None:
        with pytest.raises(ConfigError) as refusal:
            meet(Ranks(rank, ranks, 0, 1, here), timedelta(seconds=60))
        said.append(str(refusal.value))

    first = threading.Thread(target=join, args=(0, 2))  # its rank 1 never comes: the other machine's are 2 and 3
    first.start()
    join(2, 4)
    first.join()
    assert re.match(r"rank 2 on \S+ was told of 4 ranks and rank 0 of 2; start the same number", said[0])
    assert re.match(r"rank 0 on \S+ was told of 2 ranks and others of 4; start the same number", said[1])
