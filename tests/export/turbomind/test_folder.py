"""TurboMind folders: against a second writer, against LMDeploy's own converter, and read back."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import export.turbomind.llama
from export.cast import Dtype
from export.hf import Model
from export.turbomind.folder import write_turbomind
from export.turbomind.geometry import Unservable
from export.turbomind.reader import TurbomindReader
from pipelines.checkpoints import Checkpoint
from pipelines.errors import CheckError
from pipelines.schema import TurbomindExport
from tests.export.tiny import LLAMA, MISTRAL, QWEN2, Tensors, random_tensors, write_checkpoint
from tests.export.turbomind.reference import weight_files

GOLDEN = Path(__file__).with_name("golden.json")
EIGHT = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64, "num_hidden_layers": 2}
"""Heads for any tensor-parallel size; the MLP of 88 and the vocabulary of 259 do not divide and are padded."""
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA | EIGHT | {"intermediate_size": 90},
    "llama_tied": LLAMA | EIGHT | {"tie_word_embeddings": True},
    "llama3": LLAMA | EIGHT | {"rope_parameters": LLAMA3},
    "llama_biased": LLAMA | EIGHT | {"attention_bias": True},
    "linear": LLAMA | EIGHT | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4}},
    "dynamic": LLAMA | EIGHT | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    "yarn": LLAMA | EIGHT | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}},
    "mistral": MISTRAL | EIGHT | {"head_dim": 128},
    "qwen2": QWEN2 | EIGHT | {"hidden_size": 512, "num_hidden_layers": 1},
    "qwen2_tied": QWEN2 | EIGHT | {"hidden_size": 512, "num_hidden_layers": 1, "tie_word_embeddings": True},
}
CASES = [(name, dtype, tp) for name in MODELS for dtype in ("bfloat16", "float16") for tp in (1, 2, 4, 8)]


def write(folder: Path, config: dict[str, Any], dtype: Dtype, tp: int) -> tuple[Path, Tensors]:
    """A folder of the seeded model with that config; returns its weights' directory and the model's weights."""
    tensors = random_tensors(config)
    checkpoint = Checkpoint(write_checkpoint(folder / "step-00000001", config, tensors, ranks=2))
    out = folder / "turbomind"
    out.mkdir()
    table = TurbomindExport.model_validate({"tp": tp, "weight_type": dtype})
    write_turbomind(Model.of(checkpoint, dtype), out, table, "tiny")
    return out / "triton_models" / "weights", tensors


@pytest.mark.parametrize(("name", "dtype", "tp"), CASES)
def test_every_byte_is_as_a_second_writer_and_lmdeploy_write_it(
    tmp_path: Path, name: str, dtype: Dtype, tp: int
) -> None:
    weights, tensors = write(tmp_path, MODELS[name], dtype, tp)
    found = {path.name: path.read_bytes() for path in weights.iterdir()}
    settings = found.pop("config.yaml")
    assert found == weight_files(MODELS[name], tensors, tp, dtype)
    if name != "llama_biased":  # LMDeploy's converter writes these biases but not that there are any
        assert digest({**found, "config.yaml": settings}) == json.loads(GOLDEN.read_bytes())[f"{name} {dtype} {tp}"]


def digest(files: dict[str, bytes]) -> str:
    """One SHA-256 of all names and contents."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_small_blocks_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.turbomind.llama, "BLOCK", 5 * 64 + 1)
    weights, tensors = write(tmp_path, MODELS["llama"], "bfloat16", 4)
    found = {path.name: path.read_bytes() for path in weights.iterdir() if path.name != "config.yaml"}
    assert found == weight_files(MODELS["llama"], tensors, 4, "bfloat16")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tp", [1, 8])
