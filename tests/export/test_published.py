"""The names of a model's files: as Transformers saves them, with the same numbers, from any range."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from export.hf import Model, write_hf
from export.published import Form, Joined, PublishedWeights, Region
from export.run import run
from export.weights import Weights
from pipelines.artifacts import Manifest
from pipelines.checkpoints import Checkpoint, step_folder
from pipelines.errors import ConfigError
from tests.export.adapted import adapted_pipeline, write_adapted_run
from tests.export.architectures import build, save
from tests.export.tiny import LLAMA, pipeline, random_tensors, write_checkpoint, write_run

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


def test_experts_are_separate_matrices_and_loaded_as_they_were_trained(tmp_path: Path) -> None:
    checkpoint = step_folder(tmp_path / "work" / "tiny" / "train" / "checkpoints", 3)
    model = build("deepseek_v3")
    save(model, checkpoint, ranks=2)
    run(pipeline(tmp_path, hf={"dtype": "bfloat16", "max_shard_size": 50_000}, verify={"greedy_tokens": 4}))
    folder = tmp_path / "work" / "tiny" / "export" / "hf"
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert manifest.facts["verified"]["greedy"]["max_abs_diff"] == 0.0
    stored = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert stored["model.layers.1.mlp.experts.3.up_proj.weight"].shape == (16, 48)
    # What chooses experts is computed in float32, and stored so: not a number of it changes.
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert stored.pop(name).equal(model.state_dict()[name])
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert "; 1 of the tensors in float32" in (folder / "README.md").read_text()


def test_a_setting_is_written_under_every_name_it_has(tmp_path: Path) -> None:
    model = Model.of(Checkpoint(save(build("qwen3_moe"), tmp_path / "step-00000001")), "float32")
    assert (model.config["num_experts"], model.config["num_local_experts"]) == (4, 4)


def test_a_model_that_transformers_does_not_know_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_run(tmp_path, LLAMA | {"model_type": "llama99", "architectures": ["Llama99ForCausalLM"]})
    with pytest.raises(ConfigError, match=r"has no language model of type 'llama99'"):
        run(pipeline(tmp_path))
    assert not (tmp_path / "work" / "tiny" / "export" / "hf").exists()


def test_settings_that_transformers_refuses_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Transformers refuses its config\.json \(.*hidden_size.*\); correct it"):
        Form(LLAMA | {"hidden_size": "wide"}, tmp_path)


def test_a_buffer_of_whole_numbers_is_refused_by_name(tmp_path: Path) -> None:
    buffers = {"model.table": np.arange(3)}
    checkpoint = write_checkpoint(tmp_path / "step-00000001", LLAMA, random_tensors(LLAMA), buffers=buffers)
    with pytest.raises(ConfigError, match=r"keeps model\.table beside its parameters as int64"):
        Weights(Checkpoint(checkpoint), "float32")


def test_a_form_that_cannot_be_gathered_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.published._OPERATIONS", {})
    with pytest.raises(ConfigError, match=r"mixtral models are stored in a form .* \(chunk of tensors\)"):
        Model.of(Checkpoint(save(build("mixtral"), tmp_path / "step-00000001")), "float32")


def test_regions_are_what_pytorch_makes_of_tensors() -> None:
    numbers = torch.arange(4 * 6 * 5).reshape(4, 6, 5)
    region: Any = Region.whole("experts", (4, 6, 5))

    def elements(found: Any, start: int, stop: int) -> list[int]:
        runs = (found if isinstance(found, Joined) else Joined((found,))).runs(start, stop)
        return [place for _, first, last in runs for place in range(first, last)]

    def of_both(operation: Any) -> None:
        expected, found = operation(numbers), operation(region)
        assert found.shape == tuple(expected.shape)
        flat = expected.reshape(-1).tolist()
        for start, stop in ((0, len(flat)), (3, 17), (7, 8), (5, 5)):
            assert elements(found, start, stop) == flat[start:stop]

    of_both(lambda tensor: torch.chunk(tensor, 2, dim=1)[1].contiguous())
    of_both(lambda tensor: torch.chunk(torch.chunk(tensor, 2, dim=1)[1].contiguous(), 4, dim=0)[2].squeeze(0))
    of_both(lambda tensor: torch.transpose(torch.split(tensor, [1, 5], dim=1)[1], 1, 2))
    of_both(lambda tensor: torch.cat([torch.chunk(tensor, 2, dim=0)[1], tensor], dim=0))
    third: Any = torch.chunk(region, 4)[2]
    assert list(third.squeeze(0).runs(0, 30)) == [("experts", 60, 90)]
    with pytest.raises(NotImplementedError, match="side by side"):
        torch.cat([region, region], dim=1)


def test_an_adapter_is_merged_into_a_base_with_separate_experts(tmp_path: Path) -> None:
    config = json.loads(build("mixtral").config.to_json_string())
    lora = {"r": 2, "target_modules": ["q_proj"]}
    write_adapted_run(tmp_path, lora, {**config, "architectures": ["MixtralForCausalLM"]})
    run(adapted_pipeline(tmp_path, lora, verify={"greedy_tokens": 2}))
    before, after = (
        {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        for folder in (tmp_path / "base", tmp_path / "work" / "tiny" / "export" / "hf")
    )
    assert before.keys() == after.keys()
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in after
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {name for name in before if "q_proj" in name}


def test_names_of_files_stay_as_they_are(tmp_path: Path) -> None:
    model = Model.of(Checkpoint(save(build("mixtral"), tmp_path / "step-00000001")), "float32")
    (tmp_path / "hf").mkdir()
    write_hf(model, tmp_path / "hf", 10**9)
    tensors = {name: tensor.numpy() for name, tensor in load_file(tmp_path / "hf" / "model.safetensors").items()}
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    again = Weights(Checkpoint(write_checkpoint(tmp_path / "step-00000002", config, tensors)), "float32")
    assert Form(config, tmp_path).published(again) is again
