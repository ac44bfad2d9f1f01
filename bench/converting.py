"""One conversion of a ZeRO 3 checkpoint in a process of its own: seconds, processor seconds and memory, as JSON.

    python -m bench.converting WHAT CHECKPOINT OUT

WHAT is `zero_to_fp32`, or of ours `hf-float32`, `hf-bfloat16`, `turbomind`, and `stage-...` of these with every check.

Memory is what the process took at most above what it had after its imports: resident pages that are not of files
(RssAnon of /proc/self/status), read every 2 ms while it works, since pages of files that are mapped or cached are the
system's to drop. The peak of all resident pages is told as well.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from export.sources.foreign import Beside
from pipelines.schema import Pipeline, TurbomindExport

os.environ["DS_ACCELERATOR"] = "cpu"

EVERY_S = 0.002
LIMIT = 5_000_000_000


def main() -> None:
    what, checkpoint, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    work = _theirs(checkpoint, out) if what == "zero_to_fp32" else _ours(what, checkpoint, out)
    with Watched() as watched:
        began, used = time.perf_counter(), time.process_time()
        work()
        seconds, processor = time.perf_counter() - began, time.process_time() - used
    found = {"seconds": seconds, "processor": processor}
    json.dump({**found, "anonymous": watched.anonymous, "resident": watched.resident}, sys.stdout)


class Watched:
    """The most memory that this process has above what it had on entry, in bytes."""

    def __enter__(self) -> "Watched":
        self.anonymous = self.resident = 0
        self._before = _memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(EVERY_S):
            now = _memory()
            self.anonymous = max(self.anonymous, now["RssAnon"] - self._before["RssAnon"])
            self.resident = max(self.resident, now["VmRSS"] - self._before["VmRSS"])


def _memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    found: dict[str, str] = dict(line.split(":", 1) for line in lines)
    return {key: 1024 * int(found[key].split()[0]) for key in ("RssAnon", "VmRSS")}


def _theirs(checkpoint: Path, out: Path) -> Callable[[], object]:
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

    def work() -> None:
        stdout, sys.stdout = sys.stdout, sys.stderr
        try:
            convert_zero_checkpoint_to_fp32_state_dict(str(checkpoint), str(out), "5GB", safe_serialization=True)
        finally:
            sys.stdout = stdout

    return work


def _ours(what: str, checkpoint: Path, out: Path) -> Callable[[], object]:
    import numpy as np
    import transformers.models.llama.modeling_llama  # noqa: F401 (an import is not what is measured)

    import export.turbomind.verify
    import export.verify  # noqa: F401
    from export.cast import rounded
    from export.run import run
    from export.source import open_source

    for dtype in ("float32", "bfloat16"):
        rounded(np.ones(1, np.float32), dtype)  # compiles
    target, _, dtype = what.removeprefix("stage-").partition("-")
    if what.startswith("stage-"):
        pipeline = pipeline_of(checkpoint, out, target, dtype or "auto")
        return lambda: run(pipeline)
    kept = Beside(cache=checkpoint / ".digests.json")
    open_source(checkpoint, kept)  # what is compared with takes no digests
    return lambda: _convert(checkpoint, kept, out, target, dtype)


def _convert(checkpoint: Path, kept: Beside, out: Path, target: str, dtype: str) -> None:
    """What zero_to_fp32 does: open, read, write, and nothing is compared."""
    from export.hf import Model
    from export.safetensors_stream import write_model
    from export.source import open_source
    from export.turbomind.folder import write_turbomind

    source = open_source(checkpoint, kept)
    out.mkdir(parents=True)
    if target == "hf":
        model = Model.of(source, "float32" if dtype == "float32" else "bfloat16")
        write_model(out, model.weights, LIMIT, lambda _: None, digests=False)
        model.write_files(out)
    else:
        write_turbomind(Model.of(source, "bfloat16"), out, TurbomindExport(chat_template="base"), "bench")


def pipeline_of(checkpoint: Path, out: Path, target: str, dtype: str) -> Pipeline:
    """A pipeline that exports the checkpoint to one target below `out`; the model is never loaded."""
    table = {
        "schema_version": 1,
        "run": {"name": "bench", "work_dir": str(out)},
        "model": {"name_or_path": str(checkpoint)},
        "prep": {"source": [{"name": "s", "path": "s.jsonl"}], "pack": {"capacity": 8192}},
        "export": {
            "checkpoint": str(checkpoint),
            "targets": [target],
            "hf": {"dtype": dtype},
            "turbomind": {"chat_template": "base"},
            "verify": {"greedy_tokens": 0},
        },
    }
    return Pipeline.model_validate(table, context={"base": out})


if __name__ == "__main__":
    main()
