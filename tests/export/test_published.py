"""The names of a model's files: as Transformers saves them, with the same numbers, from any range."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from export.hf import Model
from export.published import PublishedWeights
from pipelines.checkpoints import Checkpoint
from tests.export.architectures import build, save

RENAMED = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "deepseek_v3", "gpt_neox", "hrm_text"]
AS_TRAINED = ["gpt_oss", "llama4_text", "qwen3"]


@pytest.mark.parametrize("model_type", RENAMED + AS_TRAINED)
def test_files_have_the_names_and_numbers_that_transformers_saves(model_type: str, tmp_path: Path) -> None:
    model = build(model_type)
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    weights = Model.of(Checkpoint(save(model, tmp_path / "step-00000001", ranks=2)), "float32").weights
    assert isinstance(weights, PublishedWeights) == (model_type in RENAMED)
    assert weights.shapes == {name: tuple(saved[name].shape) for name in weights.shapes}
    assert weights.shapes.keys() == saved.keys()
    for name, tensor in saved.items():
        assert np.array_equal(weights.tensor(name).view(np.float32), tensor.numpy()), name
