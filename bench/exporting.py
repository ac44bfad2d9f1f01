"""ZeRO 3 checkpoints into what is served: seconds and memory beside DeepSpeed's zero_to_fp32, on the same files.

    python -m bench.exporting [--json]

Each conversion runs in a process of its own, in turns, and the fastest of three counts; what was written before is on
the disk before the next begins. The checkpoint was just written, so it is read from memory where memory holds it.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

from bench.starting import environment
from bench.table import Figure, command
from bench.zero3 import LLAMA, write_zero3
from export.sources.names import namings

TIMES = 3
SETTLING = 1.0
"""Seconds in which the disk gives up the blocks of what was deleted before."""
MEMORY_MB = 256
WORK = {
    "zero_to_fp32": "zero_to_fp32 of DeepSpeed",
    "hf-float32": "hf, float32",
    "hf-bfloat16": "hf, bfloat16",
    "turbomind": "turbomind, bfloat16",
    "stage-hf-float32": "packtrain export, hf in float32, every number compared",
    "stage-hf-bfloat16": "packtrain export, hf in bfloat16, every number compared",
    "stage-turbomind": "packtrain export, turbomind, every number compared",
}


def figures(folder: Path) -> Iterator[Figure]:
    """Seconds and memory of each, beside zero_to_fp32 of the same run."""
    checkpoint = folder / "checkpoint"
    (naming,) = namings(LLAMA, checkpoint)
    write_zero3(checkpoint, naming.shapes, config=LLAMA)
    _write_tokenizer(checkpoint)
    measured: dict[str, list[dict[str, float]]] = {what: [] for what in WORK}
    load = os.getloadavg()[0]
    for _ in range(TIMES):
        for what, found in measured.items():
            found.append(_measure(what, checkpoint, folder / "out"))
    size = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in naming.shapes.values()) * 4 / 1e9
    best = {what: min(one["seconds"] for one in found) for what, found in measured.items()}
    used = {what: min(one["processor"] for one in found) for what, found in measured.items()}
    peak = {what: max(one["anonymous"] for one in found) / 1e6 for what, found in measured.items()}
    resident = {what: max(one["resident"] for one in found) / 1e6 for what, found in measured.items()}
    yield Figure("weights, as float32", size, "GB")
    yield Figure("processes that wanted a core just before", load, "", "cores", os.cpu_count())
    theirs = "zero_to_fp32"
    for what in list(WORK)[1:]:
        like = what in ("hf-float32", "stage-hf-float32")
        target = "<= 0.2 x" if what == "hf-float32" else ""
        yield Figure(WORK[what], best[what], "s", "zero_to_fp32" + ("" if like else ", float32"), best[theirs], target)
        yield Figure("  processor time", used[what], "s", "its own", used[theirs])
    yield Figure("  zero_to_fp32 is slower than hf, float32, by", best[theirs] / best["hf-float32"], "x", target=">= 5")
    for what in list(WORK)[1:]:
        limit = f"<= {MEMORY_MB}"
        yield Figure(f"memory, {WORK[what]}", peak[what], "MB", "zero_to_fp32", peak[theirs], limit)
        yield Figure("  with pages of files", resident[what], "MB", "zero_to_fp32", resident[theirs])


def _measure(what: str, checkpoint: Path, out: Path) -> dict[str, float]:
    os.sync()
    time.sleep(SETTLING)
    arguments = [sys.executable, "-m", "bench.converting", what, str(checkpoint), str(out)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment())
    shutil.rmtree(out, ignore_errors=True)
    if done.returncode:
        raise RuntimeError(f"{what}: {done.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _write_tokenizer(folder: Path) -> None:
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2}
    Tokenizer(BPE(vocab=vocabulary, merges=[])).save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


if __name__ == "__main__":
    command(figures, __doc__)
