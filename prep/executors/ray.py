"""Chunks tokenized by tasks of a Ray cluster whose machines share a file system.

Only bounds and faults travel; the tokens go to the shared file system. Ray runs again elsewhere what a lost machine was
at, and chunks that it had finished stay finished.
"""

import logging
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.errors import MachineError, PacktrainError
from prep.chunk import Chunk, Rules, tokenize_chunk
from prep.formats.fault import RecordFault
from prep.job import versions

CHUNKS_PER_TASK = 16
"""At most: a task costs Ray about a millisecond, and chunks of small files less than that."""
TASKS_PER_CPU = 4
"""Tasks that Ray knows of at once, so that memory does not grow with the data."""
RETRIES = 5
"""How often a task runs again when its machine or process was lost."""

Work = Sequence[tuple[Chunk, Path]]
Found = list[RecordFault | None] | PacktrainError | OSError
"""What a task gives: each chunk's fault or None up to the first fault, or why it could not work."""


def on_ray(work: Work, rules: Rules) -> Generator[RecordFault | None, None, None]:
    """Tokenize each chunk into its directory; yields its fault or None, in order.

    Raises:
        MachineError: if Ray is missing or unreachable, a machine has other versions than this one, or tasks keep dying.
    """
    if not work:
        return
    ray = _import_ray()
    with _connected(ray):
        try:
            with closing(_results(ray, work, rules)) as results:
                for found in results:
                    if isinstance(found, Exception):
                        raise found
                    yield from found
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ImportError | RuntimeError | ray.exceptions.RaySystemError):
                reason = str(error.cause).strip().splitlines()[-1]  # Ray's own words for what it could not load
                raise MachineError(f"ray: {reason}; install packtrain[ray] on every machine of the cluster") from error
            raise
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise MachineError(
                f"ray: a task was lost {RETRIES + 1} times, probably out of memory; take larger machines ({reason})"
            ) from error


def _results(ray: Any, work: Work, rules: Rules) -> Generator[Found, None, None]:
    """What the tasks give, in order. No more are started once one found a fault: what comes later is not asked for."""
    cpus = _cpus(ray)
    per_task = min(CHUNKS_PER_TASK, max(1, len(work) // (4 * TASKS_PER_CPU * cpus)))
    chunks = iter(work)
    batches = enumerate(iter(lambda: list(islice(chunks, per_task)), []))
    tokenize = ray.remote(num_cpus=1, max_retries=RETRIES)(_tokenize)
    running: dict[Any, int] = {}
    found: dict[int, Found] = {}
    following, faulty = 0, False
    try:
        while True:
            room = 0 if faulty else TASKS_PER_CPU * cpus - len(running)
            for number, batch in islice(batches, max(0, room)):
                running[tokenize.remote(batch, rules, _versions(), Path.cwd())] = number
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1 + len(running) // 16)
            for reference in ready:
                number = running.pop(reference)
                found[number] = result = ray.get(reference)
                faulty |= isinstance(result, Exception) or any(result)
            while following in found:
                yield found.pop(following)
                following += 1
            cpus = _cpus(ray)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _tokenize(batch: Work, rules: Rules, expected: Mapping[str, str], directory: Path) -> Found:
    """Runs on a machine of the cluster."""
    here = _versions()
    if here != expected:
        name = next(name for name in expected if here[name] != expected[name])
        return MachineError(
            f"ray: {os.uname().nodename} has {name} {here[name]} and not {expected[name]}; install the same everywhere"
        )
    with suppress(OSError):  # where every path is absolute it need not be there
        os.chdir(directory)
    faults: list[RecordFault | None] = []
    try:
        for chunk, target in batch:
            faults.append(tokenize_chunk(chunk, target, rules))
            if faults[-1] is not None:
                break
    except (PacktrainError, OSError) as error:
        return error
    return faults


@cache
def _versions() -> dict[str, str]:
    """What has to be the same everywhere for a chunk to give the same tokens."""
    return {"packtrain": version("packtrain"), **versions()}


def _cpus(ray: Any) -> int:
    """Of the whole cluster as it is now."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS or of this machine, or start one here; leaving it stops this run's tasks."""
    if ray.is_initialized():  # by a program that calls packtrain, and goes on with its cluster
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    path = os.environ.get("PYTHONPATH")  # maps of the user's own are imported where the tasks run
    environment = {"env_vars": {"PYTHONPATH": path}} if path else None
    try:
        ray.init(runtime_env=environment, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise MachineError(f"ray: {error}; check RAY_ADDRESS, or unset it to work on this machine") from error
    try:
        yield
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MachineError(
            "prep.executor = \"ray\" needs Ray: pip install 'packtrain[ray]' here and on every machine of the cluster"
        ) from error
    return ray
