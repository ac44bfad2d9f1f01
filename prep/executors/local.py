"""Chunks tokenized by processes of this machine."""

from collections.abc import Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from pipelines.errors import MachineError
from prep.chunk import Chunk, Rules, runaway, runs_program, tokenize_chunk
from prep.formats.fault import RecordFault
from prep.pool import pool


def on_this_machine(
    work: Sequence[tuple[Chunk, Path]], rules: Rules, *, workers: int
) -> Generator[RecordFault | None, None, None]:
    """Tokenize each chunk into its directory; yields its fault or None, in order.

    Raises:
        MachineError: if a process died.
    """
    # A chat template is a program, which only a process that may be lost should run. It runs in the worker then; for a
    # single chunk another process renders, which starts sooner.
    if len(work) <= 1 or (workers == 1 and not any(runs_program(chunk, rules) for chunk, _ in work)):
        yield from (tokenize_chunk(chunk, target, rules) for chunk, target in work)
        return
    done = 0
    try:
        with pool(min(workers, len(work))) as processes:
            tokenize = partial(tokenize_chunk, rules=rules, expendable=True)
            for fault in processes.map(tokenize, *zip(*work, strict=True)):
                yield fault
                done += 1
    except BrokenProcessPool as error:
        lost = [runaway(chunk, target, rules) for chunk, target in work[done:]]
        fault = next(filter(None, lost), None)
        if fault is None:
            raise MachineError(
                "a worker process died while tokenizing, probably out of memory; lower prep.workers"
            ) from error
        left = work[done : done + lost.index(fault)]
        yield from on_this_machine(left, rules, workers=workers)  # one of these may have a fault before it
        yield fault
