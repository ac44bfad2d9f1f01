"""YAML configs of axolotl."""

import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipelines.migrate import trainer_arguments as trainer
from pipelines.migrate.config_tree import Finding, Node
from pipelines.migrate.draft import Draft, Rule, asks, drops, known_elsewhere, only, same, to
from pipelines.migrate.origins import add_source, local, map_data, map_model, need_source, run_name, stem
from pipelines.migrate.trainer_arguments import short, whole
from pipelines.toml_file import Written


def draft(config: Node, *, name: str, folder: Path, gpus: int | None) -> Draft:
    """A pipeline of a config's keys.

    Args:
        config: as `yaml_config.read` gives it.
        name: of the file.
        folder: that it is in, where files that it names may be.
        gpus: of the whole run, which the config does not say.
    """
    found = Draft(config, trainer="axolotl", name=name)
    _run(found)
    _model(found)
    _data(found)
    _packs(found)
    shared = next((key for key in ("context_parallel_size", "sequence_parallel_degree") if config.at(key)), "")
    trainer.map_batch(found, "micro_batch_size", default=1, shared=shared, gpus=gpus)
    trainer.map_epochs(found, "num_epochs", default=1)
    trainer.map_optimizer(found, "optimizer")
    trainer.map_schedule(found, "lr_scheduler", default="cosine")
    _lowest_rate(found)
    trainer.map_precision(found)
    _saving(found)
    trainer.map_evaluation(found, "val_set_size")
    trainer.map_deepspeed(found, folder)
    if config.at("learning_rate") is None:
        found.ask("train.optimizer.lr", 2e-4, "the config names none")
    found.rules(config, RULES)
    found.rules(config, trainer.RULES)
    found.close(unused=_unused)
    return found


def _run(draft: Draft) -> None:
    node = draft.config.at("output_dir")
    where = node.get("") if node else None
    parts = [part for part in str(where).split("/") if part not in ("", ".")] if isinstance(where, str) else []
    run_name(draft, parts[-1] if parts else Path(draft.name).stem)
    if node is not None and parts:
        draft.map(node, "run.name", draft.keys[("run", "name")].value)
        above = str(where).rstrip("/").rpartition("/")[0]
        draft.put("run.work_dir", local(above) if above not in ("", ".") else ".", f"was: {node.key}")


def _model(draft: Draft) -> None:
    config = draft.config
    if config.at("base_model") is None:
        draft.ask("model.name_or_path", "models/base", "the config names no model")
    map_model(draft, config.at("base_model"), "model")
    own = config.at("tokenizer_config")
    if own is not None and own.get("") not in (None, config.get("base_model")):
        map_model(draft, own, "tokenizer")
    four = config.at("load_in_4bit")
    kind = config.get("adapter") if config.at("adapter") else None
    if kind in ("lora", "qlora"):
        if config.at("lora_target_linear") and config.get("lora_target_linear") is True:
            draft.same(config.at("lora_target_modules"), "lora_target_linear takes every linear layer, these too")
        draft.rules(config, LORA)
        draft.keys.setdefault(("model", "lora", "r"), Written(8, "PEFT's default"))
        if config.at("lora_alpha") is None or config.get("lora_alpha") is None:
            draft.put("model.lora.lora_alpha", 8, "PEFT's default")
        draft.same(config.at("adapter"), "[model.lora]")
        if (four is not None and four.get("") is True) or kind == "qlora":
            draft.map(four, "model.quantization.load_in_4bit", True, keep=True)
            draft.keys.setdefault(("model", "quantization", "load_in_4bit"), Written(True, "was: adapter = qlora"))
    elif kind is None:
        draft.same(config.at("adapter"), "every parameter is trained")
        for key in LORA:
            draft.drop(config.at(key), "without an adapter it has no effect")
    if four is not None and four.finding is None:
        draft.drop(four, "weights of 4 bits are for an adapter") if four.get("") else draft.same(four, "so it is")
    kept = config.at("gradient_checkpointing")
    how = kept.get("") if kept else None
    if kept is not None and isinstance(how, str) and "offload" in how:
        draft.map(kept, "train.activation_checkpointing", "full")
        draft.put("train.activation_offload", "cpu", "was: gradient_checkpointing")
    elif kept is not None:
        draft.map(kept, "train.activation_checkpointing", "full" if how else "none")


