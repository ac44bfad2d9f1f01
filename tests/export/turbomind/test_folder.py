"""TurboMind folders: against a second writer, against LMDeploy's own converter, and read back."""

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import export.turbomind.reader
import export.turbomind.verify
import export.turbomind.writer
from export.cast import Dtype
from export.hf import Model
from export.turbomind import geometry, layout
from export.turbomind.config import config_yaml, session_len
from export.turbomind.folder import write_turbomind
from export.turbomind.geometry import Unservable
from export.turbomind.reader import TurbomindReader
from export.turbomind.verify import compare
from export.turbomind.writer import write_weights
from export.weights import Weights
from pipelines.checkpoints import Checkpoint
from pipelines.errors import CheckError
from pipelines.schema import TurbomindExport
from tests.export.tiny import LLAMA, MISTRAL, Tensors, shapes, write_checkpoint
from tests.export.turbomind.models import CASES, EIGHT, EVERY, GLM, MODELS, UNLIKE_LMDEPLOY, model_tensors
from tests.export.turbomind.reference import weight_files

GOLDEN = Path(__file__).with_name("golden.json")


@pytest.fixture(autouse=True)
def _tiny_glm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "GLM_LAYERS", GLM["num_hidden_layers"])


def write(folder: Path, config: dict[str, Any], dtype: Dtype, tp: int) -> tuple[Path, Tensors]:
    """A folder of the seeded model with that config; returns its weights' directory and the model's weights."""
    tensors = model_tensors(config)
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
    weights, tensors = write(tmp_path, EVERY[name], dtype, tp)
    found = {path.name: path.read_bytes() for path in weights.iterdir()}
    settings = found.pop("config.yaml")
    assert found == weight_files(EVERY[name], tensors, tp, dtype)
    if name not in UNLIKE_LMDEPLOY:
        assert digest({**found, "config.yaml": settings}) == json.loads(GOLDEN.read_bytes())[f"{name} {dtype} {tp}"]


