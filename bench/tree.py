"""A command's seconds and the most memory that it and all processes below it had at one time. Linux alone tells."""

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float
    """By the clock on the wall."""
    memory: int
    """Peak bytes that cannot be given back: a page that processes share counts once, pages of files do not."""
    pages: int
    """Peak bytes with the pages of files that were mapped, which the system takes back when it needs them."""


def cost(command: Sequence[str]) -> Cost:
    """Run a command to its end.

    Raises:
        RuntimeError: if it fails, with what it said.
    """
    began = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said) as process,
    ):
        memory = pages = 0
        while process.poll() is None:
            now = [_held(one) for one in _tree(process.pid)]
            memory = max(memory, sum(own for own, _ in now))
            pages = max(pages, sum(all_ for _, all_ in now))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)}: {said.read()[-2000:]}")
    return Cost(seconds, memory, pages)


def _tree(process: int) -> Iterator[int]:
    yield process
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has just ended
        return
    for child in children:
        yield from _tree(child)


def _held(process: int) -> tuple[int, int]:
    """Bytes without and with pages of files."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    return 1024 * (kilobytes["Pss_Anon"] + kilobytes["Pss_Shmem"]), 1024 * kilobytes["Pss"]