def test_reading_gives_the_tensors_back(tmp_path: Path, name: str, tp: int) -> None:
    weights, tensors = write(tmp_path, MODELS[name], "float16", tp)
    found = dict(TurbomindReader(weights.parents[1]).tensors())
    if name == "qwen2" or name == "qwen2_tied":
        assert not found.pop("model.layers.0.self_attn.o_proj.bias").any()
    if MODELS[name]["tie_word_embeddings"]:
        np.testing.assert_array_equal(found.pop("lm_head.weight"), found["model.embed_tokens.weight"])
    assert set(found) == set(tensors)
    if tp == 1:  # nothing is padded or repeated
        for key, tensor in tensors.items():
            np.testing.assert_array_equal(found[key], tensor.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (lambda path: path.unlink(), "missing, config.yaml implies 64 "),
        (lambda path: path.write_bytes(b"\0" * 10), "10 bytes, config.yaml implies 64 "),
    ],
)
def test_a_missing_or_short_file_is_named(tmp_path: Path, damage: Any, finding: str) -> None:
    weights, _ = write(tmp_path, LLAMA | {"hidden_size": 32}, "bfloat16", 2)
    damage(weights / "layers.1.ffn_norm.weight")
    with pytest.raises(CheckError, match=rf"layers\.1\.ffn_norm\.weight: {finding}"):
        list(TurbomindReader(weights.parents[1]).tensors())


def test_a_file_too_many_is_named(tmp_path: Path) -> None:
    weights, _ = write(tmp_path, LLAMA, "bfloat16", 1)
    (weights / "layers.2.ffn_norm.weight").touch()
    with pytest.raises(CheckError, match=r"layers\.2\.ffn_norm\.weight: no weight of this model"):
        list(TurbomindReader(weights.parents[1]).tensors())


def test_a_sliding_window_bounds_the_context_that_is_served(tmp_path: Path) -> None:
    weights, _ = write(tmp_path, MISTRAL | {"sliding_window": 128}, "bfloat16", 1)
    settings = yaml.safe_load((weights / "config.yaml").read_bytes())
    assert settings["model_config"]["session_len"] == 128
    assert settings["attention_config"]["max_position_embeddings"] == 512


@pytest.mark.parametrize(
    ("changed", "tp", "finding"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, 1, "no LMDeploy release reads its query and key norms back"),
        ({"architectures": ["MixtralForCausalLM"]}, 1, "packtrain does not write its TurboMind folder yet"),
        ({"architectures": ["Gemma3ForCausalLM"]}, 1, "LMDeploy 0.7.3, .* does not know it; .* the hf export"),
        ({"head_dim": 32}, 1, "heads of 64 and 128 numbers, this LlamaForCausalLM has 32"),
        ({"num_attention_heads": 6, "num_key_value_heads": 3}, 4, r"^does not divide 6 .*; use 1$"),
        ({"num_attention_heads": 12, "num_key_value_heads": 2}, 8, r"^does not divide 12 .*; use 1 or 2 or 4$"),
        ({"hidden_act": "gelu"}, 1, "an MLP with silu, this model with gelu"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            1,
            "whole heads",
        ),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}}, 1, "rope_type 'longrope'"),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "original_max_position_embeddings": 256,
                }
            },
            1,
            "rope_type 'yarn', 256 original positions and max_position_embeddings = 512",
        ),
    ],
)
def test_what_no_engine_would_serve_right_is_refused_with_the_reason(
    tmp_path: Path, changed: dict[str, Any], tp: int, finding: str
) -> None:
    with pytest.raises(Unservable, match=finding) as caught:
        write(tmp_path, LLAMA | changed, "bfloat16", tp)
    assert caught.value.key == ("export.targets" if tp == 1 else "export.turbomind.tp")
    assert not list((tmp_path / "turbomind").iterdir())


def test_biases_of_the_mlp_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA) | {"model.layers.0.mlp.gate_proj.bias": np.zeros(88, np.float32)}
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "step-00000001", LLAMA, tensors))
    with pytest.raises(Unservable, match="no place for biases of the MLP"):
        write_turbomind(Model.of(checkpoint, "bfloat16"), tmp_path / "out", TurbomindExport(), "tiny")
