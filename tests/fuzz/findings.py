"""What an input did that none may do: kept once for each place and way, with the smallest input that does it."""

import hashlib
import time
import traceback
from pathlib import Path

from tests.fuzz.target import Target, attempt

_ROOT = Path(__file__).parents[2]
_SECONDS = 10.0
"""Given to making the input of a finding smaller."""


class Findings:
    """Of one target, in a directory."""

    def __init__(self, target: Target, folder: Path) -> None:
        self._target = target
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._known: set[str] = {path.stem for path in folder.glob("*.txt")}

    def take(self, data: bytes) -> None:
        """Feed the target; keep what it must not do."""
        error = escaped(self._target, data)
        if error is None or (kind := kind_of(error)) in self._known:
            return
        self._known.add(kind)
        (self._folder / f"{kind}.input").write_bytes(smaller(self._target, data, kind))
        (self._folder / f"{kind}.txt").write_text("".join(traceback.format_exception(error)), "utf-8", "replace")


def escaped(target: Target, data: bytes) -> BaseException | None:
    """What comes out of a target that must not."""
    try:
        attempt(target, data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of a library in Rust even what is no Exception
        return error
    return None


def kind_of(error: BaseException) -> str:
    """The same for all that fails at one place in one way."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_ROOT)
    ]
    ours = [frame for frame in frames if "/tests/fuzz/" not in frame.filename and "/.venv/" not in frame.filename]
    at = (ours or frames)[-1]
    place = f"{Path(at.filename).name}:{at.name}:{at.line}"
    return f"{type(error).__name__}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def smaller(target: Target, data: bytes, kind: str) -> bytes:
    """A part of the input that does the same, found by leaving out pieces for a while."""
    until = time.monotonic() + _SECONDS
    size = len(data) // 2
    while size:
        begin = 0
        while begin < len(data) and time.monotonic() < until:
            shorter = data[:begin] + data[begin + size :]
            error = escaped(target, shorter)
            if error is not None and kind_of(error) == kind:
                data = shorter
            else:
                begin += size
        size //= 2
    return data