def _data(draft: Draft) -> None:
    config = draft.config
    datasets = config.at("datasets") or config.at("pretraining_dataset")
    plain = config.at("datasets") is None and datasets is not None
    entries = [*datasets.items().values()] if datasets is not None and datasets.is_list else []
    if datasets is not None and datasets.is_leaf and isinstance(datasets.get(""), str):
        index = add_source(draft, stem(datasets.get("")))
        map_data(draft, datasets, index)
        draft.put(f"prep.source.{index}.map", "pretrain", "plain text")
    for entry in entries:
        _source(draft, entry, plain=plain)
    need_source(draft)
    chosen = config.at("chat_template")
    value = chosen.get("") if chosen else None
    if chosen is not None and str(value) in TEMPLATES:
        draft.map(chosen, "template.name", TEMPLATES[str(value)])
    elif chosen is not None and value == "jinja":
        draft.decide(chosen, 'write the template into a file: template.name = "custom", template.file')
    elif chosen is not None and value is not None and "tokenizer_default" not in str(value):
        what = f"the tokenizer's own chat template is taken; compare it with axolotl's {value} by `packtrain preview`"
        draft.decide(chosen, what)
    else:
        draft.same(chosen, "the tokenizer's own")
    draft.put("template.loss.on_empty", "drop", "as axolotl")


def _source(draft: Draft, entry: Node, *, plain: bool) -> None:
    files = entry.at("data_files")
    given = files.get("") if files else None
    where = files if files is not None and isinstance(given, str) else entry.at("path")
    if files is not None and isinstance(given, list) and files.items():
        where = files.at("0")
        for one in [*files.items().values()][1:]:
            draft.decide(one, "one [[prep.source]] each, or a pattern in prep.source.files")
    index = add_source(draft, stem(where.get("")) if where else "data")
    if where is not None:
        map_data(draft, where, index)
    else:
        draft.ask(f"prep.source.{index}.path", "data", "name the file or the directory of the data")
    if where is not entry.at("path"):
        draft.same(entry.at("path"), 'format = "auto" goes by the file\'s ending')
    kind = entry.at("type")
    value = str(kind.get("")) if kind is not None and kind.is_leaf else ""
    shape = value.partition(":")[0].partition(".")[0]
    sharegpt = (
        entry.get("message_property_mappings.content") == "value" or entry.get("message_field_content") == "value"
    )
    if plain or shape in ("completion", "pretrain"):
        draft.put(f"prep.source.{index}.map", "pretrain")
        draft.put(f"prep.source.{index}.template", "none", "plain text")
        draft.same(kind, "prep.source.map")
    elif shape == "sharegpt" or (shape == "chat_template" and sharegpt):
        draft.map(kind, f"prep.source.{index}.map", "sharegpt")
    elif shape == "chat_template":
        draft.same(kind, 'map = "openai"')
    elif shape == "alpaca":
        draft.map(kind, f"prep.source.{index}.map", "alpaca", note="a turn of template.name, not ### Instruction")
    elif shape in ("oasst", "openorca"):
        draft.map(kind, f"prep.source.{index}.map", {"oasst": "oasst1"}.get(shape, shape))
    else:
        named = f"no map here is called {value}; see prep.source.map" if value else _OWN_FORMAT
        draft.decide(kind, named)
    column = entry.at("field_messages")
    own = "conversations" if sharegpt else "messages"
    if column is not None and column.get("") not in (None, own):
        draft.map(column, f"prep.source.{index}.columns", {own: column.get("")})
    draft.same(column, "so the map calls it")
    text = entry.at("field") or entry.at("text_column")
    if text is not None and ("prep", "source", index, "map") in draft.keys and text.get("") not in (None, "text"):
        if draft.keys[("prep", "source", index, "map")].value == "pretrain":
            draft.map(text, f"prep.source.{index}.columns", {"text": text.get("")})
    elif text is not None and text.get("") in (None, "text"):
        draft.same(text, "so the map calls it")
    ending = entry.at("ds_type")
    if ending is not None and ending.get("") in ("json", "jsonl", "parquet", "arrow", "csv", "text"):
        draft.same(ending, 'format = "auto" goes by the file\'s ending')
    if (split := entry.at("split")) is not None:
        _part(draft, split, index)
    draft.rules(entry, DATASET)


