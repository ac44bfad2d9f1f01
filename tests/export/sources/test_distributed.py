"""Checkpoints of torch.distributed.checkpoint whose metadata is wrong: named, and never other numbers."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save

from export.sources.foreign import find
from pipelines.errors import CheckError
from pipelines.file_ranges import FileRanges

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
WEIGHT = torch.arange(8, dtype=torch.float32).reshape(2, 4)


def written(folder: Path, change: Callable[[Any], object] = lambda _: None) -> Path:
    save({"model": {"a": WEIGHT, "b": WEIGHT[:, :2] * 3}}, checkpoint_id=folder, no_dist=True)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def cut_above(metadata: Any) -> None:
    """A part of `model.b` that begins a row above it."""
    metadata.state_dict_metadata["model.b"].size = torch.Size([2, 4])
    b = metadata.state_dict_metadata["model.b"]
    b.chunks = [ChunkStorageMetadata(torch.Size([-1, 0]), torch.Size([2, 2]))]
    place = metadata.storage_data.pop(MetadataIndex("model.b", torch.Size([0, 0])))
    metadata.storage_data[MetadataIndex("model.b", torch.Size([-1, 0]))] = place


def test_tensors_are_where_the_metadata_says(tmp_path: Path) -> None:
    found = find(written(tmp_path))
    assert found.tensors["model.b"].read(FileRanges(), 0, 4).tolist() == [0, 3, 12, 15]
    np.testing.assert_array_equal(found.tensors["model.a"].read(FileRanges(), 0, 8), WEIGHT.reshape(-1).numpy())


def place_of_b(metadata: Any) -> Any:
    return next(place for index, place in metadata.storage_data.items() if index.fqn == "model.b")


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (cut_above, r"has a part of model\.b that is none of \[2, 4\]"),
        (lambda m: object.__setattr__(place_of_b(m), "offset", -1), r"bytes from byte -1 on"),
        (lambda m: setattr(m, "storage_data", [3]), r"does not fit together \(AttributeError"),
        (lambda m: delattr(m, "state_dict_metadata"), r"does not fit together \(KeyError"),
        (lambda m: setattr(m.state_dict_metadata["model.a"], "size", None), r"does not fit together \(TypeError"),
    ],
)
def test_metadata_that_cannot_be_is_named(tmp_path: Path, change: Callable[[Any], object], finding: str) -> None:
    with pytest.raises(CheckError, match=finding):
        find(written(tmp_path, change))