def digest(files: dict[str, bytes]) -> str:
    """One SHA-256 of all names and contents."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_small_blocks_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.turbomind.writer, "BAND", 5 * 64 + 1)
    weights, tensors = write(tmp_path, MODELS["llama"], "bfloat16", 4)
    found = {path.name: path.read_bytes() for path in weights.iterdir() if path.name != "config.yaml"}
    assert found == weight_files(MODELS["llama"], tensors, 4, "bfloat16")


@pytest.mark.parametrize("name", [*MODELS, "glm", "mixtral"])
@pytest.mark.parametrize("tp", [1, 4])
def test_reading_gives_the_tensors_back(tmp_path: Path, name: str, tp: int) -> None:
    weights, tensors = write(tmp_path, EVERY[name], "float16", tp)
    reader = TurbomindReader(weights.parents[1])
    found = {key: reader.tensor(key) for key in reader.stored}
    if name in ("qwen2", "qwen2_tied", "glm"):
        for layer in range(EVERY[name]["num_hidden_layers"]):
            assert not found.pop(f"model.layers.{layer}.self_attn.o_proj.bias").any()
    if EVERY[name]["tie_word_embeddings"]:
        np.testing.assert_array_equal(found.pop("lm_head.weight"), found["model.embed_tokens.weight"])
    for layer in range(EVERY[name]["num_hidden_layers"] if name == "glm" else 0):
        mlp = f"model.layers.{layer}.mlp"
        halves = [found.pop(f"{mlp}.{part}_proj.weight") for part in ("gate", "up")]
        found[f"{mlp}.gate_up_proj.weight"] = np.concatenate(halves)
    assert set(found) == set(tensors)
    if tp == 1:  # nothing is padded or repeated
        for key, tensor in tensors.items():
            np.testing.assert_array_equal(found[key].reshape(tensor.shape), tensor.astype(np.float16).view(np.uint16))


def test_rows_can_be_read_a_few_at_a_time(tmp_path: Path) -> None:
    weights, _ = write(tmp_path, EVERY["llama"], "float16", 4)
    reader = TurbomindReader(weights.parents[1])
    for name, stored in reader.stored.items():
        rows = [reader.rows(name, start, min(start + 7, stored.shape[0])) for start in range(0, stored.shape[0], 7)]
        np.testing.assert_array_equal(np.concatenate(rows), reader.tensor(name))


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
        TurbomindReader(weights.parents[1])


def test_a_file_too_many_is_named(tmp_path: Path) -> None:
    weights, _ = write(tmp_path, LLAMA, "bfloat16", 1)
    (weights / "layers.2.ffn_norm.weight").touch()
    with pytest.raises(CheckError, match=r"layers\.2\.ffn_norm\.weight: no weight of this model"):
        TurbomindReader(weights.parents[1])


def test_a_sliding_window_bounds_the_context_that_is_served(tmp_path: Path) -> None:
    weights, _ = write(tmp_path, MISTRAL | {"sliding_window": 128}, "bfloat16", 1)
    settings = yaml.safe_load((weights / "config.yaml").read_bytes())
    assert settings["model_config"]["session_len"] == 128
    assert settings["attention_config"]["max_position_embeddings"] == 512


@pytest.mark.parametrize(
    ("changed", "tp", "finding"),
    [
        (
            {"architectures": ["Qwen3ForCausalLM"]},
            1,
            "query and key norms, which no .* loads the hf export itself",
        ),
        (
            {"architectures": ["Qwen3MoeForCausalLM"]},
            1,
            "query and key norms, which no .* loads the hf export itself",
        ),
        (
            {"architectures": ["Qwen2MoeForCausalLM"]},
            1,
            "a shared expert, which no .* loads the hf export itself",
        ),
        ({"architectures": ["DeepseekV2ForCausalLM"]}, 1, "latent attention, which no .* PyTorch engine"),
        ({"architectures": ["GptOssForCausalLM"]}, 1, "newer than LMDeploy 0.7.3, .* loads the hf export itself"),
        ({"architectures": ["Glm4ForCausalLM"]}, 1, "newer than LMDeploy 0.7.3, .* PyTorch engine"),
        ({"architectures": ["Gemma3ForCausalLM"]}, 1, "LMDeploy 0.7.3, .* does not know it; .* PyTorch engine"),
        ({"architectures": ["Phi3ForCausalLM"]}, 1, "LMDeploy 0.7.3, .* does not know it; .* PyTorch engine"),
        (GLM | {"num_hidden_layers": 3}, 1, "ChatGLMModel models of 2 layers alone, this one has 3"),
        (GLM | {"head_dim": 64}, 1, "heads of 128 numbers, this ChatGLMModel has 64"),
        (
            GLM | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            1,
            "rotates 64 numbers of each, this model 128",
        ),
        ({"num_attention_heads": 8, "hidden_size": 100}, 8, "^does not divide 8 .*; use 1 or 2 or 4$"),
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
    changed: dict[str, Any], tp: int, finding: str
) -> None:
    config = LLAMA | changed

    def settings() -> bytes:
        sizes = geometry.Geometry.of(geometry.architecture_of(config), config, {}, tp)
        return config_yaml(sizes, config, TurbomindExport(), "tiny")

    with pytest.raises(Unservable, match=finding) as caught:
        settings()
    assert caught.value.key == ("export.targets" if tp == 1 else "export.turbomind.tp")


def test_an_internlm3_with_code_of_its_own_has_the_files_of_a_llama(tmp_path: Path) -> None:
    config = LLAMA | EIGHT | {"architectures": ["InternLM3ForCausalLM"], "model_type": "internlm3"}
    tensors = model_tensors(config)
    folder = write_checkpoint(tmp_path / "step-00000001", config, tensors)
    (folder / "model" / "modeling_internlm3.py").touch()
    write_turbomind(Model.of(Checkpoint(folder), "bfloat16"), tmp_path / "out", TurbomindExport(tp=2), "tiny")
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "triton_models" / "weights").iterdir()}
    assert yaml.safe_load(found.pop("config.yaml"))["model_config"]["model_arch"] == "InternLM3ForCausalLM"
    assert found == weight_files(config, tensors, 2, "bfloat16")


def test_what_stays_in_float32_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Weights, "dtype_of", lambda _, name: "float32" if "norm" in name else "bfloat16")
    with pytest.raises(Unservable, match=r"input_layernorm\.weight stays in float32"):
        write(tmp_path, LLAMA, "bfloat16", 1)


def test_nothing_is_written_of_a_model_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unservable, match="heads of 64 and 128"):
        write(tmp_path, LLAMA | {"head_dim": 32}, "bfloat16", 1)
    assert not list((tmp_path / "turbomind").iterdir())


def test_a_longer_text_than_the_model_was_made_for_is_refused() -> None:
    table = TurbomindExport(session_len=1000)
    with pytest.raises(Unservable, match="was made for 512 tokens; use 512 or less") as caught:
        session_len(LLAMA, table)
    assert caught.value.key == "export.turbomind.session_len"
    assert session_len(LLAMA | {"max_position_embeddings": 2048}, table) == 1000
    assert session_len(MODELS["dynamic"], table) == 1000  # which stretches positions as far as it is asked to


@pytest.mark.parametrize(
    ("tensor", "finding"),
    [("mlp.gate_proj.bias", "no place for biases of the MLP"), ("self_attn.q_norm.weight", "query and key norms back")],
)
def test_tensors_that_have_no_place_are_refused(tensor: str, finding: str) -> None:
    with pytest.raises(Unservable, match=finding):
        geometry.Geometry.of("LlamaForCausalLM", LLAMA, {f"model.layers.0.{tensor}": (88,)}, 1)


class Counted:
    """Weights of a model that no memory ever holds: numbers computed where they are asked for."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.shapes = shapes(config)
        self.nbytes = 2 * sum(int(np.prod(shape)) for shape in self.shapes.values())

    def read(self, name: str, start: int, stop: int) -> Any:
        return (np.arange(start, stop, dtype=np.uint32) * np.uint32(len(name) | 1)).astype(np.uint16)


def test_memory_holds_a_band_and_never_a_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LLAMA | EIGHT | {"hidden_size": 512, "intermediate_size": 8192, "num_hidden_layers": 1}
    weights: Any = Counted(config)  # matrices of 8 MiB
    sizes = geometry.Geometry.of("LlamaForCausalLM", config, weights.shapes, 2)
    for module, band in ((export.turbomind.writer, 1 << 18), (export.turbomind.verify, 1 << 17)):
        monkeypatch.setattr(module, "BAND", band)
        monkeypatch.setattr(module, "BLOCK", 1 << 16)
    folder = tmp_path / "triton_models" / "weights"
    folder.mkdir(parents=True)
    layout.transposed(np.zeros((2, 2), np.uint16)[:, 1:])  # compiled before memory is counted
    tracemalloc.start()
    try:
        write_weights(folder, weights, sizes, int)
        (folder / "config.yaml").write_bytes(config_yaml(sizes, config, TurbomindExport(), "tiny"))
        assert compare(weights, TurbomindReader(tmp_path)) == len(weights.shapes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20
