"""Ranks: finding out which one this process is, starting them, and bringing their errors home.

Ranks run the installed command (`packtrain train FILE`), as `torchrun --no-python` would start it: `-m train` would run
a user's own train.py. One rank on one machine needs no launcher and runs in this very process.
"""

import ctypes
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from pipelines.errors import (
    BusyError,
    CheckError,
    ConfigError,
    DataError,
    InterruptedRun,
    MachineError,
    PacktrainError,
)
from pipelines.schema import Train

ERRORS = "PACKTRAIN_RANK_ERRORS"
"""Directory where a rank that we started leaves the user's error it ended with."""
TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others in one collective."""
KINDS = (ConfigError, DataError, CheckError, MachineError, BusyError, InterruptedRun)


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a run."""

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int

    @classmethod
    def from_launcher(cls) -> "Ranks | None":
        """What torchrun or another launcher put into the environment; None if no launcher started this process."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return None
        ranks = int(os.environ["WORLD_SIZE"])
        return cls(
            rank=int(os.environ["RANK"]),
            ranks=ranks,
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            local_ranks=int(os.environ.get("LOCAL_WORLD_SIZE", ranks)),
        )

    @classmethod
    def alone(cls) -> "Ranks":
        return cls(rank=0, ranks=1, local_rank=0, local_ranks=1)


def started_here() -> bool:
    """Whether this process is a rank that `start_ranks` started."""
    return ERRORS in os.environ


def ranks_to_start(train: Train) -> int:
    """Ranks on this machine: as many as asked for, or one a GPU, or one."""
    if train.nproc_per_node != "auto":
        return train.nproc_per_node
    import torch

    return max(1, torch.cuda.device_count())


def start_ranks(count: int, arguments: Sequence[str]) -> None:
    """Run `packtrain ARGUMENTS` as `count` ranks and wait for them.

    Raises:
        PacktrainError: what the first rank that failed says, with its exit code; the others are stopped.
    """
    share_cores(count)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):  # it would repeat our errors, at length
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="packtrain-") as errors:
        os.environ[ERRORS] = errors
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=Path(errors).name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=0.1,
        )
        try:
            elastic_launch(config, str(_installed_command()))(*arguments)
        except ChildFailedError as failure:
            _raise_failure(failure.failures, Path(errors))
        except SignalException as stopped:
            _raise_left_behind(Path(errors))
            raise InterruptedRun(f"stopped by {stopped.sigval.name}; the same command continues") from stopped
        finally:
            del os.environ[ERRORS]


@contextmanager
def rank_errors(ranks: Ranks | None) -> Iterator[None]:
    """In a rank that we started: hand the user's errors to the process that started it, and end with their code."""
    errors = os.environ.get(ERRORS)
    try:
        yield
    except PacktrainError as error:
        if errors is None or ranks is None:
            raise
        content = {"rank": ranks.rank, "exit_code": error.exit_code, "message": str(error)}
        (Path(errors) / f"{ranks.rank:05d}.json").write_text(json.dumps(content), encoding="utf-8")
        _end(error.exit_code)
    except Exception:
        if errors is None or ranks is None:
            raise
        # When one rank fails, the others do too, waiting for it. Only the first one's traceback says why.
        (Path(errors) / f"{ranks.rank:05d}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        _end(1)


@contextmanager
def process_group(ranks: Ranks) -> Iterator[None]:
    """Join the ranks, in an environment that the libraries keep quiet in."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))  # DeepSpeed reads it
    if has_gpu:
        torch.cuda.set_device(ranks.local_rank)
    from_environment = ranks.ranks > 1
    dist.init_process_group(
        "nccl" if has_gpu else "gloo",
        rank=ranks.rank,
        world_size=ranks.ranks,
        timeout=TIMEOUT,
        store=None if from_environment else HashStore(),
        init_method="env://" if from_environment else None,
    )
    import deepspeed
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Without this, DeepSpeed tries a compiler on each of its operators, and builds one for gloo, which serves without.
    deepspeed.ops.__compatible_ops__ = {}
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    try:
        yield
    except BaseException:
        if ranks.ranks == 1:  # else it would wait for ranks that may be gone
            deepspeed.comm.destroy_process_group()
        raise
    deepspeed.comm.destroy_process_group()  # also forgets its own groups


def prepare_environment(ranks: Ranks) -> None:
    """Set what has to stand in the environment before torch is imported."""
    share_cores(ranks.local_ranks)
    # What libraries deprecate in each other is no business of the user's.
    warnings.filterwarnings("ignore", module=r"(torch|deepspeed|transformers)\b")
    if started_here():
        _die_with_parent()
    if ranks.rank:
        for name in ("pipelines", "train"):
            logging.getLogger(name).setLevel(logging.ERROR)


def share_cores(local_ranks: int) -> None:
    """Give each rank of this machine its share of the cores, unless the user decided."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // local_ranks)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if "MASTER_ADDR" not in os.environ and sys.platform == "linux":
        # Ranks of one machine meet on its loopback, whatever its host name resolves to.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def hosts() -> list[str]:
    """Host names of all ranks, in rank order, each once."""
    import torch.distributed as dist

    names: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(names, socket.gethostname())
    return list(dict.fromkeys(name for name in names if name))


def _end(exit_code: int) -> NoReturn:
    # At once: tearing down would wait for ranks that wait for this one. The launcher stops those.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _installed_command() -> Path:
    beside_python = Path(sys.executable).with_name("packtrain")
    found = beside_python if beside_python.is_file() else shutil.which("packtrain")
    if found is None:
        raise MachineError("the command packtrain is not installed; run pip install in this environment")
    return Path(found)


def _raise_failure(failures: Mapping[int, Any], errors: Path) -> None:
    """Raise what ended the first rank that failed."""
    _raise_left_behind(errors)
    # The launcher ends the other ranks by SIGTERM, so one that another signal killed is the one it began with.
    killed = [(one.exitcode == -signal.SIGTERM, rank) for rank, one in failures.items() if one.exitcode < 0]
    if killed:
        _, rank = min(killed)
        name = signal.Signals(-failures[rank].exitcode).name
        reason = " (out of memory?)" if name == "SIGKILL" else ""
        raise MachineError(f"rank {rank} was killed by {name}{reason}; the same command continues the run")
    for path in sorted(errors.glob("*.txt"), key=lambda path: path.stat().st_mtime_ns):
        sys.stderr.write(path.read_text(encoding="utf-8"))
        raise PacktrainError(f"rank {int(path.stem)} failed, see above; this is a bug of packtrain or of a library")
    rank, one = min(failures.items())
    raise PacktrainError(f"rank {rank} ended with exit code {one.exitcode}")


def _raise_left_behind(errors: Path) -> None:
    """Raise the user's error that a rank left, if one did; the lowest rank's if all have their own."""
    found = [json.loads(path.read_bytes()) for path in sorted(errors.glob("*.json"))]
    for content in found:
        kind = next((kind for kind in KINDS if kind.exit_code == content["exit_code"]), PacktrainError)
        everyone = len({other["message"] for other in found}) == 1 and len(found) > 1
        who = "" if everyone or content["rank"] == 0 else f"rank {content['rank']}: "
        raise kind(f"{who}{content['message']}")


def _die_with_parent() -> None:
    # A rank whose launcher was killed would go on writing into the directory of the next run.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
