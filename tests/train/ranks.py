"""Several ranks on this machine for a test, each a process of its own."""

import logging
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.errors import PacktrainError

_context = multiprocessing.get_context("forkserver")
# The imports are most of what a rank costs, so they are made once, in the process that ranks are forked from.
_context.set_forkserver_preload(["deepspeed", "train.loop", "tests.train.runs"])


def run_on_ranks(ranks: int, work: Callable[..., None], *arguments: Any, timeout_s: int = 600) -> list[int]:
    """Call `work(*arguments)` on every rank, over gloo.

    Returns:
        The exit code of each rank: 0, that of the user's error it raised, or minus the signal that ended it.
    """
    port = _free_port()
    processes = [
        _context.Process(target=_rank, args=(rank, ranks, port, work, arguments), daemon=True) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode or 0 for process in processes]


def run_in_turn(ranks: int, works: Sequence[Callable[[], None]], *, timeout_s: int = 600) -> list[int]:
    """Call one thing after the other on every rank, each with a process group of its own; the ranks start once."""
    return run_on_ranks(ranks, _in_turn, works, [_free_port() for _ in works], timeout_s=timeout_s)


def _in_turn(works: Sequence[Callable[[], None]], ports: Sequence[int]) -> None:
    for work, port in zip(works, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        work()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _rank(rank: int, ranks: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    try:
        work(*arguments)
    except PacktrainError as error:
        logging.getLogger(__name__).error("%s", error)
        os._exit(error.exit_code)
