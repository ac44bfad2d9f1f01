"""Makes golden.json again: the test's models through the converter inside LMDeploy 0.7.3.

    pip download lmdeploy==0.7.3 --no-deps --python-version 3.10 --only-binary=:all: --platform manylinux2014_x86_64
    unzip lmdeploy-0.7.3-*.whl -d lmdeploy-0.7.3
    python -m tests.export.turbomind.lmdeploy lmdeploy-0.7.3

The release needs a GPU to be imported and older libraries to be installed, its converter neither: so only that part is
imported, with stand-ins for a registry, for the reading of config.json, and for the move of tensors to a GPU.
"""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from export.hf import Model, write_hf
from pipelines.checkpoints import Checkpoint
from pipelines.llama_layouts import KEY
from tests.export.tiny import Tensors, write_checkpoint
from tests.export.turbomind import awq
from tests.export.turbomind.models import CASES, EVERY, UNLIKE_LMDEPLOY, model_tensors
from tests.export.turbomind.test_folder import GOLDEN, digest

_CONVERTERS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "InternLM2ForCausalLM": "internlm2",
    "BaiChuanForCausalLM": "baichuan",
    "MixtralForCausalLM": "mixtral",
    "ChatGLMModel": "glm4",
}
_MODULES = (
    *(f"source_model.{name}" for name in ("llama", "qwen", "internlm2", "baichuan", "mixtral", "glm4")),
    "target_model.fp",
)


class _Registry:
    def __init__(self, *_: Any, **__: Any) -> None:
        self._found: dict[str, Any] = {}

    def register_module(self, name: str | list[str], **_: Any) -> Callable[[Any], Any]:
        def register(found: Any) -> Any:
            self._found |= dict.fromkeys([name] if isinstance(name, str) else name, found)
            return found

        return register

    def get(self, name: str) -> Any:
        return self._found[name]


def _architecture(folder: str) -> tuple[str, Any]:
    config = json.loads((Path(folder) / "config.json").read_bytes())
    return config["architectures"][0], SimpleNamespace(to_dict=lambda: config)


def _import_converter(unpacked: Path) -> None:
    deploy = "lmdeploy.turbomind.deploy"
    for name in ("lmdeploy", "lmdeploy.turbomind", deploy, f"{deploy}.source_model", f"{deploy}.target_model"):
        package = ModuleType(name)
        package.__path__ = [str(unpacked / name.replace(".", "/"))]
        sys.modules[name] = package
    for name, parts in (("mmengine", {"Registry": _Registry}), ("lmdeploy.archs", {"get_model_arch": _architecture})):
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(parts)
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    for module in (*_MODULES, "target_model.fp"):
        import_module(f"{deploy}.{module}")


def _convert(source: Path, target: Path, dtype: str, tp: int, form: str = "hf") -> None:
    deploy = "lmdeploy.turbomind.deploy"
    config = import_module(f"{deploy}.config").TurbomindModelConfig.from_dict()
    architecture, _ = _architecture(str(source))
    settings = {"model_arch": architecture, "weight_type": dtype, "model_format": form, "tp": tp}
    settings["group_size"] = 0 if form == "hf" else 128
    for key, value in {**settings, "session_len": 512, "chat_template": "base", "model_name": "tiny"}.items():
        setattr(config.model_config, key, value)
    reader = import_module(f"{deploy}.source_model.base").INPUT_MODELS.get(_CONVERTERS[architecture])
    writer = import_module(f"{deploy}.target_model.base").OUTPUT_MODELS.get("tm")
    policy = import_module(f"{deploy}.policy").get_input_policy(form)
    target.mkdir()
    writer(
        input_model=reader(model_path=str(source), tokenizer_path=str(source), input_policy=policy),
        cfg=config,
        model_cls=import_module(f"{deploy}.module").Transformer,
        out_dir=str(target),
    ).export()


def _write_source(folder: Path, config: dict[str, Any]) -> None:
    """The model as LMDeploy's converter wants it, in `hf`."""
    tensors = model_tensors(config)
    if config["model_type"] == "glm":
        _write_chatglm(folder / "hf", config, tensors)
        return
    model = Model.of(Checkpoint(write_checkpoint(folder / "step-00000001", config, tensors)), "float32")
    write_hf(model.as_it_came() if KEY in config else model, folder / "hf", 10**9)


def _write_chatglm(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    """The same model under the names of glm-4-9b, for which LMDeploy has no other."""
    renamed = {
        "transformer.embedding.word_embeddings.weight": tensors["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": tensors["model.norm.weight"],
        "transformer.output_layer.weight": tensors["lm_head.weight"],
    }
    for layer in range(config["num_hidden_layers"]):
        theirs, ours = f"transformer.encoder.layers.{layer}", f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            renamed[f"{theirs}.{norm}.weight"] = tensors[f"{ours}.{norm}.weight"]
        for kind in ("weight", "bias"):
            parts = [tensors[f"{ours}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            renamed[f"{theirs}.self_attention.query_key_value.{kind}"] = np.concatenate(parts)
        renamed[f"{theirs}.self_attention.dense.weight"] = tensors[f"{ours}.self_attn.o_proj.weight"]
        renamed[f"{theirs}.mlp.dense_h_to_4h.weight"] = tensors[f"{ours}.mlp.gate_up_proj.weight"]
        renamed[f"{theirs}.mlp.dense_4h_to_h.weight"] = tensors[f"{ours}.mlp.down_proj.weight"]
    save_file(renamed, folder / "model.safetensors")
    settings = {
        "architectures": ["ChatGLMModel"],
        "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "layernorm_epsilon": config["rms_norm_eps"],
        "rope_ratio": config["rope_parameters"]["rope_theta"] / 10000.0,
        "num_attention_heads": config["num_attention_heads"],
        "multi_query_attention": True,
        "multi_query_group_num": config["num_key_value_heads"],
        "ffn_hidden_size": config["intermediate_size"],
        "padded_vocab_size": config["vocab_size"],
        "add_qkv_bias": True,
        "seq_length": config["max_position_embeddings"],
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(settings))


def main(unpacked: Path) -> None:
    """Convert every case and store the digests."""
    _import_converter(unpacked)
    found: dict[str, str] = {}
    for name, dtype, tp in CASES:
        if name in UNLIKE_LMDEPLOY:
            continue
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "hf").mkdir()
            _write_source(folder, EVERY[name])
            _convert(folder / "hf", folder / "turbomind", dtype, tp)
            files = {path.name: path.read_bytes() for path in (folder / "turbomind").iterdir()}
            found[f"{name} {dtype} {tp}"] = digest(files)
    for name, tp in awq.CASES:
        if name in awq.UNLIKE_LMDEPLOY:
            continue
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            awq.write_awq(folder / "hf", awq.MODELS[name])
            _convert(folder / "hf", folder / "turbomind", "int4", tp, "awq")
            files = {path.name: path.read_bytes() for path in (folder / "turbomind").iterdir()}
            found[f"{name} int4 {tp}"] = digest(files)
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
