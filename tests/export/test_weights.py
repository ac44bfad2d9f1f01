"""A checkpoint's weights, range by range."""

from pathlib import Path

import numpy as np
import pytest

import export.weights
from export.cast import Dtype, cast
from export.weights import Weights
from pipelines.checkpoints import Checkpoint
from pipelines.errors import CheckError
from tests.export.tiny import LLAMA, Tensors, random_tensors, write_checkpoint

NAME = "model.layers.0.mlp.up_proj.weight"


def weights(folder: Path, tensors: Tensors, dtype: Dtype, ranks: int = 1) -> Weights:
    return Weights(Checkpoint(write_checkpoint(folder / "step-00000001", LLAMA, tensors, ranks=ranks)), dtype)


@pytest.mark.parametrize("ranks", [1, 3, 8])
@pytest.mark.parametrize("block", [1, 1000, 1 << 22])
def test_any_cut_of_the_fragments_and_any_block_give_the_same_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, block: int
) -> None:
    tensors = random_tensors(LLAMA)
    read = weights(tmp_path, tensors, "bfloat16", ranks)
    monkeypatch.setattr(export.weights, "BLOCK", max(block, 1))
    names = ["model.norm.weight"] if block == 1 else list(tensors)  # a block a number is slow, and enough for one
    for name in names:
        np.testing.assert_array_equal(
            read.tensor(name), cast(tensors[name].reshape(-1), "bfloat16").reshape(tensors[name].shape)
        )


def test_what_overflows_is_named_with_what_to_do(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    tensors[NAME][3, 5] = -70000.0
    with pytest.raises(CheckError, match=rf"{NAME} holds 70000, beyond the range of float16; export bfloat16"):
        weights(tmp_path, tensors, "float16").tensor(NAME)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_diverged_model_is_not_exported(tmp_path: Path, value: float, dtype: Dtype) -> None:
    tensors = random_tensors(LLAMA)
    tensors[NAME][0, 0] = value
    with pytest.raises(CheckError, match=rf"{NAME} holds NaN or infinity, so training diverged"):
        weights(tmp_path, tensors, dtype).tensor(NAME)


def test_what_vanishes_is_counted(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    tensors[NAME][:2, 0] = 1e-9
    read = weights(tmp_path, tensors, "float16")
    read.tensor(NAME)
    assert read.vanished == 2
