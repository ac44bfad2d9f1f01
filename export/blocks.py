"""A model's numbers in blocks that threads work on side by side: reading, rounding and writing overlap."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock
from typing import TypeVar

from export.weights import BLOCK, Weights

THREADS = 2
"""More hardly help: with two, the disk or the memory is what is waited for."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Block:
    """Consecutive elements of a flattened tensor."""

    name: str
    start: int
    stop: int


def blocks_of(weights: Weights, names: Iterable[str]) -> Iterator[Block]:
    """Tensors cut into blocks, the same at any number of threads."""
    for name in names:
        size = weights.size(name)
        for start in range(0, size, BLOCK):
            yield Block(name, start, min(start + BLOCK, size))


def each(work: Callable[[_T], None], items: Iterable[_T], threads: int) -> None:
    """Do the work on every item, in no order; the first failure ends it and is raised.

    Args:
        items: none of them None.
        threads: 1 is the calling one.
    """
    if threads == 1:
        for item in items:
            work(item)
        return
    waiting, taking, failed = iter(items), Lock(), Event()

    def worker() -> None:
        while not failed.is_set():
            with taking:
                item = next(waiting, None)
            if item is None:
                return
            try:
                work(item)
            except BaseException:
                failed.set()
                raise

    with ThreadPoolExecutor(threads) as pool:
        tasks = [pool.submit(worker) for _ in range(threads)]
        try:
            for task in tasks:
                task.result()
        except BaseException:  # that of the calling thread, an interrupt, is one as well
            failed.set()
            raise
