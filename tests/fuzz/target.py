"""A reader under attack, and what an input must not do to it."""

import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import PacktrainError
from prep.conversation import RecordError
from prep.formats.fault import RecordFault
from tests.fuzz import limits

_LONGEST = 4_000  # characters of a line of an error
_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_ROOM = Path("/dev/shm") if Path("/dev/shm").is_dir() else None

_PLACE = re.compile(r"\S.*?(: | = )\S|\.\.\. and [\d,]+ more")  # a file or a key, and what was found there

Feed = Callable[[bytes, Path], None]
"""Gives a reader an input; the directory is empty and the input's own."""


@dataclass(frozen=True)
class Target:
    """One reader, or some that read the same file."""

    name: str
    feed: Feed
    parts: tuple[str, ...] = ()
    """Names of the files that an input is made of, where it is several; see `tests.fuzz.bundle`."""
    tokens: tuple[bytes, ...] = ()
    """What a fuzzer would be long in finding by itself: keywords, names, opcodes."""


class Finding(AssertionError):  # noqa: N818 (the word of the documentation)
    """An input did what none may do, without an exception."""


def attempt(target: Target, data: bytes) -> str:
    """Give a target an input; returns what it was refused with, or nothing.

    Raises:
        Finding: if the refusal says too little, or the input took too much time or memory.
        BaseException: whatever else escapes the reader, which is a finding as well.
    """
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_ROOM))
    began, held = time.process_time(), _memory(forget=True)
    refusal = ""
    try:
        target.feed(data, folder)
    except PacktrainError as error:
        refusal = _checked(error, folder)
    except (RecordError, RecordFault) as error:
        refusal = str(error)  # whoever reads records adds the place
    finally:
        shutil.rmtree(folder)
    seconds = time.process_time() - began
    if seconds > limits.SECONDS:
        raise Finding(f"{len(data):,} bytes took {seconds:.0f} s")
    grown = _memory() - held
    if grown > limits.BYTES:
        raise Finding(f"{len(data):,} bytes took {grown / 1e9:.1f} GB of memory")
    return refusal


def _memory(*, forget: bool = False) -> int:
    """The most bytes that this process held at once; `forget` what it held before. 0 where the kernel does not say."""
    if forget and _FORGET.exists():
        _FORGET.write_text("5")
    found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text()) if _STATUS.exists() else None
    return int(found[1]) << 10 if found else 0


def _checked(error: PacktrainError, folder: Path) -> str:
    """The text of an error, in which every line has a place and a finding."""
    text = str(error)
    for line in text.split("\n"):
        if not _PLACE.match(line) or len(line) > _LONGEST:
            raise Finding(f"{type(error).__name__} says too little or too much: {line[:_LONGEST]!r}")
    return text.replace(str(folder), "")
