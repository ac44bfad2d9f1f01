"""The model and its adapter, of XTuner's model and tokenizer."""

from collections.abc import Mapping

from pipelines.migrate.config_tree import Node, Symbol
from pipelines.migrate.draft import Draft, Rule, drops, only, same, to
from pipelines.migrate.origins import map_model
from pipelines.toml_file import Written


def map_weights(draft: Draft) -> None:
    """[model] and [tokenizer]."""
    config = draft.config
    kind = config.get("model.type")
    if isinstance(kind, Symbol) and kind.last != _LANGUAGE_MODEL:
        draft.decide(
            config.at("model.type"), f"only supervised training of language models is offered, not {kind.last}"
        )
    source = _hub(config.at("model_resource"))
    name = config.at("model.llm.pretrained_model_name_or_path")
    map_model(draft, name, "model", source=source)
    if name is None:
        draft.ask("model.name_or_path", "models/base", "the config names no model")
    tokenizer = config.at("tokenizer.pretrained_model_name_or_path")
    if tokenizer is not None and name is not None and tokenizer.get("") == name.get(""):
        draft.same(tokenizer, "the tokenizer is the model's")
    else:
        map_model(draft, tokenizer, "tokenizer", source=source)
    if config.at("model.lora.type"):
        draft.rules(config.at("model.lora"), LORA)
        if ("model", "lora", "r") not in draft.keys:
            draft.keys[("model", "lora", "r")] = Written(8, "PEFT's default")
        if config.at("model.lora.lora_alpha") is None:
            draft.put("model.lora.lora_alpha", 8, "PEFT's default")
    draft.rules(config.at("model"), MODEL)
    if config.at("model.use_activation_checkpointing") is None:
        draft.unsaid("train.activation_checkpointing", "full", "XTuner's default")


def _hub(resource: Node | None) -> str:
    text = " ".join(str(leaf.value) for leaf in resource.leaves()) if resource else ""
    return next((hub for hub in ("modelscope", "openmind") if hub in text.lower()), "huggingface")


_LANGUAGE_MODEL = "SupervisedFinetune"


def _four_bits(draft: Draft, node: Node) -> None:
    if node.get("") is True:
        draft.map(node, "model.quantization.load_in_4bit", keep=True)
    else:
        draft.same(node, "no quantization")
        draft.drop(draft.config.at("model.llm.quantization_config"), "nothing is quantized there")


DTYPES = {
    "float16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "float32": "float32",
    "float": "float32",
    "auto": "auto",
}
_NO_CODE = "InternLM, InternLM2 and Baichuan are read as Llama without their code; others Transformers has to know"
MODEL: Mapping[str, Rule] = {
    "type": same("[train] is supervised training"),
    "llm.type": same("the model's config.json says its class"),
    "llm.trust_remote_code": drops(_NO_CODE),
    "llm.torch_dtype": to("model.torch_dtype", DTYPES),
    "llm.attn_implementation": to("model.attn_implementation", {"flash_attention_2": "auto", "sdpa": "sdpa"}),
    "llm.low_cpu_mem_usage": drops("weights go straight to where they are needed"),
    "llm.device_map": drops("weights go straight to where they are needed"),
    "llm.revision": to("model.revision"),
    "llm.quantization_config.type": same("[model.quantization]"),
    "llm.quantization_config.load_in_4bit": _four_bits,
    "llm.quantization_config.load_in_8bit": only(
        False, "so it is here", "weights of 8 bits are not offered; 4 bits are"
    ),
    "llm.quantization_config.llm_int8_threshold": drops("it belongs to load_in_8bit"),
    "llm.quantization_config.llm_int8_has_fp16_weight": drops("it belongs to load_in_8bit"),
    "llm.quantization_config.bnb_4bit_compute_dtype": to("model.quantization.bnb_4bit_compute_dtype", DTYPES),
    "llm.quantization_config.bnb_4bit_use_double_quant": to("model.quantization.bnb_4bit_use_double_quant"),
    "llm.quantization_config.bnb_4bit_quant_type": to("model.quantization.bnb_4bit_quant_type"),
    "llm.quantization_config.bnb_4bit_quant_storage": drops("ZeRO cuts packed weights as they are"),
    "llm.quantization_config": only(None, "no quantization", "see [model.quantization]"),
    "lora": only(None, "every parameter is trained", "see [model.lora]"),
    "max_position_embeddings": to("model.max_position_embeddings"),
    "use_activation_checkpointing": to("train.activation_checkpointing", {True: "full", False: "none"}, keep=True),
    "pretrained_pth": only(None, "not set", "export that checkpoint to a Hugging Face directory, and name that one"),
    "tokenizer": same("[tokenizer]"),
}
LORA: Mapping[str, Rule] = {
    "type": same("[model.lora]"),
    "r": to("model.lora.r", keep=True),
    "lora_alpha": to("model.lora.lora_alpha"),
    "lora_dropout": to("model.lora.lora_dropout"),
    "bias": to("model.lora.bias"),
    "task_type": to("model.lora.task_type"),
    "target_modules": to("model.lora.target_modules"),
    "modules_to_save": to("model.lora.modules_to_save"),
    "use_rslora": to("model.lora.use_rslora"),
    "use_dora": to("model.lora.use_dora"),
    "rank_pattern": to("model.lora.rank_pattern"),
    "alpha_pattern": to("model.lora.alpha_pattern"),
    "fan_in_fan_out": only(False, "so it is", "no model here needs it"),
    "inference_mode": only(False, "so it is while training", "training is no inference"),
}
