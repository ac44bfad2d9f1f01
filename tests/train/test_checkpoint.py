"""What a checkpoint's files hold."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pipelines.artifacts import FileRecord, Manifest, identity
from pipelines.checkpoints import FORMAT_VERSION, Checkpoint, fragment_key
from pipelines.errors import CheckError
from train.checkpoint import write_safetensors


def test_file_reads_back_with_safetensors_and_has_the_digest_said(tmp_path: Path) -> None:
    tensors = {
        "parameter/w/0": torch.arange(6.0)[1:4],
        "exp_avg/w/3": torch.zeros(0),
        "buffer/n/0": torch.tensor([[1, 2], [3, 4]]),
    }
    record = write_safetensors(tmp_path / "x.safetensors", tensors)
    assert record == FileRecord.of(tmp_path, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert all(torch.equal(file.get_tensor(key), tensor) for key, tensor in tensors.items())


def checkpoint(folder: Path, cuts: list[int]) -> Checkpoint:
    """A checkpoint of one parameter of 12 elements, cut at these places."""
    values = torch.arange(12.0)
    pieces = zip([0, *cuts], [*cuts, 12], strict=True)
    records = [
        write_safetensors(
            folder / f"state-{rank:05d}-of-{len(cuts) + 1:05d}.safetensors",
            {fragment_key("parameter", "w", start): values[start:stop]},
        )
        for rank, (start, stop) in enumerate(pieces)
    ]
    facts = {"parameters": {"w": [3, 4]}, "buffers": {}}
    Manifest("checkpoint", FORMAT_VERSION, identity(cuts), {}, records, facts).write(folder)
    return Checkpoint(folder)


@pytest.mark.parametrize("cuts", [[], [6], [1, 11], [4, 5, 6]])
def test_any_stretch_reads_the_same_however_it_was_cut(cuts: list[int], tmp_path: Path) -> None:
    found = checkpoint(tmp_path, cuts)
    for start in range(12):
        for stop in range(start, 13):
            assert found.read("parameter", "w", start, stop).tolist() == list(range(start, stop))
    ((name, whole),) = found.tensors()
    assert (name, whole.shape) == ("w", (3, 4))


def test_hole_in_a_tensor_is_an_error(tmp_path: Path) -> None:
    checkpoint(tmp_path, [4, 8])
    (tmp_path / "state-00001-of-00003.safetensors").unlink()
    write_safetensors(tmp_path / "state-00001-of-00003.safetensors", {})
    with pytest.raises(CheckError, match="parameter of w holds 4 of 12 elements in one piece"):
        Checkpoint(tmp_path).read("parameter", "w")
