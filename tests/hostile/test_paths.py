"""Names of files in files: none leads out of the directory that it stands in, and none to a device.

Links are followed where a directory is somebody's own: a hub's cache consists of links to files elsewhere. In the data
they are followed only with prep.order.follow_symlinks.
"""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)  # fmt: skip

from export.sources import foreign
from pipelines.artifacts import Manifest, canonical_json, identity
from pipelines.config import load
from pipelines.errors import PacktrainError
from prep.order import inputs_in_order
from prep.saved_dataset import listed_files
from tests.prep.small import TOKENIZER, conversations
from train.fit import weight_problems
from train.stored_tensors import StoredTensors

NAMES = ["../out", "{out}", "a/../../out", "..", ".", "", "a\0b", "/dev/zero", "/dev/stdin", "a//b"]
"""Each stands in place of an honest one; `{out}` is absolute, and a file of the right kind."""


def index(folder: Path, name: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))


def bin_index(folder: Path, name: str) -> None:
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": name}}))


def latest(folder: Path, name: str) -> None:
    (folder / "latest").write_text(name)


def latest_universal(folder: Path, name: str) -> None:
    (folder / "latest_universal").write_text(name)


def distributed(folder: Path, name: str) -> None:
    chunk = ChunkStorageMetadata(torch.Size([0]), torch.Size([2]))
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([2]), [chunk])
    place = {MetadataIndex("w", torch.Size([0])): _StorageInfo(name, 0, 8)}
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata({"w": tensor, "b": BytesStorageMetadata()}, None, place)))


def manifest(folder: Path, name: str) -> None:
    content = {
        "kind": "checkpoint", "format_version": 1, "identity": "0" * 64, "parents": {}, "facts": {},
        "files": [{"path": name, "size": 1, "sha256": "0" * 64}],
    }  # fmt: skip
    content["sha256"] = identity(content)
    (folder / "manifest.json").write_bytes(canonical_json(content))


def saved_dataset(folder: Path, name: str) -> None:
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))


def problems(folder: Path) -> None:
    found = [*weight_problems(folder)]
    assert len(found) == 1
    raise PacktrainError(f"{folder}: {found[0]}")


READERS: list[tuple[Callable[[Path, str], None], Callable[[Path], object]]] = [
    (index, foreign.find),
    (index, lambda folder: StoredTensors.of(load(folder.parent / "run.toml"), folder)),
    (index, problems),
    (bin_index, foreign.find),
    (latest, foreign.find),
    (latest_universal, foreign.find),
    (distributed, foreign.find),
    (manifest, Manifest.read),
    (saved_dataset, lambda folder: listed_files(folder, None, "prep.source.0")),
]


@pytest.mark.parametrize(("write", "read"), READERS)
def test_a_name_that_leads_elsewhere_is_refused_by_its_file(
    tmp_path: Path, write: Callable[[Path, str], None], read: Callable[[Path], object]
) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "out")
    pipeline(tmp_path)
    for number, name in enumerate(NAMES):
        folder = tmp_path / f"here{number}"
        (folder / "a").mkdir(parents=True)
        write(folder, name.format(out=tmp_path / "out"))
        with pytest.raises(PacktrainError) as caught:
            read(folder)
        assert str(folder) in str(caught.value), name
        assert "Error:" not in str(caught.value), name


def pipeline(folder: Path, order: str = 'mode = "write"', head: str = "") -> Path:
    file = folder / "run.toml"
    file.write_text(
        f'{head}schema_version = 1\n[run]\nname = "r"\n[model.scratch]\nmodel_type = "llama"\n'
        f'[tokenizer]\nname_or_path = "{TOKENIZER}"\n[prep]\n[[prep.source]]\nname = "a"\npath = "data"\n'
        f"[prep.pack]\ncapacity = 256\n[prep.order]\n{order}\n"
    )
    return file


@pytest.mark.parametrize("special", ["pipe", "device"])
def test_pipes_and_devices_in_the_data_are_not_read(tmp_path: Path, special: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.jsonl").write_text(conversations(3))
    if special == "pipe":
        os.mkfifo(tmp_path / "data" / "a.jsonl")  # who opened it would wait for ever
    else:
        (tmp_path / "data" / "a.jsonl").symlink_to("/dev/zero")
    with pytest.raises(PacktrainError, match=r"data/a\.jsonl: a device, a pipe or a socket"):
        inputs_in_order(load(pipeline(tmp_path)))


@pytest.mark.parametrize("parent", ["/dev/zero", "pipe"])
def test_what_a_pipeline_extends_is_a_file(tmp_path: Path, parent: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PacktrainError, match="a device or a pipe; name a TOML file"):
        load(pipeline(tmp_path, head=f'extends = ["{parent}"]\n'))
