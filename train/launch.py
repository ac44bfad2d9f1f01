"""Ranks: starting those of this machine, joining them with the others, and bringing their errors home.

Ranks run the installed command (`packtrain train FILE`), as `torchrun --no-python` would start it: `-m train` would run
a user's own train.py. One rank on one machine runs in this very process.
"""

import ctypes
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines.errors import (
    BusyError,
    CheckError,
    ConfigError,
    DataError,
    InterruptedRun,
    MachineError,
    PacktrainError,
)
from pipelines.failing_disk import storage_error
from pipelines.schema import Runtime, Train
from train.launchers import Address, Node, Ranks
from train.pulse import FOLDER, Beat, LostRanks, joining, leave_failure, machine, read_beat
from train.stop import SIGNALS

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

log = logging.getLogger(__name__)

ERRORS = "PACKTRAIN_RANK_ERRORS"
"""Directory where a rank that we started leaves the error it ended with."""
LISTENING = "PACKTRAIN_RANK_LISTENING"
"""The socket that rank 0 was given to wait at, open already so that nobody else takes its port."""
KINDS = (ConfigError, DataError, CheckError, MachineError, BusyError, InterruptedRun)
GRACE_S = 15.0
"""How long ranks may take to end by themselves after one of them failed."""
TURN = timedelta(seconds=1)
"""How long a rank waits for others before it looks whether it got a signal."""
DEFAULTS = Runtime()


def started_here() -> bool:
    """Whether this process is a rank that `start_ranks` started."""
    return ERRORS in os.environ


def ranks_to_start(train: Train) -> int:
    """Ranks on this machine where the launcher does not count them: as the file says, or one a GPU, or one."""
    if train.nproc_per_node != "auto":
        return train.nproc_per_node
    import torch

    return max(1, torch.cuda.device_count())


def start_ranks(node: Node, count: int, arguments: Sequence[str], *, home: Path) -> None:
    """Run `packtrain ARGUMENTS` as the `count` ranks of this machine and wait for them.

    SIGTERM, SIGINT and SIGUSR1 are passed on once, and the ranks then have as long as they need to save; a second
    SIGINT ends them at once.

    Args:
        home: where the ranks keep their pulse.
    Raises:
        PacktrainError: what the first rank that failed says, with its exit code; the others are ended.
    """
    share_cores(count)
    command = [str(_installed_command()), *arguments]
    with tempfile.TemporaryDirectory(prefix="packtrain-") as errors:
        with _Children() as children:
            with _Listening(node) as at:
                for local in range(count):
                    one = Ranks(node.node * count + local, node.nodes * count, local, count, at.address)
                    variables = {**_variables(one), ERRORS: errors, **at.variables(one)}
                    children.start(one.rank, command, variables, at.handles(one))
            ended = children.wait()
        failed = {rank: code for rank, code in ended.items() if code}
        if len(ended) == count and not failed:
            return
        beats = children.beats(home / FOLDER)
        try:
            raise_failure(failed, Path(errors), beats, children.stopped_by)
        except PacktrainError as error:
            first = min(failed, default=None)
            # Without a pulse there it never was of the run whose ranks read that directory.
            if node.nodes > 1 and first in beats and not isinstance(error, LostRanks | InterruptedRun):
                leave_failure(home / FOLDER, rank=first, message=str(error), exit_code=error.exit_code)
            raise


