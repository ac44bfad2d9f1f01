"""Where chunks are tokenized. Every executor gives the same bytes: a chunk is a pure function of its file and rules."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path

from prep.chunk import Chunk, Rules
from prep.executors.local import on_this_machine
from prep.executors.ray import on_ray
from prep.formats.fault import RecordFault

Execute = Callable[[Sequence[tuple[Chunk, Path]], Rules], Generator[RecordFault | None, None, None]]
"""Tokenizes each chunk into its directory and yields its fault or None, in the order of the chunks, so that the fault
reported is the first one and not the fastest one. Closing it stops what is still at work."""


def executor(name: str, *, workers: int) -> Execute:
    """The executor that prep.executor names; a part of a Slurm array works on its own machine.

    Args:
        workers: processes, where they are those of this machine.
    """
    return on_ray if name == "ray" else partial(on_this_machine, workers=workers)
