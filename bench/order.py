"""Ordering, mixing and checking: sorted keys, mixed sources, a folder of many files, and the order of packs.

python -m bench.order [--json] [--samples 10_000_000] [--files 100_000]
"""

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bench.table import Figure, fastest, show
from pipelines.permutation import Permutation
from pipelines.schema import Pipeline, Prep
from prep.hash_sort import hash_order
from prep.inputs import Input
from prep.mix import arrange
from prep.order import write_order
from prep.order_check import check_order
from prep.shuffle import sample_keys
from prep.store import Samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--samples", type=int, default=10_000_000, help="samples ordered and mixed")
    parser.add_argument("--files", type=int, default=100_000, help="files checked")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as folder:
        show(list(figures(Path(folder), samples=options.samples, files=options.files)), as_json=options.json)


def figures(folder: Path, *, samples: int = 10_000_000, files: int = 100_000) -> Iterator[Figure]:
    """All figures of this file.

    Args:
        folder: empty.
        samples: ordered and mixed.
        files: made in the folder and checked.
    """
    yield from ordering(samples)
    yield from mixing(samples)
    yield from checking(folder, files)
    yield from seeking(samples)


def made_up(count: int, *, sources: int) -> tuple[Samples, list[Input]]:
    """So many samples in ten files of each source, about 400 tokens long."""
    inputs = [
        Input(source, f"s{source}", f"{file}.bin", Path(f"{file}.bin"), "ftdp", "none")
        for source in range(sources)
        for file in range(10)
    ]
    file = (np.arange(count) * len(inputs) // count).astype(np.uint32)
    nothing = np.zeros(count, np.uint32)
    samples = Samples(
        lengths=np.random.default_rng(0).lognormal(5.5, 1.0, count).clip(16, 4096).astype(np.int32),
        loss_tokens=np.ones(count, np.int32),
        file=file,
        record=(np.arange(count) - np.searchsorted(file, file)).astype(np.uint32),
        start=nothing,
        chunk=nothing.astype(np.int32),
        offset=nothing.astype(np.int64),
        token_files=[],
        records=np.bincount(file, minlength=len(inputs)),
    )
    return samples, inputs


def ordering(count: int) -> Iterator[Figure]:
    samples, inputs = made_up(count, sources=1)
    keys = sample_keys(samples, inputs, range(count), seed=1, turn=0)
    ours = fastest(lambda: hash_order(keys), times=3)
    numpy = fastest(lambda: np.argsort(keys, kind="stable"), times=3)
    yield Figure(f"sort {count:,} hashed keys", ours, "s", "numpy.argsort, stable", numpy, "<= 1")


def mixing(count: int) -> Iterator[Figure]:
    for sources in (1, 4):
        samples, inputs = made_up(count, sources=sources)
        table = {
            "source": [{"name": f"s{n}", "path": "x", "repeat": 1} for n in range(sources)],
            "pack": {"capacity": 8},
        }
        prep = Prep.model_validate(table)
        took = fastest(partial(arrange, samples, inputs, prep, seed=1), times=3)
        yield Figure(f"arrange {count:,} samples of {sources} sources", took, "s", target="a few")


def checking(folder: Path, count: int) -> Iterator[Figure]:
    for number in range(count):
        path = folder / "data" / f"{number // 1000:03}" / f"part-{number:06}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    pipeline = Pipeline.model_validate(
        {
            "schema_version": 1,
            "run": {"name": "bench", "work_dir": str(folder / "work")},
            "model": {"scratch": {"model_type": "llama"}},
            "tokenizer": {"name_or_path": "none"},
            "prep": {
                "source": [{"name": "data", "path": str(folder / "data")}],
                "pack": {"capacity": 8},
                "order": {"file": str(folder / "data_order.txt")},
            },
        }
    )
    write_order(pipeline)
    took = fastest(lambda: check_order(pipeline, quick=True), times=3)
    yield Figure(f"order check --quick, {count:,} files", took, "s", target="<= 2")


def seeking(count: int) -> Iterator[Figure]:
    permutation = Permutation(count, "packs", 1024, 0)
    block = fastest(lambda: permutation.slice(0, 100_000))
    yield Figure("place of a pack in an epoch, 100,000 at once", block / 100_000 * 1e9, "ns")
    one = fastest(lambda: [permutation.at(position) for position in range(1000)])
    yield Figure("place of a pack in an epoch, one alone", one / 1000 * 1e6, "us")


if __name__ == "__main__":
    main()