class _Children:
    """The processes of this machine's ranks, which get the signals that this process gets."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._signals: list[signal.Signals] = []
        self._former: dict[signal.Signals, Any] = {}

    @property
    def stopped_by(self) -> signal.Signals | None:
        """The signal that this process got first."""
        return self._signals[0] if self._signals else None

    def __enter__(self) -> "_Children":
        self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def start(self, rank: int, command: Sequence[str], variables: Mapping[str, str], handles: Sequence[int]) -> None:
        # In a session of its own, the keyboard's SIGINT reaches it through this process alone, and so once.
        self._processes[rank] = subprocess.Popen(  # noqa: S603
            command, env={**os.environ, **variables}, pass_fds=handles, start_new_session=True
        )

    def wait(self) -> dict[int, int]:
        """Until all have ended; when one failed, those left have a grace, and are killed then.

        Returns:
            The exit code of each rank that ended by itself, or minus the signal that ended it.
        """
        ended: dict[int, int] = {}
        passed_on, deadline = False, float("inf")
        while len(ended) < len(self._processes):
            ended |= {rank: code for rank, one in self._processes.items() if (code := one.poll()) is not None}
            if self._signals and not passed_on:
                passed_on = True
                for rank in self._processes.keys() - ended.keys():
                    self._processes[rank].send_signal(self._signals[0])
            if any(ended.values()):
                deadline = min(deadline, time.monotonic() + GRACE_S)
            if time.monotonic() > deadline or self._signals.count(signal.SIGINT) > 1:
                break
            time.sleep(0.05)
        return ended

    def beats(self, folder: Path) -> dict[int, Beat]:
        """What these very processes said last, by rank; a former run or another one may have left files there too."""
        found = ((rank, one.pid, read_beat(folder, rank)) for rank, one in self._processes.items())
        return {rank: beat for rank, pid, beat in found if beat and (beat.pid, beat.machine) == (pid, machine())}

    def _note(self, number: int, _: object) -> None:
        self._signals.append(signal.Signals(number))


class _Listening:
    """Where rank 0 waits: as the launch says, or on one machine at a free port, open until rank 0 has it."""

    def __init__(self, node: Node) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0)) if node.address is None else None
        self.address = node.address or Address("127.0.0.1", self._port())

    def __enter__(self) -> "_Listening":
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()

    def handles(self, ranks: Ranks) -> tuple[int, ...]:
        return () if self._socket is None or ranks.rank else (self._socket.fileno(),)

    def variables(self, ranks: Ranks) -> dict[str, str]:
        handles = self.handles(ranks)
        return {LISTENING: str(handles[0])} if handles else {}

    def _port(self) -> int:
        assert self._socket is not None
        port: int = self._socket.getsockname()[1]
        return port


@contextmanager
def rank_errors(ranks: Ranks | None) -> Iterator[None]:
    """In one rank of several: end at once with the user's error, handed to the process that started it, if we did.

    Tearing down would wait for ranks that wait for this one.
    """
    try:
        yield
    except PacktrainError as error:
        if ranks is None or ranks.ranks == 1:
            raise
        end_rank(ranks, error)
    except Exception as error:
        if ranks is None or ranks.ranks == 1:
            raise
        if isinstance(error, OSError) and (found := storage_error(error)):
            end_rank(ranks, found)
        # When one rank fails, the others do too, waiting for it. Only the first one's traceback says why.
        if not _left(f"{ranks.rank:05d}.txt", traceback.format_exc()):
            traceback.print_exc()
        _end(1)


def end_rank(ranks: Ranks, error: PacktrainError) -> NoReturn:
    """End this process with an error of the user's: left for the process that started it, or printed."""
    content = {
        "rank": ranks.rank,
        "exit_code": error.exit_code,
        "message": str(error),
        "lost": isinstance(error, LostRanks),
    }
    if not _left(f"{ranks.rank:05d}.json", json.dumps(content)):
        sys.stderr.write(f"{error}\n")
    _end(error.exit_code)


def leave(ranks: Ranks, failure: Mapping[str, Any]) -> NoReturn:
    """End this rank because of another one's failure, with its exit code."""
    lost = LostRanks(failure["message"])
    lost.exit_code = failure["exit_code"]
    end_rank(ranks, lost)


@contextmanager
def process_group(ranks: Ranks, runtime: Runtime = DEFAULTS) -> Iterator[None]:
    """Join the ranks, in an environment that the libraries keep quiet in.

    Raises:
        MachineError: if ranks do not come in time, by name, or a device is missing.
        ConfigError: if ranks were told different numbers of ranks.
    """
    import torch
    import torch.distributed as dist

    backend = choose_backend(runtime)
    has_gpu = backend == "nccl"
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    index = gpu_of(ranks) if has_gpu else ranks.local_rank
    os.environ["LOCAL_RANK"] = str(index)  # DeepSpeed takes it for the device
    if has_gpu:
        torch.cuda.set_device(index)
    store = meet(ranks, runtime.timeout)
    with joining():
        dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.ranks, timeout=runtime.timeout, store=store)
    import deepspeed
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Without this, DeepSpeed tries a compiler on each of its operators, and builds one for gloo, which serves without.
    deepspeed.ops.__compatible_ops__ = {}
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(runtime.deterministic)
    try:
        yield
    except BaseException:
        if ranks.ranks == 1:  # else it would wait for ranks that may be gone
            deepspeed.comm.destroy_process_group()
        raise
    else:
        deepspeed.comm.destroy_process_group()  # also forgets its own groups
    finally:
        torch.use_deterministic_algorithms(was_deterministic)


