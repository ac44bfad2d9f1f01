"""Directories of plain weights: safetensors as Hugging Face has them, or the files of torch.save before those."""

from collections.abc import Mapping
from pathlib import Path

from export.sources import awq
from export.sources.found import Found, stored_format, stored_tensor
from export.sources.stored import StoredTensor
from export.sources.torch_file import TensorPlace, load
from pipelines.errors import CheckError
from pipelines.file_ranges import WIDTH
from pipelines.safetensors_header import read_header
from pipelines.weight_index import read_index

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "*.safetensors")
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
_FORMATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def find(folder: Path) -> Found | None:
    """The weights in a directory, None if there are none.

    Raises:
        CheckError: if a file is missing or damaged.
        DataError: if numbers are in a format that is not read.
        ConfigError: if they are quantized in another way than is read.
    """
    for names, what in ((_SAFETENSORS, "safetensors"), (_TORCH, "PyTorch")):
        paths, listed = _files(folder, *names)
        if paths:
            tensors, unread = _tensors(folder, paths, listed)
            if unread and awq.is_read(folder):
                packed = awq.joined({name: (path, one) for path in paths for name, one in read_header(path).items()})
                tensors = {name: one for name, one in tensors.items() if not name.endswith(awq.PARTS)} | packed
                unread = {name: one for name, one in unread.items() if not name.endswith(awq.PARTS)}
                what = "AWQ"
            return Found(what, tensors, (folder,), unread=unread)
    return None


def _files(folder: Path, single: str, index: str, pattern: str) -> tuple[list[Path], Mapping[str, str] | None]:
    """The files to read, and which tensor the index says is in which."""
    if (folder / single).is_file():
        return [folder / single], None
    path = folder / index
    if not path.is_file():
        return sorted(folder.glob(pattern)), None
    try:
        listed = read_index(path)
    except ValueError as error:
        raise CheckError(f"{path}: not an index of weights ({error}); copy it again") from error
    paths = [folder / name for name in sorted(set(listed.values()))]
    for one in paths:
        if not one.is_file():
            raise CheckError(f"{one}: missing, {index} names it; copy it as well")
    return paths, listed


def _tensors(
    folder: Path, paths: list[Path], listed: Mapping[str, str] | None
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors by name, and those in a format that is not read, such as masks and positions."""
    found: dict[str, StoredTensor] = {}
    unread: dict[str, str] = {}
    for path in paths:
        for name, tensor in (_of_safetensors if path.suffix == ".safetensors" else _of_torch)(path).items():
            if name in found or name in unread:
                raise CheckError(f"{path}: {name} is also in another file here; keep the files of one model")
            if isinstance(tensor, StoredTensor):
                found[name] = tensor
            else:
                unread[name] = f"{path}: {name} is stored as {tensor}"
    for name, file in sorted(listed.items() if listed else ()):
        if name not in found and name not in unread:
            raise CheckError(f"{folder}: {name} is not in {file}, where the index has it; copy both again")
    return found, unread


def _of_safetensors(path: Path) -> dict[str, StoredTensor | str]:
    return {
        name: StoredTensor.whole(entry.shape, path, entry.first, stored_format(path, name, _FORMATS[entry.dtype]))
        if entry.dtype in _FORMATS
        else entry.dtype
        for name, entry in read_header(path).items()
    }


def _of_torch(path: Path) -> dict[str, StoredTensor | str]:
    content = load(path)
    if not isinstance(content, dict) or not all(isinstance(one, TensorPlace) for one in content.values()):
        raise CheckError(f"{path}: holds something else than named tensors; copy it again")
    return {name: stored_tensor(name, one) if one.dtype in WIDTH else one.dtype for name, one in content.items()}
