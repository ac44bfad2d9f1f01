"""One piece of work in a process of its own: seconds, processor seconds, and what of both SHA-256 took, as JSON.

    python -m bench.digesting WHAT FOLDER

WHAT is `bench` or `text`, which prep prepares, `hf` or `turbomind`, which export writes: of what `bench.checking` laid
below FOLDER, in one process; or `save` and `unchecked`: writing the state of a checkpoint with and without digests.

SHA-256 is counted where it is computed, by threads' own clocks, and while any thread computes it: that many seconds
would be saved at most without it, fewer where other threads work meanwhile.
"""

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SMALL = 4096
"""Bytes: digests of settings and names are not what is measured."""


class Counted:
    """What all digests of this process took."""

    def __init__(self) -> None:
        self.nbytes = self.working = 0
        self.processor = self.wall = self._since = 0.0
        self._changing = threading.Lock()

    def update(self, digest: "hashlib._Hash", data: Any) -> None:
        size = memoryview(data).nbytes
        if size < _SMALL:
            digest.update(data)
            return
        with self._changing:
            if not self.working:
                self._since = time.perf_counter()
            self.working += 1
        began = time.thread_time()
        digest.update(data)
        used = time.thread_time() - began
        with self._changing:
            self.nbytes += size
            self.processor += used
            self.working -= 1
            if not self.working:
                self.wall += time.perf_counter() - self._since


class Digest:
    """SHA-256 that is counted."""

    def __init__(self, counted: Counted, data: Any) -> None:
        self._counted, self._digest = counted, _SHA256()
        self.update(data)

    def update(self, data: Any) -> None:
        self._counted.update(self._digest, data)

    def digest(self) -> bytes:
        return self._digest.digest()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


_SHA256 = hashlib.sha256


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    counted = Counted()

    def sha256(data: Any = b"", **_: Any) -> Digest:
        return Digest(counted, data)

    hashlib.sha256 = sha256  # type: ignore[assignment]  # before anything imports it by name
    work = _work(what, folder)
    os.sync()
    before = counted.nbytes, counted.processor, counted.wall
    began, used = time.perf_counter(), time.process_time()
    work()
    found = {"seconds": time.perf_counter() - began, "processor": time.process_time() - used}
    after = counted.nbytes, counted.processor, counted.wall
    taken = dict(
        zip(("digested", "digesting", "while"), (b - a for a, b in zip(before, after, strict=True)), strict=True)
    )
    json.dump({**found, **taken}, sys.stdout)


def _work(what: str, folder: Path) -> Callable[[], object]:
    from pipelines.config import load

    if what in ("bench", "text"):
        from prep.run import run as prep

        return lambda: prep(load(folder / f"{what}.toml"), workers=1)
    if what in ("save", "unchecked"):
        return _saving(folder, digests=what == "save")
    import numpy as np
    import transformers.models.llama.modeling_llama  # noqa: F401 (an import is not what is measured)

    import export.turbomind.verify
    import export.verify  # noqa: F401
    from export.cast import rounded
    from export.run import run as export_

    rounded(np.ones(1, np.float32), "bfloat16")  # compiles
    return lambda: export_(load(folder / f"{what}.toml"))


def _saving(folder: Path, *, digests: bool) -> Callable[[], object]:
    import torch

    from bench.checking import state
    from train.checkpoint import write_safetensors

    weights, moments = state()
    path = folder / "state.safetensors"

    def write() -> None:
        with path.open("wb") as file:
            for tensor in [*weights.values(), *moments.values()]:
                file.write(tensor.numpy().reshape(-1).view("u1").data)
            file.flush()
            os.fsync(file.fileno())

    torch.set_num_threads(1)
    return (lambda: write_safetensors(path, weights, moments)) if digests else write


if __name__ == "__main__":
    main()
