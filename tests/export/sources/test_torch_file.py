"""Files of torch.save, read without torch: what comes out, and that nothing in them runs."""

import enum
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from export.sources.torch_file import Record, TensorPlace, load, load_pickle
from pipelines.errors import CheckError, DataError
from pipelines.file_ranges import FileRanges


def numbers(place: TensorPlace) -> np.ndarray[Any, Any]:
    found = np.empty(place.size, place.dtype)
    FileRanges().read_bytes(place.storage.path, place.first, found)
    return found.reshape(place.shape)


def saved(folder: Path, content: object, name: str = "x.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def test_plain_values_come_out_and_tensors_as_places(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.float32)
    content = {
        "step": 3,
        "names": ["a", ("b", None)],
        "shape": torch.Size([2, 3]),
        "set": {1, 2},
        "kind": torch.float16,
        "view": whole[6:18].view(3, 4),
        "again": whole,
        "half": torch.ones(5, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.full((2,), 7.0)),
        "transposed": whole.view(4, 6).T,
        "empty": torch.empty(0),
        "ordered": OrderedDict(z=1),
    }
    found = load(saved(tmp_path, content))
    assert {key: found[key] for key in ("step", "names", "set", "kind")} == {
        "step": 3,
        "names": ["a", ("b", None)],
        "set": {1, 2},
        "kind": "float16",
    }
    assert found["shape"] == (2, 3)
    np.testing.assert_array_equal(numbers(found["view"]), whole[6:18].view(3, 4).numpy())
    assert found["view"].storage is found["again"].storage
    np.testing.assert_array_equal(numbers(found["parameter"]), [7.0, 7.0])
    assert (found["half"].dtype, found["half"].shape) == ("bfloat16", (5,))
    assert not found["transposed"].is_contiguous
    assert found["empty"].size == 0
    assert found["ordered"] == {"z": 1}


class Evil:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call = call
        self.args = args

    def __reduce__(self) -> Any:
        return self.call, self.args


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (os.system, f"{os.name}.system"),
        (exec, "__builtin__.exec"),
        (__import__, "__builtin__.__import__"),
        (pickle.loads, "pickle.loads"),
        (torch.load, "torch.serialization.load"),
    ],
)
def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path, call: Any, name: str) -> None:
    mark = tmp_path / "it ran"
    path = saved(tmp_path, {"weight": torch.ones(2), "x": Evil(call, f"touch '{mark}'")})
    with pytest.raises(DataError) as caught:
        load(path)
    assert f"{path}: asks for {name}, which is code and is not run" in str(caught.value)
    assert not mark.exists()


def test_what_may_be_called_cannot_be_changed_by_a_pickle(tmp_path: Path) -> None:
    # A program that sets the state of a function which later files get as well.
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x05\x00\x00\x00_makecbuiltins\nset\nsb."
    path = tmp_path / "x.pt"
    path.write_bytes(program)
    with pytest.raises(CheckError, match=r"its pickle is damaged"):
        load_pickle(path)
    np.testing.assert_array_equal(numbers(load(saved(tmp_path, torch.ones(3), "y.pt"))), [1, 1, 1])


def test_attributes_are_of_enums_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02cbuiltins\ngetattr\ncbuiltins\nset\nX\x07\x00\x00\x00__doc__\x86R.")
    with pytest.raises(CheckError, match=r"its pickle is damaged"):
        load_pickle(path)


def test_classes_of_deepspeed_become_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("deepspeed.made.up")

    class Stage(enum.Enum):
        weights = 3

    class Scaler:
        def __init__(self) -> None:
            self.scale = 4.0

    for kind in (Stage, Scaler):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    for name in ("deepspeed", "deepspeed.made", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    path = saved(tmp_path, {"stage": Stage.weights, "scaler": Scaler()})
    monkeypatch.undo()
    found = load(path)
    assert isinstance(found["stage"], Record)
    assert found["stage"].args == (3,)
    assert (found["scaler"].name, found["scaler"].state) == ("Scaler", {"scale": 4.0})


def test_the_form_before_archives_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(torch.ones(2), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match=r"before PyTorch 1\.6.* save it again with torch\.save"):
        load(tmp_path / "x.pt")


def test_other_files_are_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"not a file that torch.save wrote"):
        load(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        archive.writestr("a/b", "c")
    with pytest.raises(DataError, match=r"without data\.pkl"):
        load(tmp_path / "y.pt")


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": 1})
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    with pytest.raises(CheckError, match="is compressed, which"):
        load(tmp_path / "y.pt")


def test_damage_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": torch.arange(100.0)})
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(CheckError, match=r"cut short"):
        load(path)
    at = content.index(b"data.pkl") + 100
    path.write_bytes(content[:at] + b"\xff" * 20 + content[at + 20 :])
    with pytest.raises(CheckError, match=r"damaged"):
        load(path)
    (entry,) = [
        one.header_offset
        for one in zipfile.ZipFile(saved(tmp_path, {"w": torch.arange(9.0)})).infolist()
        if one.filename.endswith("data/0")
    ]
    content = path.read_bytes()
    path.write_bytes(content[: entry + 26] + struct.pack("<H", 60000) + content[entry + 28 :])
    with pytest.raises(CheckError, match=r"ends beyond the file"):
        load(path)


def test_places_before_a_file_are_found(tmp_path: Path) -> None:
    path = saved(tmp_path, torch.arange(4.0))
    for place in ((-1, 10), (0, -1)):
        with pytest.raises(CheckError, match=r"is said to have -?\d+ bytes from byte -?\d+ on"):
            load(path, *place)


def test_a_tensor_beyond_its_storage_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path, torch.arange(4.0))
    content = path.read_bytes()
    assert content.count(b"K\x04\x85") == 1  # the shape, (4,)
    path.write_bytes(content.replace(b"K\x04\x85", b"K\x05\x85"))
    with pytest.raises(CheckError, match=r"reaches beyond its data|damaged"):
        load(path)
