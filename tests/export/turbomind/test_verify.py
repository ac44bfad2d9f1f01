"""A written TurboMind folder is read back: what it holds passes, and any damage is found."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from export.hf import Model
from export.turbomind import geometry
from export.turbomind.as_model import load_workspace
from export.turbomind.folder import write_turbomind
from export.turbomind.verify import verify_turbomind
from export.verify import trained_model
from pipelines.checkpoints import Checkpoint
from pipelines.errors import CheckError
from pipelines.schema import ExportVerify, TurbomindExport
from tests.export.tiny import LLAMA, QWEN2, write_checkpoint
from tests.export.turbomind.models import EVERY, GLM, MIXTRAL, model_tensors

WEIGHTS = Path("triton_models") / "weights"


@pytest.fixture(autouse=True)
def _tiny_glm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "GLM_LAYERS", GLM["num_hidden_layers"])


def turbomind(folder: Path, config: dict[str, Any], tp: int) -> tuple[Model, Path]:
    checkpoint = write_checkpoint(folder / "step-00000001", config, model_tensors(config), ranks=3)
    exported, out = Model.of(Checkpoint(checkpoint), "bfloat16"), folder / "turbomind"
    out.mkdir()
    write_turbomind(exported, out, TurbomindExport.model_validate({"tp": tp}), "tiny")
    return exported, out


EIGHT = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512, "intermediate_size": 90}
ROPE = {"rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize(
    ("config", "tp"),
    [
        (LLAMA, 1),
        (LLAMA | EIGHT, 4),
        (QWEN2 | EIGHT | {"tie_word_embeddings": True}, 8),
        (LLAMA | {"rope_parameters": {**ROPE, "rope_type": "linear"}}, 2),
        (LLAMA | {"rope_parameters": {**ROPE, "rope_type": "dynamic"}}, 1),
        (LLAMA | {"rope_parameters": {**ROPE, "rope_type": "yarn"}}, 1),
        (
            LLAMA
            | {
                "rope_parameters": {
                    **ROPE,
                    "rope_type": "llama3",
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 128,
                }
            },
            1,
        ),
        (EVERY["internlm2"], 4),
        (EVERY["internlm"], 2),
        (MIXTRAL | {"intermediate_size": 56}, 4),  # which PyTorch has a kernel for
        (GLM, 4),
    ],
)
def test_a_turbomind_folder_gives_the_logits_of_the_checkpoint(tmp_path: Path, config: dict[str, Any], tp: int) -> None:
    exported, folder = turbomind(tmp_path, config, tp)
    found = verify_turbomind(exported, folder, ExportVerify(greedy_tokens=4))
    assert found["tensors_equal"] == len(exported.weights.shapes)
    assert found["greedy"]["max_abs_diff"] == 0.0


@pytest.mark.parametrize(
    ("config", "tp"),
    [
        (LLAMA | EIGHT, 4),
        (QWEN2 | EIGHT | {"tie_word_embeddings": True}, 8),
        (EVERY["internlm2"], 4),
        (EVERY["internlm"], 2),
        (MIXTRAL | {"intermediate_size": 56}, 4),
        (GLM, 4),
    ],
)
def test_a_turbomind_folder_alone_is_a_model_that_computes_the_same(
    tmp_path: Path, config: dict[str, Any], tp: int
) -> None:
    exported, folder = turbomind(tmp_path, config, tp)
    ids = torch.arange(3, 30)[None]
    with torch.inference_mode():
        found, expected = (model(ids).logits.float() for model in (load_workspace(folder), trained_model(exported)))
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.std()))  # sums in another order


@pytest.mark.parametrize(
    ("name", "place", "finding"),
    [
        ("norm.weight", 0, r"model\.norm\.weight differs .* in 1 of 512"),
        ("layers.1.attention.w_qkv.3.weight", 0, r"layers\.1\.self_attn\.q_proj\.weight differs .* in 1 of"),
        ("layers.0.attention.w_qkv.1.weight", 2 * 64 * 2, r"v_proj\.weight differs .* in 1 of"),
        ("layers.0.feed_forward.w1.7.weight", -2, r"gate_proj\.weight differs .* in 1 of"),
        ("output.7.weight", -2, r"lm_head\.weight differs .* in 1 of"),
        (
            "layers.1.attention.wo.2.bias",
            0,
            r"the ranks' copies of \S+\.1\.self_attn\.o_proj\.bias differ",
        ),
    ],
)
def test_one_changed_bit_in_a_turbomind_file_is_found(tmp_path: Path, name: str, place: int, finding: str) -> None:
    exported, folder = turbomind(tmp_path, QWEN2 | EIGHT, 8)
    path = folder / WEIGHTS / name
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckError, match=finding):
        verify_turbomind(exported, folder, ExportVerify())


@pytest.mark.parametrize(("key", "value"), [("rope_theta", 10000.0), ("rope_scaling_type", "linear")])
def test_a_turbomind_config_of_another_model_is_found(tmp_path: Path, key: str, value: Any) -> None:
    exported, folder = turbomind(tmp_path, LLAMA, 1)
    path = folder / WEIGHTS / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["attention_config"] |= {"rope_scaling_factor": 3.0, key: value}
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(CheckError, match="its logits are up to"):
        verify_turbomind(exported, folder, ExportVerify())
