"""Memory that samples take on their way into packs: each step's peak, as JSON.

    python -m bench.peak FOLDER SAMPLES SOURCES STRATEGY

Samples have one token each, so that hardly any of the memory is the tokens' own. Linux alone tells such peaks.
"""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.order import made_up
from pipelines.schema import Prep
from prep.assemble import assemble
from prep.inputs import Input
from prep.mix import arrange
from prep.packing import pack
from prep.store import Samples


def main() -> None:
    folder, samples, sources, strategy = Path(sys.argv[1]) / "peak", int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    prep = Prep.model_validate(
        {
            "source": [{"name": f"s{number}", "path": "x", "repeat": 1} for number in range(sources)],
            "pack": {"capacity": 4096, "strategy": strategy},
        }
    )
    folder.mkdir()
    _run(*short_samples(folder, 1000 * sources, sources=sources), prep, folder / "first")  # compiles
    before = _now()
    data = short_samples(folder, samples, sources=sources)
    peaks = {"samples": _now(), **_run(*data, prep, folder / "second")}
    shutil.rmtree(folder)
    json.dump({step: peak - before for step, peak in peaks.items()}, sys.stdout)


def short_samples(folder: Path, count: int, *, sources: int) -> tuple[Samples, list[Input]]:
    """Samples of one token, in one chunk, with every column in memory."""
    samples, inputs = made_up(count, sources=sources)
    path = folder / f"{count}.u32"
    np.zeros(count, np.uint32).tofile(path)
    short = replace(
        samples,
        lengths=np.ones(count, np.int32),
        loss_tokens=np.ones(count, np.int32),
        start=np.full(count, 0, np.uint32),  # unlike zeros, in memory
        chunk=np.full(count, 0, np.int32),
        offset=np.arange(count, dtype=np.int64),
        token_files=[path],
    )
    return short, inputs


def _run(samples: Samples, inputs: list[Input], prep: Prep, folder: Path) -> dict[str, int]:
    peaks = {}
    _reset()
    arrangement = arrange(samples, inputs, prep, seed=1)
    peaks["arrange"] = _peak()
    _reset()
    packing = pack(samples.lengths[arrangement.sequence], prep.pack, arrangement.source)
    peaks["pack"] = _peak()
    _reset()
    writing = assemble(samples, arrangement.sequence, packing, folder, vocabulary=60_000, shard_tokens=2**18, workers=1)
    for _ in writing:
        pass
    peaks["assemble"] = _peak()
    return peaks


def _reset() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def _now() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
