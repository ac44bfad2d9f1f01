"""Headers of safetensors files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines.errors import CheckError
from pipelines.safetensors_header import read_header


def test_entries_say_where_numbers_are(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "a": np.arange(6, dtype=np.float16).reshape(2, 3),
        "b": np.array(7, np.int64),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    found = read_header(path)
    assert {name: (entry.dtype, entry.shape) for name, entry in found.items()} == {
        "a": ("F16", (2, 3)),
        "b": ("I64", ()),
    }
    for name, tensor in tensors.items():
        content = path.read_bytes()[found[name].first :][: tensor.nbytes]
        assert content == tensor.tobytes()


def written(path: Path, header: object, numbers: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    return path


@pytest.mark.parametrize(
    ("header", "finding"),
    [
        (b"no json", "Expecting value"),
        ([1], "cannot be read"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "a has 4 bytes, its shape asks for 8"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, "a ends at byte"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-4, 4]}}, "something else than whole"),
        ({"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}, "something else than whole"),
        (b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 8]}}', "something else than whole"),
        ({name: {"dtype": "F16", "shape": [3], "data_offsets": [i, i + 6]} for i, name in enumerate("ab")}, "within"),
        (b'{"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}, "a": 3}', "a is there twice"),
        (b"[" * 100_000, "recursion"),
        ({"a": {"dtype": "F32"}}, "data_offsets"),
    ],
)
def test_a_header_that_does_not_fit_the_file_is_refused(tmp_path: Path, header: object, finding: str) -> None:
    path = written(tmp_path / "x.safetensors", header, b"12345678")
    with pytest.raises(CheckError, match=r"x\.safetensors: cannot be read") as caught:
        read_header(path)
    assert finding in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, (100).to_bytes(8, "little") + b"{}"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckError, match="cannot be read"):
        read_header(tmp_path / "x")
