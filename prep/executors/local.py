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
            for fault in processes.in_order(partial(_tokenize, rules=rules), work):
                yield fault
                done += 1
    except BrokenProcessPool as error:
        # Only those that were begun, of what may be a hundred thousand: each of them is looked for in the folder.
        begun = {path.name.rpartition(".")[0] for path in work[0][1].parent.glob(".*.*")}
        left = work[done:]
        lost = [runaway(*one, rules) if f".{one[1].name}" in begun else None for one in left]
        fault = next(filter(None, lost), None)
        if fault is None:
            raise MachineError(
                "a worker process died while tokenizing, probably out of memory; lower prep.workers"
            ) from error
        # One of these may have a fault before it.
        yield from on_this_machine(left[: lost.index(fault)], rules, workers=workers)
        yield fault


def _tokenize(work: tuple[Chunk, Path], rules: Rules) -> RecordFault | None:
    chunk, target = work
    return tokenize_chunk(chunk, target, rules, expendable=True)
