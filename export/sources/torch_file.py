"""What torch.save wrote, read without torch and without running anything: names and values, and where tensors lie.

Such a file is a zip archive of a pickle and, uncompressed, each storage's bytes. A pickle is a program, so the one here
is read by an interpreter that knows a short list of names. Tensors become places in the file. Classes of DeepSpeed and
of torch's own checkpoints, and enums, become records of what they were made of. Any other name is refused.
"""

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO, RawIOBase
from math import prod
from pathlib import Path
from typing import Any

from export.sources.pickle_program import refuse_excess
from pipelines.errors import CheckError, DataError
from pipelines.toml_text import on_one_line

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save began with before zip archives
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}  # fmt: skip
_WIDTH = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "complex64": 8, "complex128": 16, "float8_e4m3fn": 1, "float8_e5m2": 1, "uint16": 2, "uint32": 4,
    "uint64": 8,
}  # fmt: skip
_DAMAGED = (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, OverflowError, struct.error)
"""What zipfile raises of a damaged archive; RuntimeError where a bit says encrypted, or of another version."""
_INERT_PACKAGES = ("deepspeed.", "torch.distributed.checkpoint.", "numpy.", "pathlib.")
_INERT = {
    ("torch", "device"), ("torch.nn.parameter", "Parameter"), ("torch", "Tensor"), ("torch", "strided"),
    ("numpy", "dtype"), ("numpy", "ndarray"), ("pathlib", "PosixPath"), ("pathlib", "PurePosixPath"),
    ("pathlib", "Path"), ("pathlib", "WindowsPath"), ("_codecs", "encode"), ("torch.serialization", "_get_layout"),
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """Bytes of a file that tensors are views of."""

    path: Path
    first: int
    """Byte of the file that they begin at."""
    nbytes: int
    dtype: str
    """Of the storage's class; the tensors' own decides."""


@dataclass(frozen=True)
class TensorPlace:
    """A tensor, by where it lies."""

    storage: Storage
    dtype: str
    """Such as float32."""
    offset: int
    """Of its first element within the storage, in elements."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def first(self) -> int:
        """Byte of the file that the first element is at."""
        return self.storage.first + self.offset * _WIDTH[self.dtype]

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one after the other, in order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


class Record:
    """What stands for an object of a class that is not loaded: the arguments and the state that it was made with."""

    module = ""
    name = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> "Record":
        made = super().__new__(cls)
        made.args = args
        made.state = None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Items of what was a dictionary are of no use here."""

    def append(self, value: Any) -> None:
        """Nor are those of what was a list."""

    def __hash__(self) -> int:
        # Records are keys of dictionaries in torch's checkpoints, where the state comes after the key is in.
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def load(path: Path, first: int = 0, length: int | None = None) -> Any:
    """The values of a file that torch.save wrote, tensors as `TensorPlace`.

    Args:
        first, length: bytes of the file that the archive takes, where it is one of several in it.
    Raises:
        CheckError: if it is damaged or cut short.
        DataError: if it asks for code, which is not run, or was written in the form of before PyTorch 1.6.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    with path.open("rb") as file:
        length = size - first if length is None else length
        if first < 0 or length < 0:
            raise CheckError(f"{path}: is said to have {length:,} bytes from byte {first:,} on; copy it again")
        if first + length > size:
            raise CheckError(f"{path}: ends {first + length - size:,} bytes early; it was cut short, copy it again")
        window = _Window(file, first, length)
        try:
            archive = zipfile.ZipFile(window)
        except _DAMAGED as error:
            file.seek(first)
            raise _not_an_archive(path, file.read(len(_LEGACY))) from error
        with archive:
            return _load(path, archive, file, first, length)


def load_pickle(path: Path) -> Any:
    """The values of a pickle that is a file of its own and holds no tensors; as `load`."""
    try:
        program = path.read_bytes()
    except OSError as error:
        raise CheckError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    return _run(path, program, _no_tensors)


def _no_tensors(key: str, kind: str) -> Storage:
    raise ValueError(f"refers to tensor data {key} of {kind}")


class _Window(RawIOBase):
    """Part of a file as a file."""

    def __init__(self, file: Any, first: int, length: int) -> None:
        self._file, self._first, self._length, self._at = file, first, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._length)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._first + self._at)
        found: bytes = self._file.read(left if size < 0 else min(size, left))
        self._at += len(found)
        return found


def _not_an_archive(path: Path, begin: bytes) -> CheckError | DataError:
    if begin == _LEGACY:
        return DataError(
            f"{path}: in the form of before PyTorch 1.6, which has to be read as a whole; load it with torch.load and "
            "save it again with torch.save"
        )
    if begin.startswith(b"PK"):
        return CheckError(f"{path}: cut short or damaged, its list of contents is missing; copy it again")
    return DataError(f"{path}: not a file that torch.save wrote; name another checkpoint")


def _load(path: Path, archive: zipfile.ZipFile, file: Any, first: int, length: int) -> Any:
    entries = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
    if "data.pkl" not in entries:
        raise DataError(f"{path}: an archive without data.pkl, so not of torch.save; name another checkpoint")
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise CheckError(f"{path}: is compressed, which torch.save never does; take it from who made it again")
    try:
        order = archive.read(entries["byteorder"]) if "byteorder" in entries else b"little"
        program = archive.read(entries["data.pkl"])
    except _DAMAGED as error:
        raise CheckError(f"{path}: damaged ({error}); copy it again") from error
    if order != b"little":
        raise DataError(f"{path}: was written on a machine with another byte order; load it there and save it again")

    def place(key: str, kind: str) -> Storage:
        info = entries.get(f"data/{key}")
        if info is None:
            raise CheckError(f"{path}: tensor data {key} is missing; copy it again")
        return Storage(path, first + _data_at(path, file, first, info, length), info.file_size, kind)

    return _run(path, program, place)


def _run(path: Path, program: bytes, place: Callable[[str, str], Storage]) -> Any:
    try:
        refuse_excess(program)
        return _Interpreter(path, program, place).load()
    except (CheckError, DataError):
        raise
    except Exception as error:  # a damaged program raises anything
        raise CheckError(f"{path}: its pickle is damaged ({type(error).__name__}: {error}); copy it again") from error


def _data_at(path: Path, file: Any, first: int, info: zipfile.ZipInfo, length: int) -> int:
    """Byte of the archive that an entry's content begins at."""
    file.seek(first + info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise CheckError(f"{path}: {info.filename} is damaged; copy it again")
    name, extra = struct.unpack("<HH", header[26:])
    begin: int = info.header_offset + 30 + name + extra
    if begin + info.file_size > length:
        raise CheckError(f"{path}: {info.filename} ends beyond the file; copy it again")
    return begin


class _Interpreter(pickle.Unpickler):
    """A pickle's program, with the names that it may ask for and nothing else."""

    def __init__(self, path: Path, program: bytes, place: Callable[[str, str], Storage]) -> None:
        super().__init__(BytesIO(program), encoding="utf-8")
        self._path = path
        self._place = place
        self._storages: dict[str, Storage] = {}
        self._kinds: dict[tuple[str, str], type[Record]] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _kind_of_storage(_STORAGES[name])
        if module == "torch" and name in _WIDTH:
            return name  # of a torch.dtype
        if (module, name) in _INERT or f"{module}.".startswith(_INERT_PACKAGES):
            return self._kinds.setdefault((module, name), type(name, (Record,), {"module": module, "name": name}))
        raise DataError(
            f"{self._path}: asks for {on_one_line(f'{module}.{name}')}, which is code and is not run; only tensors and "
            "plain values belong in a checkpoint, take it from who made it again"
        )

    def persistent_load(self, pid: Any, /) -> Storage:
        kind, dtype, key, _, _ = pid
        if kind != "storage":
            raise ValueError(f"unknown reference {kind!r}")
        if key not in self._storages:
            self._storages[key] = self._place(key, dtype.args[0])
        return self._storages[key]


def _kind_of_storage(dtype: str) -> Record:
    kind = Record(dtype)
    kind.name = "Storage"
    return kind


def _tensor(storage: Storage, offset: int, shape: Sequence[int], stride: Sequence[int], *rest: Any) -> TensorPlace:
    dtype = next((one for one in rest if isinstance(one, str) and one in _WIDTH), storage.dtype)
    place = TensorPlace(storage, dtype, offset, tuple(shape), tuple(stride))
    last = sum((size - 1) * step for size, step in zip(place.shape, place.stride, strict=True))
    negative = offset < 0 or any(one < 0 for one in (*place.shape, *place.stride))
    if negative or (place.size and (offset + last + 1) * _WIDTH[dtype] > storage.nbytes):
        raise CheckError(f"{storage.path}: a tensor of {list(shape)} reaches beyond its data; copy it again")
    return place


def _parameter(data: Any, *_: Any) -> TensorPlace:
    if not isinstance(data, TensorPlace):
        raise ValueError("a parameter of something else than a tensor")
    return data


def _from_type(rebuild: Callable[..., Any], kind: Any, args: tuple[Any, ...], state: Any) -> Any:  # noqa: ARG001
    if not isinstance(rebuild, _Maker):
        raise ValueError("a tensor made by something else than a function for tensors")
    return rebuild(*args)


def _member(of: Any, name: str) -> Any:
    # How some versions of Python refer to a member of an enum.
    if not (isinstance(of, type) and issubclass(of, Record)):
        raise ValueError("attribute of something else than an enum")
    return of(name)


def _shape(sizes: Sequence[int] = ()) -> tuple[int, ...]:
    if not all(isinstance(size, int) for size in sizes):
        raise ValueError("a shape of something else than numbers")
    return tuple(sizes)


class _Maker:
    """A function that a pickle may call and cannot change."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("state for a function")


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): _Maker(_shape),
    ("torch._utils", "_rebuild_tensor"): _Maker(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Maker(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Maker(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Maker(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Maker(_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Maker(_from_type),
    ("builtins", "getattr"): _Maker(_member),
    ("__builtin__", "getattr"): _Maker(_member),
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)},
}
"""What a pickle gets for a name. Each makes plain values alone."""