def meet(ranks: Ranks, timeout: timedelta) -> "Store":
    """The store of a run, once all its ranks are there."""
    import torch.distributed as dist

    if ranks.ranks == 1:
        from torch._C._distributed_c10d import HashStore

        return HashStore()
    waited = f"{timeout.total_seconds() / 60:g} minutes (train.runtime.timeout_minutes)"
    try:
        store = _open_store(ranks, timeout)
        store.set(f"packtrain/{ranks.rank}", str(ranks.ranks))
        keys = [f"packtrain/{rank}" for rank in range(ranks.ranks)]
        _wait(store, keys[:1], timeout)
        if (theirs := int(store.get(keys[0]))) != ranks.ranks:
            for rank in range(1, theirs):  # so that those who wait for ranks that never come learn it, too
                store.set(f"packtrain/{rank}", str(ranks.ranks))
            raise ConfigError(
                f"rank {ranks.rank} on {socket.gethostname()} was told of {ranks.ranks} ranks and rank 0 of {theirs}; "
                "start the same number of ranks on every machine"
            )
        _wait(store, keys, timeout)
        if others := {told for told in map(int, store.multi_get(keys)) if told != ranks.ranks}:
            raise ConfigError(
                f"rank {ranks.rank} on {socket.gethostname()} was told of {ranks.ranks} ranks and others of "
                f"{min(others)}; start the same number of ranks on every machine"
            )
    except dist.DistNetworkError as error:
        what = "is not free" if ranks.rank == 0 else f"did not answer within {waited}"
        raise MachineError(
            f"{ranks.address}, where rank 0 waits for the others: {what}; check MASTER_ADDR and MASTER_PORT ({error})"
        ) from error
    except dist.DistStoreError as error:
        late = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
        raise MachineError(
            f"{'rank' if len(late) == 1 else 'ranks'} {', '.join(late)} of {ranks.ranks} did not come to "
            f"{ranks.address} within {waited}; see what those say"
        ) from error
    return store


def _wait(store: "Store", keys: list[str], timeout: timedelta) -> None:
    # In turns: Python acts on a signal only between them.
    from torch.distributed import DistStoreError

    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            store.wait(keys, min(TURN, timedelta(seconds=max(0.1, deadline - time.monotonic()))))
        except DistStoreError:
            if time.monotonic() > deadline:
                raise
        else:
            return


def _open_store(ranks: Ranks, timeout: timedelta) -> "Store":
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed.rendezvous import rendezvous

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun keeps one
        store: Store = next(rendezvous("env://", timeout=timeout))[0]
        return store
    assert ranks.address is not None
    handle = os.environ.get(LISTENING)
    if ranks.rank:
        _wait_for_answer(ranks.address, timeout)
    return TCPStore(
        ranks.address.host,
        ranks.address.port,
        is_master=ranks.rank == 0,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=None if handle is None else int(handle),
    )


def _wait_for_answer(address: Address, timeout: timedelta) -> None:
    # PyTorch waits as well, but deaf to signals, and prints its stack when time is up.
    from torch.distributed import DistNetworkError

    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            socket.create_connection((address.host, address.port), timeout=10).close()
        except OSError as error:  # the host's name may not be known yet
            if time.monotonic() > deadline:
                raise DistNetworkError(str(error)) from error
            time.sleep(0.2)
        else:
            return