def _part(draft: Draft, node: Node, index: int) -> None:
    """`train[:20%]` and `train[:500]`: a part of a split."""
    found = re.fullmatch(r"train\[:(\d+)(%?)\]", str(node.get("")))
    if found and found[2]:
        note = "by the hash order, not the first of the file"
        draft.map(node, f"prep.source.{index}.repeat", Decimal(found[1]) / 100, note=note)
    elif found:
        draft.map(node, f"prep.source.{index}.samples", int(found[1]), note="the first of the hash order")


def _packs(draft: Draft) -> None:
    config = draft.config
    if config.at("sequence_len") is None or config.get("sequence_len") is None:
        draft.ask("prep.pack.capacity", 2048, "the config has no sequence_len")
    packs = config.at("sample_packing")
    if packs is None or not packs.get(""):
        draft.put("prep.pack.strategy", "none", "samples are not packed there")
        draft.same(packs, 'prep.pack.strategy = "none"')
    else:
        draft.same(packs, "samples are packed, and do not see each other")
    long = config.at("excess_length_strategy")
    value = long.get("") if long else None
    known = {"drop": "drop", "truncate": "truncate_right", "raise": "error"}
    if str(value) in known:
        draft.map(long, "prep.overlength", known[str(value)])
    elif value is not None:
        draft.decide(long, "see prep.overlength")
    else:
        draft.same(long, "drop, the default")
        draft.put("prep.overlength", "drop", "as axolotl")


def _lowest_rate(draft: Draft) -> None:
    node, rate = draft.config.at("cosine_min_lr_ratio"), draft.config.get("learning_rate")
    share = node.get("") if node else None
    if node is not None and isinstance(share, int | float) and isinstance(rate, int | float):
        draft.map(node, "train.scheduler.min_lr", short(share * rate))
    else:
        draft.same(node, "not set")


def _saving(draft: Draft) -> None:
    config = draft.config
    often = config.at("saves_per_epoch")
    count = whole(often.get("")) if often else None
    trainer.map_saving(draft)
    if count == 1:
        draft.map(often, "train.checkpoint.save_epochs", 1)
        draft.put("train.checkpoint.save_steps", 0, "by epochs")
    elif count is not None:
        draft.decide(often, "several times an epoch: train.checkpoint.save_steps, of the steps that `plan` counts")
    evaluations = config.at("evals_per_epoch")
    if evaluations is not None and evaluations.get("") and config.get("val_set_size"):
        draft.decide(evaluations, "train.eval.steps, of the steps that `plan` counts")
    draft.drop(evaluations, "nothing is held out")


def _unused(node: Node) -> Finding:
    if trainer.is_off(node):
        return trainer.OFF
    root = str(node.path[0])
    for pattern, finding in GROUPS:
        if re.match(pattern, root):
            return finding
    return known_elsewhere(node)


def _special(draft: Draft, node: Node) -> None:
    for name, child in node.items().items():
        if name == "pad_token":
            draft.drop(child, "packs have no padding")
        elif name == "additional_special_tokens":
            draft.map(child, "tokenizer.add_special_tokens")
        elif child.get("") is not None:
            draft.decide(child, f"{name} is what the tokenizer's own files say; change it there")


def _tracker(name: str) -> Rule:
    def rule(draft: Draft, node: Node) -> None:
        value = node.get("")
        if value in (None, False, ""):
            draft.same(node, "not set")
            return
        path = ("train", "log", "trackers")
        others = [one for one in (draft.keys[path].value if path in draft.keys else []) if one != name]
        draft.map(node, "train.log.trackers", [*others, name], note="the project by its own environment variable")

    return rule


def _attention(name: str) -> Rule:
    def rule(draft: Draft, node: Node) -> None:
        if node.get("") is True:
            draft.map(node, "model.attn_implementation", name)
        else:
            draft.same(node, "not set")

    return rule


