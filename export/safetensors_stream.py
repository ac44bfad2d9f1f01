"""Writing safetensors files of any size: the header first, then the numbers as they come.

A file is the header's length (8 bytes, little-endian), a JSON header of names, formats, shapes and byte ranges, and
the raw numbers. A model is one file, or several with an index of which name is where.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from export.cast import WIDTH, Bits
from export.weights import Weights
from pipelines.artifacts import canonical_json, write_atomic

_FORMAT = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def write_model(
    folder: Path, weights: Weights, max_shard_size: int, progress: Callable[[int], object]
) -> Mapping[str, str]:
    """Write all weights below `folder`, in as many files as needed.

    Args:
        max_shard_size: bytes of numbers in a file; a larger tensor has a file of its own.
        progress: told the bytes written since it was told last.
    Returns:
        The SHA-256 of every tensor's numbers by name, taken before they were written.
    """
    digests: dict[str, str] = {}
    dtypes = {name: weights.dtype_of(name) for name in weights.shapes}
    sizes = {name: weights.size(name) * WIDTH[dtypes[name]] for name in weights.shapes}
    shards = plan_shards(sizes, max_shard_size)
    names = [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    for file_name, shard in zip(names, shards, strict=True):
        write_file(
            folder / file_name,
            dtypes,
            {name: weights.shapes[name] for name in shard},
            (block for name in shard for block in _digested(name, weights, digests)),
            progress,
        )
    if len(shards) > 1:
        index = {
            "metadata": {"total_parameters": weights.parameters, "total_size": weights.nbytes},
            "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name in shard},
        }
        write_atomic(folder / INDEX, canonical_json(index))
    return digests


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


def _digested(name: str, weights: Weights, digests: dict[str, str]) -> Iterator[Bits]:
    digest = hashlib.sha256()
    for block in weights.blocks(name):
        digest.update(np.ascontiguousarray(block).data)
        yield block
    digests[name] = digest.hexdigest()


def _header(dtype: str | Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> tuple[bytes, int]:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        own = dtype if isinstance(dtype, str) else dtype[name]
        start, end = end, end + math.prod(shape) * WIDTH[own]
        entries[name] = {"dtype": _FORMAT[own], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the numbers stay aligned when the file is mapped
    return len(text).to_bytes(8, "little") + text, end


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"
