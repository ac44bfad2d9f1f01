"""Weights that are more than weights: pickles with code, and headers that lie about what follows them."""

import json
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from export.internevo.reader import load as load_internevo
from export.sources import foreign
from pipelines.errors import PacktrainError
from pipelines.safetensors_header import LONGEST, read_header
from tests.hostile.process import ended
from train.stored_tensors import _in_bin, _in_safetensors

# --- pickles


class Runs:
    """Leaves a mark where it is loaded by plain pickle."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def zipped(path: Path, content: object) -> None:
    with path.open("wb") as file:  # torch takes no name that begins with a point
        torch.save(content, file)


def plain(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content))


def legacy(path: Path, content: object) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def weights_bin(folder: Path) -> Path:
    return folder / "pytorch_model.bin"


def metadata(folder: Path) -> Path:
    return folder / ".metadata"


def deepspeed(folder: Path) -> Path:
    (folder / "latest").write_text("global_step1")
    (folder / "global_step1").mkdir()
    return folder / "global_step1" / "mp_rank_00_model_states.pt"


def universal(folder: Path) -> Path:
    (folder / "zero" / "w").mkdir(parents=True)
    return folder / "zero" / "w" / "fp32.pt"


@pytest.mark.parametrize("save", [zipped, plain, legacy])
@pytest.mark.parametrize("place", [weights_bin, metadata, deepspeed, universal])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    tmp_path: Path, place: Callable[[Path], Path], save: Callable[[Path, object], None]
) -> None:
    folder, mark = tmp_path / "checkpoint", tmp_path / "ran"
    folder.mkdir()
    save(place(folder), {"w": Runs(mark)})
    with pytest.raises(PacktrainError) as caught:
        foreign.find(folder)
    assert not mark.exists()
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("save", [zipped, plain, legacy])
@pytest.mark.parametrize("read", [lambda path: [*_in_bin(path)], load_internevo])
def test_code_in_weights_to_train_or_import_is_refused_and_not_run(
    tmp_path: Path, read: Callable[[Path], object], save: Callable[[Path, object], None]
) -> None:
    save(tmp_path / "model.bin", {"w": Runs(tmp_path / "ran")})
    with pytest.raises(PacktrainError, match=r"model\.bin"):
        read(tmp_path / "model.bin")
    assert not (tmp_path / "ran").exists()


# --- headers


def raw(header: bytes, length: int | None = None, data: bytes = b"\0" * 16) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def said(**entries: Any) -> bytes:
    return raw(json.dumps(entries).encode())


def entry(begin: Any = 0, end: Any = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS = {
    "nothing": b"",
    "shorter than a length": b"\0" * 7,
    "the longest length": raw(b"{}", (1 << 64) - 1),
    "a length beyond the file": raw(b"{}", 1 << 20),
    "not JSON": raw(b"{{{{"),
    "not UTF-8": raw(b'{"\xff": 1}'),
    "nested": raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a list": raw(b"[]"),
    "no entry": said(w=1),
    "no offsets": said(w={"dtype": "F32", "shape": [2]}),
    "negative": said(w=entry(-8, 0)),
    "backwards": said(w=entry(8, 0)),
    "beyond the file": said(w=entry(0, 64, (16,))),
    "other bytes than its shape": said(w=entry(0, 8, (1 << 40, 1 << 40))),
    "a negative shape": said(w=entry(0, 8, (-1, -2))),
    "a shape of text": said(w=entry(0, 8, ["2"])),
    "a shape of truth": said(w=entry(0, 4, [True])),
    "fractions": said(w=entry(0.0, 8.0)),
    "more digits than numbers have": raw(b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}'),
    "overlapping": said(v=entry(0, 8), w=entry(4, 12)),
    "the same name twice": raw(
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
    ),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for read in (read_header, lambda path: [*_in_safetensors(path)], lambda path: foreign.find(path.parent)):
        with pytest.raises(PacktrainError, match=r"model\.safetensors: "):
            read(path)


def test_a_header_is_never_read_beyond_the_formats_own_limit(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", LONGEST + 1))
        file.truncate(4 << 30)  # of nothing on the disk
    words = (
        "import sys\nfrom pathlib import Path\nfrom pipelines.safetensors_header import read_header\n"
        "try: read_header(Path(sys.argv[1]))\nexcept Exception as error: print(error)"
    )
    done = ended([sys.executable, "-c", words, str(path)], env={"PYTHONPATH": str(Path(__file__).parents[2])})
    assert "no header where one has to be" in done.out
    assert done.peak_mb < 128