def choose_backend(runtime: Runtime) -> str:
    """How ranks exchange on this machine: nccl with GPUs, gloo without.

    Raises:
        MachineError: if the one asked for does not go with the device.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if runtime.backend == "nccl" and not has_gpu:
        raise MachineError('train.runtime.backend = "nccl": needs a CUDA device, and there is none; use "auto"')
    if runtime.backend == "gloo" and has_gpu:
        raise MachineError(
            'train.runtime.backend = "gloo": exchanges between CPUs; use "auto", or set CUDA_VISIBLE_DEVICES= to train '
            "on the CPU"
        )
    return "nccl" if has_gpu else "gloo"


def gpu_of(ranks: Ranks) -> int:
    """The GPU of this rank among those it sees: the only one, where the launcher shows each rank its own.

    Raises:
        MachineError: if there are fewer GPUs than ranks.
    """
    import torch

    gpus = torch.cuda.device_count()
    if ranks.local_rank < gpus:
        return ranks.local_rank
    if gpus == 1 and not started_here():
        return 0
    raise MachineError(
        f"{ranks.local_ranks} ranks on {socket.gethostname()}, which has {gpus} {'GPU' if gpus == 1 else 'GPUs'}; "
        "start one rank a GPU"
    )


def limit_exchanges(timeout: timedelta) -> None:
    """Give every group of ranks the run's timeout; those that DeepSpeed makes have PyTorch's own."""
    from torch.distributed import distributed_c10d

    for group in distributed_c10d._world.pg_map:
        distributed_c10d._set_pg_timeout(timeout, group)


def set_environment(runtime: Runtime) -> None:
    """Set the variables of train.runtime.env, and what its other keys need there, before torch is imported."""
    for name, value in runtime.env.items():
        if os.environ.get(name, value) != value and not started_here():
            log.info("train.runtime.env: %s is %s here, not %s", name, value, os.environ[name])
        os.environ[name] = value
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may add up in another order


def prepare_environment(ranks: Ranks) -> None:
    """Set what has to stand in the environment before torch is imported."""
    share_cores(ranks.local_ranks)
    # What libraries deprecate in each other is no business of the user's.
    warnings.filterwarnings("ignore", module=r"(torch|deepspeed|transformers)\b")
    if sys.platform == "linux" and (ranks.address is None or ranks.address.is_loopback):
        # Ranks of one machine meet on its loopback, whatever its host name resolves to.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if ranks.ranks > 1:
        os.environ.update(_variables(ranks))  # for libraries, whatever the launcher calls them
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


def hosts() -> list[str]:
    """Host names of all ranks, in rank order, each once."""
    import torch.distributed as dist

    names: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(names, socket.gethostname())
    return list(dict.fromkeys(name for name in names if name))


def _variables(ranks: Ranks) -> dict[str, str]:
    # As torchrun sets them.
    assert ranks.address is not None
    return {
        "RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.ranks),
        "LOCAL_RANK": str(ranks.local_rank),
        "LOCAL_WORLD_SIZE": str(ranks.local_ranks),
        "MASTER_ADDR": ranks.address.host,
        "MASTER_PORT": str(ranks.address.port),
    }


def _errors() -> Path:
    return Path(os.environ[ERRORS])


def _left(name: str, content: str) -> bool:
    """Leave what this rank ended with for the process that started it; False if none did, or the disk is full."""
    if not started_here():
        return False
    path = _errors() / name
    try:
        path.write_text(content, encoding="utf-8")
    except OSError:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return False
    return True


def _end(exit_code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more, or its disk is full
            stream.flush()
    os._exit(exit_code)


def _installed_command() -> Path:
    beside_python = Path(sys.executable).with_name("packtrain")
    found = beside_python if beside_python.is_file() else shutil.which("packtrain")
    if found is None:
        raise MachineError("the command packtrain is not installed; run pip install in this environment")
    return Path(found)


def raise_failure(
    failed: Mapping[int, int], errors: Path, beats: Mapping[int, Beat], stopped_by: signal.Signals | None
) -> NoReturn:
    """Raise what ended the first rank that failed.

    Args:
        failed: exit codes of the ranks that ended by themselves, below 0 for a signal.
        errors: where they left what they ended with.
        beats: what they said last of what they do.
        stopped_by: the signal that was passed on to them.
    """
    left = [json.loads(path.read_bytes()) for path in sorted(errors.glob("*.json"))]
    _raise_left_behind([content for content in left if not content["lost"]])
    if stopped_by is not None:
        # Before the first step there is nothing to save, and a signal ends a rank as it ends any process.
        raise InterruptedRun(f"stopped by {stopped_by.name}; the same command continues")
    for rank, code in sorted(failed.items()):
        if code < 0:
            name = signal.Signals(-code).name
            where = f" in {beats[rank].place}" if rank in beats else ""
            reason = " (out of memory?)" if name == "SIGKILL" else ""
            raise MachineError(f"rank {rank} was killed by {name}{where}{reason}; the same command continues the run")
    for path in sorted(errors.glob("*.txt"), key=lambda path: path.stat().st_mtime_ns):
        sys.stderr.write(path.read_text(encoding="utf-8"))
        raise PacktrainError(f"rank {int(path.stem)} failed, see above; this is a bug of packtrain or of a library")
    _raise_left_behind(left)
    rank, code = min(failed.items())
    raise _kind(code)(f"rank {rank} ended with exit code {code}; what it said stands above")


def _raise_left_behind(found: Sequence[Mapping[str, Any]]) -> None:
    """Raise the error that ranks left, if one did; the lowest rank's if all have their own."""
    for content in found:
        kind = LostRanks if content["lost"] else _kind(content["exit_code"])
        everyone = len({other["message"] for other in found}) == 1 and len(found) > 1
        who = "" if everyone or content["rank"] == 0 or content["lost"] else f"rank {content['rank']}: "
        error = kind(f"{who}{content['message']}")
        error.exit_code = content["exit_code"]
        raise error


def _kind(exit_code: int) -> type[PacktrainError]:
    return next((kind for kind in KINDS if kind.exit_code == exit_code), PacktrainError)


def _die_with_parent() -> None:
    # A rank whose launcher was killed would go on writing into the directory of the next run.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
