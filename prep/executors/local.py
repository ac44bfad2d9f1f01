"""Chunks tokenized by processes of this machine."""

from collections.abc import Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from pipelines.errors import MachineError
from prep.chunk import Chunk, Rules, tokenize_chunk
from prep.formats.fault import RecordFault
from prep.pool import pool


def on_this_machine(
    work: Sequence[tuple[Chunk, Path]], rules: Rules, *, workers: int
) -> Generator[RecordFault | None, None, None]:
    """Tokenize each chunk into its directory; yields its fault or None, in order.

    Raises:
        MachineError: if a process died.
    """
    if workers == 1 or len(work) <= 1:
        yield from (tokenize_chunk(chunk, target, rules) for chunk, target in work)
        return
    try:
        with pool(min(workers, len(work))) as processes:
            yield from processes.map(tokenize_chunk, *zip(*work, strict=True), [rules] * len(work))
    except BrokenProcessPool as error:
        raise MachineError(
            "a worker process died while tokenizing, probably out of memory; lower prep.workers"
        ) from error