def _in_host_memory(draft: Draft, node: Node) -> None:
    """FSDP keeps parameters, gradients and optimizer state in the host's memory."""
    if node.get("") is True and draft.keys.get(("train", "deepspeed", "zero_stage"), Written(0)).value == 3:
        draft.map(node, "train.deepspeed.offload_param", "cpu")
        draft.put("train.deepspeed.offload_optimizer", "cpu", f"was: {node.key}")
    else:
        draft.same(node, "nothing is offloaded")


def _targets(value: Any) -> Any:
    return [value] if isinstance(value, str) and value != "all-linear" else value


TEMPLATES: Mapping[str, str] = {"llama3": "llama3_chat", "chatml": "qwen_chat"}
"""Templates of both by their names. Of the others the tokenizer's own is taken."""
ATTENTION = {
    **dict.fromkeys(("flash_attention_2", "flash_attention_3", "flex_attention", "xformers", "varlen"), "auto"),
    **dict.fromkeys(("sdpa", "eager"), "sdpa"),
}
_KERNEL = "kernels are chosen here, and give the same numbers"

_OWN_FORMAT = "records of a format of your own need a python:module:function in prep.source.map"

GROUPS: tuple[tuple[str, Finding], ...] = (
    (
        r"(lora_(mlp|qkv|o|embedding)_kernel|liger_|wandb_|mlflow_|comet_|trackio_|gradio_|swanlab_|hf_use_auth_token)",
        Finding("dropped", (), "belongs to a library that is not used here, or to its own environment variables"),
    ),
    (
        r"(trl|ebft|kto|orpo|grpo|dpo|ppo|simpo|vllm|nemo_gym|hatchery|rl_|reward|process_reward|diffusion|num_labels"
        r"|cls_model|excess_token_handling|sequence_classification)(_|$)",
        Finding("decide", (), trainer.SUPERVISED),
    ),
    (
        r"(processor_type|skip_prepare_dataset|freeze_mm_modules|image_|video_|audio_)",
        Finding("decide", (), "only text is trained on here"),
    ),
    (r"qat(_|$)|quantization$", Finding("decide", (), "training for a quantized form is not offered")),
    (
        r"(autotune|use_(scatter|sonic)moe|experts_implementation|fused_attn|flex_attn_compile|nf4_backend|dsv4|batch_fl"
        r"|experimental_skip|llama4_linearized|gemma4_|ple_cpu|gpu_memory_limit|device_map|tokenizer_use_mistral_common)",
        Finding("dropped", (), _KERNEL),
    ),
    (
        r"(dp_shard|dp_replicate|tensor_parallel|expert_parallel)",
        Finding("dropped", (), "ZeRO 3 shares the weights over all ranks; see [train.deepspeed]"),
    ),
    (
        r"(quantize_moe_experts|model_quantization_config|bnb_)",
        Finding("decide", (), "see model.quantization, which packs the linear layers below an adapter"),
    ),
    (r"lora_target_parameters", Finding("decide", (), "adapters are on linear layers; see model.lora.target_modules")),
    (r"loraplus_", Finding("decide", (), "one rate for all parameters here")),
    (r"(relora|unfrozen_parameters)", Finding("decide", (), "every parameter is trained here, or one adapter")),
    (r"noisy_embedding_alpha", Finding("decide", (), "no noise is added to embeddings here")),
    (r"(cosine_|lr_quadratic)", Finding("decide", (), "no such shape here; see train.scheduler")),
    (r"test_datasets", Finding("decide", (), "see prep.eval.fraction, which holds out samples of the training data")),
    (r"dataset_shard_", Finding("decide", (), "see prep.source.samples")),
    (r"(model_config|overrides_of_model_config)", Finding("decide", (), "change the model's own config.json")),
    (r"(use_)?(eaft|dft|asft)(_|$)", Finding("decide", (), "the loss here is plain cross entropy")),
)
"""Keys that no rule knows, by how their names begin."""

