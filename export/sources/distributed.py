"""Checkpoints of torch.distributed.checkpoint, as FSDP writes them: `.metadata` and `*.distcp`.

`.metadata` is a pickle of every tensor's shape and chunks, and of the file, the first byte and the length that each
chunk has. A chunk is an archive of torch.save with one tensor in it.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from export.sources.found import Found, stored_format
from export.sources.stored import Block, Run, StoredTensor, check_cover
from export.sources.torch_file import Record, TensorPlace, load, load_pickle
from pipelines.errors import CheckError, DataError

METADATA = ".metadata"
_TRAINER = "pytorch_model_fsdp_0"  # where the Trainer of Transformers has it within its checkpoint


def find(folder: Path) -> Found | None:
    """The checkpoint in a directory, None if there is none of this kind.

    Raises:
        CheckError: if it is incomplete or damaged.
        DataError: if it is cut in a way that is not read.
    """
    named, beside = folder, (folder, folder.parent)
    if not (folder / METADATA).is_file() and (folder / _TRAINER / METADATA).is_file():
        folder = folder / _TRAINER
        beside = (named, folder)
    path = folder / METADATA
    if not path.is_file():
        return None
    metadata = _state(path, load_pickle(path))
    places = {_key(path, index): _state(path, place) for index, place in metadata["storage_data"].items()}
    tensors = {}
    for name, said in metadata["state_dict_metadata"].items():
        if not (isinstance(said, Record) and said.name == "TensorStorageMetadata"):
            continue  # bytes, such as a scheduler's state
        about = _state(path, said)
        dtype = about["properties"].state[0]
        if _is_weight(name, dtype):
            tensors[name] = _tensor(
                folder, name, tuple(about["size"]), [_state(path, one) for one in about["chunks"]], places
            )
    for name, tensor in tensors.items():
        check_cover(folder, name, tensor)
    return Found("PyTorch distributed", tensors, beside, more=True)


def _is_weight(name: str, dtype: object) -> bool:
    # Moments have the parameters' names behind their own; they need not be looked at.
    optimizer = {"optim", "optimizer", "optimizer_state_dict", "optimizers"} & set(name.split("."))
    return not optimizer and isinstance(dtype, str) and dtype.startswith(("float", "bfloat"))


def _state(path: Path, record: Any) -> dict[str, Any]:
    if not isinstance(record, Record) or not isinstance(record.state, dict):
        raise CheckError(f"{path}: not the metadata of a checkpoint; copy it again")
    return record.state


def _key(path: Path, index: Any) -> tuple[str, tuple[int, ...]]:
    about = _state(path, index)
    return about["fqn"], tuple(about.get("offset") or ())


def _tensor(
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    chunks: list[dict[str, Any]],
    places: Mapping[tuple[str, tuple[int, ...]], dict[str, Any]],
) -> StoredTensor:
    runs: list[Run] = []
    blocks: list[Block] = []
    for chunk in chunks:
        offsets, sizes = tuple(chunk["offsets"]), tuple(chunk["sizes"])
        if not prod(sizes):
            continue
        place = places.get((name, offsets)) or (places.get((name, ())) if not any(offsets) else None)
        if place is None:
            raise CheckError(
                f"{folder / METADATA}: says nothing of where {name} from {list(offsets)} is; copy it again"
            )
        tensor = _chunk(folder, name, place, sizes)
        stored, path = stored_format(tensor.storage.path, name, tensor.dtype), tensor.storage.path
        if len(sizes) != len(shape) or len(offsets) != len(shape) or any(one < 0 for one in offsets):
            raise CheckError(f"{folder / METADATA}: has a part of {name} that is none of {list(shape)}; copy it again")
        if sizes[1:] == shape[1:] and not any(offsets[1:]):
            row = prod(shape[1:])
            runs.append(Run(path, tensor.first, stored, (offsets[0] if offsets else 0) * row, prod(sizes)))
            continue
        if sizes[2:] != shape[2:] or any(offsets[2:]):
            raise DataError(f"{folder}: {name} is cut along its third dimension or a later one, which is not read")
        width = prod(shape[2:])
        blocks.append(Block(path, tensor.first, stored, offsets[0], sizes[0], offsets[1] * width, sizes[1] * width))
    if blocks and runs:
        raise DataError(f"{folder}: {name} is cut along rows in one place and columns in another, which is not read")
    return StoredTensor(shape, sorted(runs, key=lambda run: run.start) if runs else blocks)


def _chunk(folder: Path, name: str, place: Mapping[str, Any], sizes: tuple[int, ...]) -> TensorPlace:
    path = folder / str(place["relative_path"])
    if path.parent != folder:
        raise DataError(f"{folder / METADATA}: {name} lies outside of {folder}, which is not read")
    if place.get("transform_descriptors"):
        raise DataError(f"{path}: {name} is compressed or encrypted, which is not read; save it without extensions")
    if not path.is_file():
        raise CheckError(f"{path}: missing, and holds a part of {name}; copy it as well")
    tensor = load(path, int(place["offset"]), int(place["length"]))
    if not isinstance(tensor, TensorPlace) or tensor.shape != sizes or not tensor.is_contiguous:
        raise CheckError(f"{path}: its part of {name} is not the one that {METADATA} describes; copy it again")
    return tensor
