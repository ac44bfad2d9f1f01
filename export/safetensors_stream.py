"""Writing safetensors files of any size: the header first, then the numbers as they come.

A file is the header's length (8 bytes, little-endian), a JSON header of names, formats, shapes and byte ranges, and
the raw numbers. A model is one file, or several with an index of which name is where.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from threading import Condition

import numpy as np

from export.blocks import THREADS, Block, blocks_of, each
from export.cast import WIDTH, Bits
from export.direct_file import DirectFile, direct_file
from export.weights import Weights
from pipelines.artifacts import FileRecord, canonical_json, digest_file, write_atomic

FORMAT = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""What files call the number formats."""
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MOST_EARLY = 4
"""Blocks in memory that the digest of a file is not yet at."""

Digests = Mapping[str, str]
"""SHA-256 of weight files by name, of what was computed to be written to them."""


def write_model(
    folder: Path,
    weights: Weights,
    max_shard_size: int,
    progress: Callable[[int], object],
    *,
    threads: int = THREADS,
    digests: bool = True,
) -> Digests:
    """Write all weights below `folder`, in as many files as needed; the same bytes at any number of threads.

    Args:
        max_shard_size: bytes of numbers in a file; a larger tensor has a file of its own.
        progress: told the bytes written since it was told last.
        digests: whether what is written is to be compared with the files later.
    Returns:
        The digests of the files, taken before the bytes were written.
    """
    dtypes = {name: weights.dtype_of(name) for name in weights.shapes}
    sizes = {name: weights.size(name) * WIDTH[dtypes[name]] for name in weights.shapes}
    shards = plan_shards(sizes, max_shard_size)
    names = [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    taken: dict[str, str] = {}
    for file_name, shard in zip(names, shards, strict=True):
        header, length = _header(dtypes, {name: weights.shapes[name] for name in shard})
        with direct_file(folder / file_name, len(header) + length) as file:
            digest = InOrder(sha256(header), len(header))
            file.write(0, header)
            places = dict(zip(shard, accumulate((sizes[name] for name in shard), initial=len(header)), strict=False))

            def write(
                block: Block,
                file: DirectFile = file,
                places: Mapping[str, int] = places,
                digest: InOrder = digest,
            ) -> None:
                try:
                    bits = np.ascontiguousarray(weights.read(block.name, block.start, block.stop))
                except BaseException:
                    digest.give_up()
                    raise
                place = places[block.name] + block.start * bits.itemsize
                if digests:
                    digest.put(place, bits)
                file.write(place, bits.data)
                progress(bits.nbytes)

            each(write, blocks_of(weights, shard), threads)
        if digests:
            taken[file_name] = digest.hexdigest(len(header) + length)
    if len(shards) > 1:
        index = {
            "metadata": {"total_parameters": weights.parameters, "total_size": weights.nbytes},
            "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name in shard},
        }
        write_atomic(folder / INDEX, canonical_json(index))
    return taken


class InOrder:
    """The digest of a file whose ranges come from several threads, which take them in order and finish nearly so.

    Args:
        digest: of its beginning.
        end: bytes of that.
    """

    def __init__(self, digest: "hashlib._Hash", end: int) -> None:
        self._digest = digest
        self._end = end
        self._early: dict[int, Bits] = {}
        self._changing = Condition()
        self._is_given_up = False

    def put(self, offset: int, content: Bits) -> None:
        """Digest a range, and those that waited for it; one that is early is kept, and must not change.

        Where many are early, this waits for the thread that has the first of them.
        """
        with self._changing:  # also while it digests, so that no thread gets far ahead of the others
            self._early[offset] = content
            while (found := self._early.pop(self._end, None)) is not None:
                self._digest.update(found.data)
                self._end += found.nbytes
            self._changing.notify_all()
            self._changing.wait_for(
                lambda: self._is_given_up or offset not in self._early or len(self._early) <= _MOST_EARLY
            )

    def give_up(self) -> None:
        """Wait for nothing more: a range will not come."""
        with self._changing:
            self._is_given_up = True
            self._changing.notify_all()

    def hexdigest(self, size: int) -> str:
        """Of all `size` bytes.

        Raises:
            AssertionError: if a range was never given.
        """
        assert self._end == size, f"{self._end} of {size} bytes were digested"
        return self._digest.hexdigest()


def records_of(folder: Path, written: Digests) -> list[FileRecord]:
    """Every file below `folder`, for its manifest.

    Args:
        written: digests of files that `compare_safetensors` has read back since.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(THREADS) as threads:
        digests = threads.map(lambda path: written.get(path.relative_to(folder).as_posix()) or digest_file(path), paths)
        return [
            FileRecord(path.relative_to(folder).as_posix(), path.stat().st_size, digest)
            for path, digest in zip(paths, digests, strict=True)
        ]


def plan_shards(sizes: Mapping[str, int], max_shard_size: int) -> list[list[str]]:
    """Names by file, in order: each file takes tensors until the next would not fit.

    Args:
        sizes: bytes of every tensor.
    """
    shards: list[list[str]] = [[]]
    room = max_shard_size
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_size
        shards[-1].append(name)
        room -= size
    return shards


def write_file(
    path: Path,
    dtype: str | Mapping[str, str],
    shapes: Mapping[str, Sequence[int]],
    blocks: Iterable[Bits],
    progress: Callable[[int], object],
) -> None:
    """Write one file.

    Args:
        dtype: number format of all tensors, or by name.
        shapes: of every tensor, in the order of `blocks`.
        blocks: the tensors' numbers end to end, cut anywhere.
    """
    written = 0
    with path.open("wb") as file:
        header, expected = _header(dtype, shapes)
        file.write(header)
        for block in blocks:
            file.write(block.data)
            written += block.nbytes
            progress(block.nbytes)
    assert written == expected, f"{path}: {written} bytes of numbers, the header says {expected}"


def _header(dtype: str | Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> tuple[bytes, int]:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        own = dtype if isinstance(dtype, str) else dtype[name]
        start, end = end, end + math.prod(shape) * WIDTH[own]
        entries[name] = {"dtype": FORMAT[own], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the numbers stay aligned when the file is mapped
    return len(text).to_bytes(8, "little") + text, end


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"