LORA: Mapping[str, Rule] = {
    "lora_r": to("model.lora.r", keep=True),
    **trainer.LORA,
    "lora_target_modules": to("model.lora.target_modules", _targets),
    "lora_target_linear": only((True, None, False), "all-linear is the default", "see model.lora.target_modules"),
    "lora_modules_to_save": to("model.lora.modules_to_save"),
    "lora_fan_in_fan_out": only((None, False), "so it is", "no model here needs it"),
    "lora_model_dir": only(None, "not set", "merge that adapter first, and name the merged model"),
    "peft_use_rslora": to("model.lora.use_rslora"),
    "peft_use_dora": to("model.lora.use_dora"),
    "lora_bias": to("model.lora.bias"),
}
DATASET: Mapping[str, Rule] = {
    "split": only(("train", None), "the whole source", "give the split's file, or split with format = hf_disk"),
    "name": only(None, "not set", "name the configuration's file in prep.source.path"),
    "message_property_mappings": same("prep.source.map"),
    "message_field_role": same("prep.source.map"),
    "message_field_content": same("prep.source.map"),
    "roles": asks("roles by other names need a python:module:function in prep.source.map"),
    "roles_to_train": to("template.loss.roles"),
    "train_on_eos": only(("turn", None), "template.loss.end_of_turn", "see template.loss.end_of_turn"),
    "train_on_eot": only(("turn", None), "template.loss.end_of_turn", "see template.loss.end_of_turn"),
    "chat_template": only((None, "tokenizer_default"), "the tokenizer's own", "see prep.source.template"),
    "conversation": asks("see prep.source.template"),
    "field_tools": asks('columns = { tools = "..." } says it'),
    "field_system": asks('columns = { system = "..." } says it'),
    "shards": asks("see prep.source.samples"),
    "trust_remote_code": drops("no code of a data set runs"),
    "drop_system_message": only((None, False), "so it is", "write a python:module:function in prep.source.map"),
}
RULES: Mapping[str, Rule] = {
    "base_model_config": drops("the model's own config.json says it"),
    "model_type": drops("the model's own config.json says it"),
    "tokenizer_type": drops("tokenizer.json or tokenizer.model is read as it is"),
    "tokenizer_config": same("the tokenizer is the model's"),
    "tokenizer_use_fast": drops("tokenizer.json or tokenizer.model is read as it is"),
    "tokenizer_legacy": drops("tokenizer.json or tokenizer.model is read as it is"),
    "revision_of_model": to("model.revision"),
    "load_in_8bit": only((False, None), "so it is", "weights of 8 bits are not offered; load_in_4bit is"),
    "strict": drops("unknown keys are always errors"),
    "is_llama_derived_model": drops("the model's own config.json says it"),
    "is_mistral_derived_model": drops("the model's own config.json says it"),
    "special_tokens": _special,
    "tokens": to("tokenizer.add_special_tokens"),
    "added_tokens_overrides": asks("tokens that the tokenizer keeps free are changed in its files"),
    "resize_token_embeddings_to_32x": to("tokenizer.pad_vocab_multiple", {True: 32, False: 1}),
    "sequence_len": to("prep.pack.capacity", whole, keep=True),
    "min_sample_len": to("prep.min_length"),
    "eval_sample_packing": drops("held-out samples are packed as the others are"),
    "pad_to_sequence_len": drops("packs have no padding"),
    "sample_packing_eff_est": drops("prep knows every pack before training"),
    "sample_packing_group_size": drops("see prep.pack.scope and window"),
    "sample_packing_bin_size": drops("see prep.pack.strategy"),
    "sample_packing_sequentially": drops("in_order packs samples in their order"),
    "total_num_tokens": drops("prep counts them"),
    "dataset_prepared_path": drops("prep keeps its shards in run.work_dir"),
    "dataset_processes": to("prep.workers"),
    "dataset_num_proc": to("prep.workers"),
    "dataset_keep_in_memory": drops("shards are memory-mapped"),
    "dataset_exact_deduplication": only(
        (None, False), "samples are taken as they are", "remove repeated records first"
    ),
    "shuffle_merged_datasets": to("prep.order.shuffle", {True: "hash", False: "none"}),
    "push_dataset_to_hub": only(None, "nothing is uploaded", "see `packtrain prep convert`"),
    "train_on_inputs": trainer.everyone,
    "roles_to_train": to("template.loss.roles"),
    "default_system_message": to("template.system"),
    "chat_template_jinja": asks('write it into a file: template.name = "custom", template.file'),
    "eot_tokens": asks("the chat template's end of turn is trained"),
    "gradient_checkpointing_kwargs": drops("checkpointing is chosen here"),
    "flash_attention": same("flash-attn is used where it is installed"),
    "sdp_attention": _attention("sdpa"),
    "xformers_attention": only((None, False), "not set", "see model.attn_implementation"),
    "flex_attention": only((None, False), "not set", "see model.attn_implementation"),
    "eager_attention": only((None, False), "not set", "see model.attn_implementation"),
    "attn_implementation": to("model.attn_implementation", ATTENTION, "kernels give the same numbers"),
    "activation_offloading": lambda draft, node: _offloaded(draft, node),
    "use_kernels": drops(_KERNEL),
    "s2_attention": only((None, False), "not set", "every token of a document is attended to here"),
    "flash_attn_cross_entropy": drops("train.fused_loss"),
    "flash_attn_rms_norm": drops(_KERNEL),
    "flash_attn_fuse_qkv": drops(_KERNEL),
    "flash_attn_fuse_mlp": drops(_KERNEL),
    "cut_cross_entropy": to("train.fused_loss"),
    "chunked_cross_entropy": to("train.fused_loss"),
    "tiled_mlp": to("train.tiled_mlp"),
    "plugins": drops("what these plugins do is built in, or has keys of its own"),
    "bfloat16": only((None, False), "not set", "see train.precision"),
    "float16": only((None, False), "not set", "see train.precision"),
    "sdp_attention_backend": drops(_KERNEL),
    "fsdp": trainer.sharded,  # before what is offloaded goes by it
    "fsdp_config.fsdp_offload_params": lambda draft, node: _in_host_memory(draft, node),
    "fsdp_config.offload_params": lambda draft, node: _in_host_memory(draft, node),
    "fsdp_version": drops("ZeRO 3 shards parameters; see [train.deepspeed]"),
    "use_wandb": _tracker("wandb"),
    "wandb_project": _tracker("wandb"),
    "wandb_mode": drops("WANDB_MODE says it"),
    "wandb_entity": drops("WANDB_ENTITY says it"),
    "wandb_name": drops("run.name"),
    "wandb_run_id": drops("a run continues under its own name"),
    "wandb_watch": drops("gradient norms are in metrics.jsonl"),
    "wandb_log_model": drops("upload the export yourself"),
    "use_tensorboard": _tracker("tensorboard"),
    "use_mlflow": _tracker("mlflow"),
    "mlflow_tracking_uri": drops("MLFLOW_TRACKING_URI says it"),
    "use_trackio": _tracker("trackio"),
    "early_stopping_patience": only(None, "not set", "no run stops early here"),
    "loss_watchdog_threshold": drops("train.on_nonfinite sees to losses that are no number"),
    "loss_watchdog_patience": drops("train.on_nonfinite sees to losses that are no number"),
    "debug": drops("train.log.show_samples shows samples"),
    "auto_resume_from_checkpoints": to("train.resume", {True: "auto", False: "none"}),
    "eval_table_size": drops("see train.eval.prompts"),
    "eval_max_new_tokens": drops("see train.eval.max_new_tokens"),
    "do_causal_lm_eval": drops("the held-out loss is evaluated"),
    "rl": only(None, "not set", trainer.SUPERVISED),
    "reward_model": only((None, False), "not set", trainer.SUPERVISED),
    "rope_scaling": to("model.rope_scaling"),
    "neftune_noise_alpha": only((None, 0), "not set", "no noise is added to embeddings here"),
    "torch_dtype": drops("see train.precision"),
    "save_first_step": drops("the first checkpoint is after train.checkpoint.save_steps"),
    "train_on_eos": only(("turn", None), "template.loss.end_of_turn", "see template.loss.end_of_turn"),
}


def _offloaded(draft: Draft, node: Node) -> None:
    if node.get("") and draft.config.get("gradient_checkpointing"):
        draft.map(node, "train.activation_offload", "cpu")
    else:
        draft.same(node, "not set, or without gradient_checkpointing")
