"""Directories of plain weights: safetensors as Hugging Face has them, or the files of torch.save before those."""

import json
from collections.abc import Mapping
from pathlib import Path

from export.sources.found import Found, stored_format, stored_tensor
from export.sources.stored import StoredTensor
from export.sources.torch_file import TensorPlace, load
from pipelines.errors import CheckError
from pipelines.safetensors_header import read_header

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "*.safetensors")
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
_FORMATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def find(folder: Path) -> Found | None:
    """The weights in a directory, None if there are none.

    Raises:
        CheckError: if a file is missing or damaged.
        DataError: if numbers are in a format that is not read.
    """
    for names, what in ((_SAFETENSORS, "safetensors"), (_TORCH, "PyTorch files")):
        paths, listed = _files(folder, *names)
        if paths:
            return Found(f"a directory of {what}", _tensors(folder, paths, listed), (folder,))
    return None


def _files(folder: Path, single: str, index: str, pattern: str) -> tuple[list[Path], Mapping[str, str] | None]:
    """The files to read, and which tensor the index says is in which."""
    if (folder / single).is_file():
        return [folder / single], None
    path = folder / index
    if not path.is_file():
        return sorted(folder.glob(pattern)), None
    try:
        listed = {str(name): str(file) for name, file in json.loads(path.read_bytes())["weight_map"].items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckError(f"{path}: not an index of weights ({error}); copy it again") from error
    paths = [folder / name for name in sorted(set(listed.values()))]
    for one in paths:
        if one.parent != folder or not one.is_file():
            raise CheckError(f"{one}: missing, {index} names it; copy it as well")
    return paths, listed


def _tensors(folder: Path, paths: list[Path], listed: Mapping[str, str] | None) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for path in paths:
        for name, tensor in _of_file(path).items():
            if name in found:
                raise CheckError(f"{path}: {name} is also in another file here; keep the files of one model")
            found[name] = tensor
    for name in sorted(listed.keys() - found.keys() if listed else ()):
        raise CheckError(f"{folder}: {name} is in none of its files, the index has it in {listed and listed[name]}")
    return found


def _of_file(path: Path) -> dict[str, StoredTensor]:
    if path.suffix == ".safetensors":
        return {
            name: StoredTensor.whole(
                entry.shape, path, entry.first, stored_format(path, name, _FORMATS.get(entry.dtype, entry.dtype))
            )
            for name, entry in read_header(path).items()
            if not name.endswith("rotary_emb.inv_freq")
        }
    content = load(path)
    if not isinstance(content, dict) or not all(isinstance(one, TensorPlace) for one in content.values()):
        raise CheckError(f"{path}: holds something else than named tensors; copy it again")
    return {name: stored_tensor(name, one) for name, one in content.items() if not name.endswith("inv_freq")}
