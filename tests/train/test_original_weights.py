"""Checkpoints of InternLM, InternLM2 and Baichuan compute as a Llama what their own layout computes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize, silu

from pipelines.errors import ConfigError, DataError
from pipelines.llama_layouts import KEY
from tests.train.runs import VOCABULARY, pipeline, same, share
from train.attention import PackedAttention
from train.model import build_model
from train.run import run

PREP = {"vocab_size": VOCABULARY, "max_token_id": VOCABULARY - 1}
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "auto_map": {"AutoModelForCausalLM": "modeling.Model"},
}
INTERNLM = SIZES | {"model_type": "internlm", "bias": True, "rotary": {"base": 5000, "type": "dynamic"}}
INTERNLM2 = SIZES | {
    "model_type": "internlm2",
    "num_key_value_heads": 2,
    "bias": False,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
}
BAICHUAN = SIZES | {"model_type": "baichuan", "architectures": ["BaiChuanForCausalLM"]}
BAICHUAN2 = BAICHUAN | {"architectures": ["BaichuanForCausalLM"]}
ORIGINALS = {"internlm": INTERNLM, "internlm2": INTERNLM2, "baichuan": BAICHUAN, "baichuan2": BAICHUAN2}


@pytest.fixture(autouse=True)
def attention() -> None:
    PackedAttention("sdpa").register()


def original_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published checkpoint, spelled out one by one."""
    rows, hidden, inner = config["vocab_size"], config["hidden_size"], config["intermediate_size"]
    fused = hidden + 2 * hidden * config.get("num_key_value_heads", 4) // 4
    shapes: dict[str, tuple[int, ...]] = {}
    if config["model_type"] == "internlm2":
        shapes["model.tok_embeddings.weight"] = (rows, hidden)
        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}"
            shapes[f"{at}.attention.wqkv.weight"] = (fused, hidden)
            shapes[f"{at}.attention.wo.weight"] = (hidden, hidden)
            if config["bias"]:
                shapes[f"{at}.attention.wqkv.bias"] = (fused,)
                shapes[f"{at}.attention.wo.bias"] = (hidden,)
            shapes[f"{at}.feed_forward.w1.weight"] = (inner, hidden)
            shapes[f"{at}.feed_forward.w2.weight"] = (hidden, inner)
            shapes[f"{at}.feed_forward.w3.weight"] = (inner, hidden)
            shapes[f"{at}.attention_norm.weight"] = (hidden,)
            shapes[f"{at}.ffn_norm.weight"] = (hidden,)
        return {**shapes, "model.norm.weight": (hidden,), "output.weight": (rows, hidden)}
    shapes["model.embed_tokens.weight"] = (rows, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        if config["model_type"] == "baichuan":
            shapes[f"{at}.self_attn.W_pack.weight"] = (3 * hidden, hidden)
            shapes[f"{at}.self_attn.o_proj.weight"] = (hidden, hidden)
        else:
            for letter in "qkvo":
                shapes[f"{at}.self_attn.{letter}_proj.weight"] = (hidden, hidden)
                shapes[f"{at}.self_attn.{letter}_proj.bias"] = (hidden,)
        shapes[f"{at}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{at}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{at}.input_layernorm.weight"] = (hidden,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
    return {**shapes, "model.norm.weight": (hidden,), "lm_head.weight": (rows, hidden)}


def original_tensors(config: dict[str, Any], seed: int = 3) -> dict[str, Tensor]:
    """bfloat16 weights of a published checkpoint, large enough for attention to matter."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=random) * 0.3 + ("norm" in name)).bfloat16()
        for name, shape in original_shapes(config).items()
    }


def write_original(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], *, files: int = 1) -> Path:
    """A published directory: one safetensors file, or several with an index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {name: f"model-{index % files + 1:05d}-of-{files:05d}.safetensors" for index, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def original_logits(config: dict[str, Any], tensors: dict[str, Tensor], ids: list[int]) -> Tensor:
    """What the original computes for one document, read from its own tensors: one head at a time, float32.

    Returns:
        [tokens, vocabulary]
    """
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    own = config["model_type"] == "internlm2"
    heads, wide = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    groups = config.get("num_key_value_heads", heads)
    theta = config.get("rotary", {}).get("base", config.get("rope_theta", 10000.0))

    def norm(values: Tensor, name: str) -> Tensor:
        return values / torch.sqrt((values**2).mean(-1, keepdim=True) + config["rms_norm_eps"]) * weights[name]

    def linear(values: Tensor, name: str) -> Tensor:
        return values @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(()))

    def turned(head: Tensor) -> Tensor:  # [tokens, wide]
        result = torch.empty_like(head)
        for position in range(len(head)):
            for i in range(wide // 2):
                angle = position * theta ** (-2 * i / wide)
                x, y = head[position, i], head[position, i + wide // 2]
                result[position, i] = x * math.cos(angle) - y * math.sin(angle)
                result[position, i + wide // 2] = y * math.cos(angle) + x * math.sin(angle)
        return result

    hidden = weights["model.tok_embeddings.weight" if own else "model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        values = norm(hidden, f"{at}.attention_norm.weight" if own else f"{at}.input_layernorm.weight")
        queries: list[Tensor] = []
        keys: list[Tensor] = []
        contents: list[Tensor] = []
        if own:  # for every K/V head: its query heads, its key, its value
            slots = linear(values, f"{at}.attention.wqkv").reshape(len(ids), groups, heads // groups + 2, wide)
            for head in range(heads):
                group = head // (heads // groups)
                queries.append(slots[:, group, head % (heads // groups)])
                keys.append(slots[:, group, -2])
                contents.append(slots[:, group, -1])
        else:
            if config["model_type"] == "baichuan":
                q, k, v = linear(values, f"{at}.self_attn.W_pack").chunk(3, -1)
            else:
                q, k, v = (linear(values, f"{at}.self_attn.{letter}_proj") for letter in "qkv")
            for head in range(heads):
                queries.append(q[:, head * wide : (head + 1) * wide])
                keys.append(k[:, head * wide : (head + 1) * wide])
                contents.append(v[:, head * wide : (head + 1) * wide])
        attended = []
        for query, key, content in zip(queries, keys, contents, strict=True):
            scores = turned(query) @ turned(key).T / math.sqrt(wide)
            later = torch.ones(len(ids), len(ids)).triu(1).bool()
            attended.append(scores.masked_fill(later, -math.inf).softmax(-1) @ content)
        hidden = hidden + linear(torch.cat(attended, -1), f"{at}.attention.wo" if own else f"{at}.self_attn.o_proj")
        values = norm(hidden, f"{at}.ffn_norm.weight" if own else f"{at}.post_attention_layernorm.weight")
        gate, up, down = (
            (f"{at}.feed_forward.w1", f"{at}.feed_forward.w3", f"{at}.feed_forward.w2")
            if own
            else (f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj", f"{at}.mlp.down_proj")
        )
        hidden = hidden + linear(silu(linear(values, gate)) * linear(values, up), down)
    output = weights["output.weight" if own else "lm_head.weight"]
    if config is BAICHUAN2:
        output = normalize(output)
    logits: Tensor = norm(hidden, "model.norm.weight") @ output.T
    return logits


CASES = [*ORIGINALS.values(), INTERNLM2 | {"bias": True, "num_key_value_heads": 1}]


@pytest.mark.parametrize("config", CASES, ids=[*ORIGINALS, "internlm2-bias"])
def test_it_computes_what_its_own_layout_computes(config: dict[str, Any], tmp_path: Path) -> None:
    tensors = original_tensors(config)
    folder = write_original(tmp_path / "model", config, tensors, files=3)
    model = build_model(pipeline(tmp_path, model={"name_or_path": str(folder)}), PREP)
    assert getattr(model.config, KEY) == config
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    ids = [5, 40, 17, 17, 3, 29, 11]
    model.set_attn_implementation("sdpa")  # one document alone
    found = model.eval()(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found, original_logits(config, tensors, ids), rtol=1e-4, atol=1e-4)


def test_bin_files_are_read_without_running_what_they_hold(tmp_path: Path) -> None:
    tensors = original_tensors(BAICHUAN)
    folder = write_original(tmp_path / "model", BAICHUAN, tensors)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    settings = pipeline(tmp_path, model={"name_or_path": str(folder), "weights_format": "safetensors_or_bin"})
    model = build_model(settings, PREP)
    packed = tensors["model.layers.1.self_attn.W_pack.weight"].float()
    assert torch.equal(model.get_parameter("model.layers.1.self_attn.k_proj.weight"), packed[32:64])
    torch.save({"model.norm.weight": pytest.raises}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="holds more than weights, which is never run"):
        build_model(settings, PREP)


def test_what_does_not_fit_the_config_is_refused(tmp_path: Path) -> None:
    tensors = original_tensors(INTERNLM2)
    name = "model.layers.0.attention.wqkv.weight"
    for index, (changed, message) in enumerate(
        [
            ({key: tensor for key, tensor in tensors.items() if key != name}, f"{name} is in none of its weight files"),
            ({**tensors, name: tensors[name][:-1].clone()}, "has 63 rows, its config.json asks for 64"),
            ({**tensors, "model.extra": torch.zeros(1)}, "holds model.extra"),
        ]
    ):
        folder = write_original(tmp_path / str(index), INTERNLM2, changed)
        with pytest.raises(DataError, match=message):
            build_model(pipeline(tmp_path, model={"name_or_path": str(folder)}), PREP)
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(DataError, match="is in none of its weight files"):
        build_model(pipeline(tmp_path, model={"name_or_path": str(folder)}), PREP)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match="cannot be read"):
        build_model(pipeline(tmp_path, model={"name_or_path": str(folder)}), PREP)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no model.safetensors, nor an index of several"):
        build_model(pipeline(tmp_path, model={"name_or_path": str(folder)}), PREP)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../x.safetensors"}}')
    with pytest.raises(DataError, match=r"names '../x.safetensors', which is no file beside it"):
        build_model(pipeline(tmp_path, model={"name_or_path": str(folder)}), PREP)


def test_a_model_that_is_no_llama_is_refused_with_its_key(tmp_path: Path) -> None:
    config = {key: value for key, value in BAICHUAN.items() if key != "max_position_embeddings"}
    folder = tmp_path / "model"
    folder.mkdir()  # without weights: the config alone says so
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"model.name_or_path.*: Baichuan models of 13B place tokens by ALiBi"):
        build_model(pipeline(tmp_path, model={"name_or_path": str(folder)}), PREP)


@pytest.mark.parametrize("table", [{}, {"quantization": {}}], ids=["lora", "qlora"])
def test_an_adapter_on_it_trains_as_on_its_llama(table: dict[str, Any], tmp_path: Path, shards: Path) -> None:
    if table:
        pytest.importorskip("bitsandbytes")
    config = {**INTERNLM2, "hidden_size": 64, "intermediate_size": 64}  # whole blocks of 4-bit numbers in a row
    original = write_original(tmp_path / "original", config, original_tensors(config), files=2)
    converted = build_model(pipeline(tmp_path, model={"name_or_path": str(original)}), PREP)
    converted.save_pretrained(tmp_path / "llama")
    for name in ("original", "llama"):
        model = {"name_or_path": str(tmp_path / name), "lora": {"r": 2}, **table}
        run(pipeline(share(shards, tmp_path / f"on-{name}"), model=model, max_steps=2))
    assert same(tmp_path / "on-original", tmp_path / "on-llama")
