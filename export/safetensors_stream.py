"""Writing safetensors files of any size: the header first, then the numbers as they come.

A file is the header's length (8 bytes, little-endian), a JSON header of names, formats, shapes and byte ranges, and
the raw numbers. A model is one file, or several with an index of which name is where.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

import numpy as np

from export.blocks import THREADS, Block, blocks_of, each
from export.cast import WIDTH, Bits
from export.direct_file import DirectFile, direct_file
from export.weights import Weights
from pipelines.artifacts import canonical_json, write_atomic

FORMAT = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""What files call the number formats."""
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

Digests = Mapping[Block, bytes]
"""SHA-256 of numbers as they were computed."""


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
        The digests of every block of numbers, taken before they were written.
    """
    dtypes = {name: weights.dtype_of(name) for name in weights.shapes}
    sizes = {name: weights.size(name) * WIDTH[dtypes[name]] for name in weights.shapes}
    shards = plan_shards(sizes, max_shard_size)
    names = [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    taken: dict[Block, bytes] = {}
    for file_name, shard in zip(names, shards, strict=True):
        header, length = _header(dtypes, {name: weights.shapes[name] for name in shard})
        with direct_file(folder / file_name, len(header) + length) as file:
            file.write(0, header)
            places = dict(zip(shard, accumulate((sizes[name] for name in shard), initial=len(header)), strict=False))

            def write(block: Block, file: DirectFile = file, places: Mapping[str, int] = places) -> None:
                bits = np.ascontiguousarray(weights.read(block.name, block.start, block.stop))
                if digests:
                    taken[block] = sha256(bits.data).digest()
                file.write(places[block.name] + block.start * bits.itemsize, bits.data)
                progress(bits.nbytes)

            each(write, blocks_of(weights, shard), threads)
    if len(shards) > 1:
        index = {
            "metadata": {"total_parameters": weights.parameters, "total_size": weights.nbytes},
            "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name in shard},
        }
        write_atomic(folder / INDEX, canonical_json(index))
    return taken


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
