"""What the reader of one format found in a directory, before its names are those of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from export.sources.stored import StoredTensor
from export.sources.torch_file import TensorPlace
from pipelines.errors import DataError
from pipelines.file_ranges import WIDTH, Stored


@dataclass(frozen=True)
class Found:
    """Named tensors, and what the files say of where they are from."""

    format: str
    """In words, such as `DeepSpeed ZeRO 3 of 8 ranks`."""
    tensors: Mapping[str, StoredTensor]
    """By the names of the files."""
    beside: tuple[Path, ...]
    """Directories that config.json and the tokenizer may be in, the nearest first."""
    step: int = 0
    """Optimizer steps done; 0 where nothing says."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other name of a tied tensor -> the name that it is in `tensors` by."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Name -> where it is and in which format, of tensors that are not read."""
    flat: bool = False
    """Whether tensors may have lost their shapes and be of one dimension."""
    more: bool = False
    """Whether there are tensors beside the model's, of the optimizer for instance."""


def stored_format(path: Path, name: str, dtype: str) -> Stored:
    """The number format of a tensor, if it is one of those that are read.

    Raises:
        DataError: if it is another.
    """
    for known in WIDTH:
        if dtype == known:
            return known  # type: ignore[return-value]  # WIDTH has these alone
    raise DataError(
        f"{path}: {name} is stored as {dtype}; only float32, bfloat16 and float16 are read, cast it with PyTorch first"
    )


def stored_tensor(name: str, place: TensorPlace) -> StoredTensor:
    """A tensor of a file of torch.save that lies there in one piece.

    Raises:
        DataError: if it is transposed there, or in a format that is not read.
    """
    path = place.storage.path
    if not place.is_contiguous:
        raise DataError(f"{path}: {name} is not stored in its own order; save it again after .contiguous()")
    return StoredTensor.whole(place.shape, path, place.first, stored_format(path, name, place.dtype))
