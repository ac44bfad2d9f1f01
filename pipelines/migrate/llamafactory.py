"""YAML configs of LLaMA-Factory."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.migrate import trainer_arguments as trainer
from pipelines.migrate.config_tree import Finding, Node
from pipelines.migrate.draft import Draft, Rule, asks, drops, known_elsewhere, only, to
from pipelines.migrate.origins import add_source, local, map_model, need_source, run_name
from pipelines.migrate.trainer_arguments import whole
from pipelines.toml_file import Written


def draft(config: Node, *, name: str, folder: Path, gpus: int | None) -> Draft:
    """A pipeline of a config's keys.

    Args:
        config: as `yaml_config.read` gives it.
        name: of the file.
        folder: that it is in, where dataset_info.json and others that it names may be.
        gpus: of the whole run, which the config does not say.
    """
    found = Draft(config, trainer="LLaMA-Factory", name=name)
    _run(found)
    _model(found)
    _data(found, folder)
    _packs(found)
    trainer.map_batch(found, "per_device_train_batch_size", default=8, gpus=gpus)
    trainer.map_epochs(found, "num_train_epochs", default=3)
    trainer.map_optimizer(found, "optim")
    trainer.map_schedule(found, "lr_scheduler_type", default="linear")
    trainer.map_precision(found)
    trainer.map_saving(found)
    trainer.map_evaluation(found, "val_size")
    trainer.map_deepspeed(found, folder)
    if config.at("learning_rate") is None:
        found.put("train.optimizer.lr", 5e-5, "the default of LLaMA-Factory")
    found.rules(config, RULES)
    found.rules(config, trainer.RULES)
    found.put("train.activation_checkpointing", "full", "the default of LLaMA-Factory")
    found.close(unused=_unused)
    return found


def _run(draft: Draft) -> None:
    named, node = draft.config.at("run_name"), draft.config.at("output_dir")
    where = node.get("") if node else None
    text = named.get("") if named else None
    run_name(draft, str(text or (where if isinstance(where, str) else Path(draft.name).stem)))
    if isinstance(text, str):
        draft.map(named, "run.name", draft.keys[("run", "name")].value)
        draft.drop(node, "run.work_dir and run.name say where files go")
    else:
        draft.map(node, "run.name", draft.keys[("run", "name")].value)


def _model(draft: Draft) -> None:
    config = draft.config
    if config.at("model_name_or_path") is None and config.at("train_dataset") is not None:
        draft.notes.append(
            "this config is in the form of LLaMA-Factory 1, and only what it shares with the older is read"
        )
    if config.at("model_name_or_path") is None:
        draft.ask("model.name_or_path", "models/base", "the config names no model")
    hub = next((hub for hub in ("modelscope", "openmind") if config.get(f"use_{hub}")), "huggingface")
    map_model(draft, config.at("model_name_or_path"), "model", source=hub)
    for one in ("modelscope", "openmind"):
        draft.same(config.at(f"use_{one}"), "model.source")
    kind = config.at("finetuning_type")
    value = (kind.get("") if kind else None) or "lora"
    if value == "lora":
        draft.same(kind, "[model.lora]")
        draft.rules(config, LORA)
        rank = draft.keys.setdefault(("model", "lora", "r"), Written(8, "the default of LLaMA-Factory")).value
        if config.at("lora_alpha") is None and isinstance(rank, int):
            draft.put("model.lora.lora_alpha", 2 * rank, "the default of LLaMA-Factory, twice the rank")
    elif value == "full":
        draft.same(kind, "every parameter is trained")
        for key in LORA:
            draft.drop(config.at(key), "without an adapter it has no effect")
    else:
        draft.decide(kind, f"{value} is not offered; every parameter or an adapter is")
    bits = config.at("quantization_bit")
    if bits is not None and bits.get("") == 4:
        draft.map(bits, "model.quantization.load_in_4bit", True, keep=True)
        draft.rules(config, QUANTIZATION)
    elif bits is not None:
        only(None, "no quantization", "weights of 4 bits are offered, for an adapter")(draft, bits)


def _data(draft: Draft, folder: Path) -> None:
    config = draft.config
    node, root = config.at("dataset"), config.get("dataset_dir") if config.at("dataset_dir") else None
    root = root if isinstance(root, str) else "data"
    draft.same(config.at("dataset_dir"), "prep.source.path")
    value = node.get("") if node else None
    names = [str(one).strip() for one in (value if isinstance(value, list) else str(value or "").split(","))]
    known, where = _dataset_info(root, folder)
    plain = config.get("stage") == "pt"
    missing = []
    for name in filter(None, names):
        index = add_source(draft, name)
        described = known.get(name)
        if isinstance(described, dict) and isinstance(described.get("file_name"), str):
            draft.put(f"prep.source.{index}.path", f"{root}/{described['file_name']}", f"was: {name} of {where}")
            _described(draft, index, described, plain=plain)
        else:
            hub = described.get("hf_hub_url") if isinstance(described, dict) else None
            what = f"`hf download {hub} --repo-type dataset`" if hub else f"the file of {name}, by dataset_info.json"
            draft.keys[("prep", "source", index, "path")] = Written(f"{root}/{name}.json", f"decide: {what}")
            draft.put(f"prep.source.{index}.map", "pretrain" if plain else "alpaca", "LLaMA-Factory's default")
            missing.append(name)
    need_source(draft)
    if missing:
        draft.decide(node, f"name the files of {', '.join(missing)}, their map and columns: dataset_info.json has them")
    else:
        draft.same(node, "[[prep.source]]")
    _weights(draft)
    _template(draft, plain=plain)
    draft.put("template.loss.on_empty", "drop", "as LLaMA-Factory")


def _dataset_info(root: str, folder: Path) -> tuple[Mapping[str, Any], str]:
    for base in (folder, Path()):
        path = base / root / "dataset_info.json"
        if path.is_file():
            try:
                found = json.loads(path.read_bytes())
            except ValueError as error:
                raise ConfigError(f"{path}: is no JSON ({error})") from error
            return (found if isinstance(found, dict) else {}), path.name
    return {}, ""


def _described(draft: Draft, index: int, described: Mapping[str, Any], *, plain: bool) -> None:
    """map and columns of a data set of dataset_info.json."""
    given = described.get("columns")
    columns = given if isinstance(given, dict) else {}
    tags = described.get("tags")
    openai = isinstance(tags, dict) and tags.get("content_tag") == "content"
    if described.get("ranking"):
        draft.notes.append(f"prep.source.{index}: pairs of answers by preference; only supervised training is offered")
    if plain:
        kind, own = "pretrain", {"prompt": "text"}
    elif described.get("formatting") == "sharegpt":
        kind, own = ("openai", {"messages": "messages"}) if openai else ("sharegpt", {"messages": "conversations"})
        own |= {"system": "system", "tools": "tools"}
    else:
        kind = "alpaca"
        own = {
            "prompt": "instruction",
            "query": "input",
            "response": "output",
            "system": "system",
            "history": "history",
        }
    draft.put(f"prep.source.{index}.map", kind, "was: formatting" if "formatting" in described else "")
    renamed = {own[key]: name for key, name in columns.items() if key in own and name and name != own[key]}
    if renamed:
        draft.put(f"prep.source.{index}.columns", renamed, "was: columns")
    if odd := [f"{key} = {value}" for key, value in columns.items() if key not in own]:
        draft.notes.append(f"prep.source.{index}: columns without a counterpart: {', '.join(odd)}")
    split = described.get("split")
    if split not in (None, "train"):
        draft.notes.append(f"prep.source.{index}: split {split}; give the split's file")
    if isinstance(count := described.get("num_samples"), int):
        draft.put(f"prep.source.{index}.samples", count, "was: num_samples")


def _weights(draft: Draft) -> None:
    strategy, node = draft.config.at("mix_strategy"), draft.config.at("interleave_probs")
    kind = strategy.get("") if strategy else None
    text = node.get("") if node else None
    shares = [float(one) for one in re.findall(r"[\d.]+", str(text))] if text is not None else []
    if kind in (None, "concat"):
        draft.same(strategy, "every source is taken whole")
        draft.drop(node, "it belongs to interleaving")
        return
    draft.map(strategy, "prep.order.interleave", "fractional")
    count = sum(path[:2] == ("prep", "source") and path[-1] == "name" for path in draft.keys)
    if node is not None and len(shares) == count and all(shares):
        for index, share in enumerate(shares):
            draft.put(f"prep.source.{index}.weight", share, f"was: {node.key}")
        draft.put("prep.mix.unit", "samples", "as interleave_probs")
        draft.map(node, "prep.source.0.weight", shares[0])
    else:
        draft.decide(node, "see prep.source.weight")


def _template(draft: Draft, *, plain: bool) -> None:
    node = draft.config.at("template")
    value = node.get("") if node else None
    if plain:
        draft.put("template.name", "none", "plain text")
        draft.drop(node, "plain text has no template")
    elif str(value) in TEMPLATES:
        draft.map(node, "template.name", TEMPLATES[str(value)])
    elif value is None:
        draft.same(node, "the tokenizer's own chat template")
    else:
        what = f"the tokenizer's own chat template is taken; compare it with {value} by `packtrain preview`"
        draft.decide(node, what)


def _packs(draft: Draft) -> None:
    config = draft.config
    length = config.at("cutoff_len")
    value = whole(length.get("")) if length else None
    capacity = value if isinstance(value, int) else 2048
    if value is not None:
        draft.map(length, "prep.pack.capacity", capacity, keep=True)
    else:
        draft.keys[("prep", "pack", "capacity")] = Written(2048, "the default of LLaMA-Factory")
    draft.put("prep.overlength", "truncate_right", "as LLaMA-Factory")
    packs, neat = config.at("packing"), config.at("neat_packing")
    given = packs.get("") if packs else None
    on = bool(given) or bool(neat is not None and neat.get("")) or (config.get("stage") == "pt" and given is None)
    if on:
        apart = neat is not None and bool(neat.get(""))
        if config.get("stage") == "pt":
            draft.put("prep.pack.strategy", "concat_split", "texts are joined and cut there")
            if not apart:
                draft.put("prep.pack.cross_sample_attention", True, "and see each other, as there")
            draft.same(packs, "texts are joined and cut")
        elif apart:
            draft.same(packs, "samples are packed, and do not see each other")
        else:
            draft.drop(packs, "samples are packed; there they see each other without neat_packing, here they do not")
        draft.same(neat, "samples of a pack do not see each other" if apart else "is off there")
    else:
        draft.put("prep.pack.strategy", "none", "samples are not packed there")
        for node in (packs, neat):
            draft.same(node, 'prep.pack.strategy = "none"')


def _unused(node: Node) -> Finding:
    if trainer.is_off(node):
        return trainer.OFF
    if re.match(r"(fp8|use_kt|kt_|use_v1_kernels|use_\w+_kernel)", node.key):
        return Finding("decide", (), "arithmetic and kernels of that kind are not offered; see train.precision")
    if re.match(r"(use_)?(asft|dft|eaft)(_|$)", node.key):
        return Finding("decide", (), "the loss here is plain cross entropy")
    if re.match(r"(tensor|pipeline|expert|context)_model_parallel|use_distributed_optimizer|\w+_fusion$", node.key):
        return Finding("dropped", (), "belongs to Megatron; ZeRO 3 shares the weights over all ranks")
    found = re.match(
        r"(galore|apollo|badam|pissa|pref|ppo|kto|dpo|freeze|swanlab|ray|generation|image|video|audio|oft)_", node.key
    )
    if found:
        return Finding("dropped", (), f"belongs to {found[1]}, which is not used here")
    return known_elsewhere(node)


def _listed(value: Any) -> Any:
    return [one.strip() for one in value.split(",") if one.strip()] if isinstance(value, str) else value


def _targets(value: Any) -> Any:
    return "all-linear" if value in ("all", ["all"]) else _listed(value)


def _swanlab(draft: Draft, node: Node) -> None:
    if node.get("") is True:
        draft.map(node, "train.log.trackers", ["swanlab"], note="the project by its own environment variables")
    else:
        draft.same(node, "not set")


def _directory(draft: Draft, node: Node) -> None:
    value = node.get("")
    if isinstance(value, str):
        draft.drop(node, f"exports go to run.work_dir, not to {local(value)}")
    else:
        draft.same(node, "not set")


TEMPLATES: Mapping[str, str] = {"llama3": "llama3_chat", "chatml": "qwen_chat", "intern2": "internlm2_chat"}
"""Templates of both by their names. Of the others the tokenizer's own is taken."""
_UNUSED = "is not offered"

LORA: Mapping[str, Rule] = {
    "lora_rank": to("model.lora.r", keep=True),
    **trainer.LORA,
    "lora_target": to("model.lora.target_modules", _targets),
    "additional_target": to("model.lora.modules_to_save", _listed),
    "use_rslora": to("model.lora.use_rslora"),
    "use_dora": to("model.lora.use_dora"),
    "loraplus_lr_ratio": only(None, "not set", "one rate for all parameters here"),
    "loraplus_lr_embedding": drops("one rate for all parameters here"),
    "pissa_init": only(False, "not set", "adapters begin at zero here"),
    "create_new_adapter": drops("a run begins with a new adapter"),
}
QUANTIZATION: Mapping[str, Rule] = {
    "quantization_type": to("model.quantization.bnb_4bit_quant_type"),
    "double_quantization": to("model.quantization.bnb_4bit_use_double_quant"),
    "quantization_method": only(("bnb", "bitsandbytes"), "bitsandbytes", "weights are packed by bitsandbytes"),
    "quantization_device_map": drops("weights go straight to where they are needed"),
}
RULES: Mapping[str, Rule] = {
    "stage": only(("sft", "pt", None), "[train] is supervised training; pt is plain text", trainer.SUPERVISED),
    "adapter_name_or_path": only(None, "not set", "merge that adapter first, and name the merged model"),
    "cache_dir": asks('model.source_args = { cache_dir = "..." } says it'),
    "use_fast_tokenizer": drops("tokenizer.json or tokenizer.model is read as it is"),
    "resize_vocab": drops("tokenizer.add_special_tokens adds rows to the embedding"),
    "split_special_tokens": only((False, None), "not set", 'template.special_text = "escape" is the default'),
    "add_tokens": only(None, "not set", "only special tokens are added; see tokenizer.add_special_tokens"),
    "add_special_tokens": to("tokenizer.add_special_tokens", _listed),
    "new_special_tokens": to("tokenizer.add_special_tokens", _listed),
    "model_revision": to("model.revision"),
    "rope_scaling": only(None, "not set", "see model.max_position_embeddings and model.rope_scaling"),
    "flash_attn": to("model.attn_implementation", {"auto": "auto", "fa2": "auto", "sdpa": "sdpa", "disabled": "sdpa"}),
    "shift_attn": only((False, None), "not set", "every token of a document is attended to here"),
    "mixture_of_depths": only(None, "not set", _UNUSED),
    "use_unsloth": only((False, None), "not set", "its kernels are not used here"),
    "use_unsloth_gc": drops("see train.activation_offload"),
    "enable_liger_kernel": drops("train.fused_loss computes the loss a stretch after the other"),
    "moe_aux_loss_coef": only(None, "not set", "the coefficient is a key of the model's config.json"),
    "disable_gradient_checkpointing": to("train.activation_checkpointing", {True: "none", False: "full"}, keep=True),
    "gradient_checkpointing": to("train.activation_checkpointing", {True: "full", False: "none"}, keep=True),
    "use_reentrant_gc": drops("checkpointing is chosen here"),
    "upcast_layernorm": only((False, None), "not set", "norms compute in float32 as the model's code has it"),
    "upcast_lmhead_output": drops("the loss is computed in float32"),
    "train_from_scratch": only((False, None), "not set", "write the sizes into [model.scratch]"),
    "pure_bf16": only((False, None), "not set", "weights are kept in float32 beside; see train.precision"),
    "train_on_prompt": trainer.everyone,
    "mask_history": to("template.loss.turns", {True: "last", False: "all"}),
    "default_system": to("template.system"),
    "enable_thinking": asks("see template.loss.reasoning"),
    "tool_format": only(None, "not set", "the chat template renders tools"),
    "ignore_pad_token_for_loss": drops("packs have no padding"),
    "max_samples": to("prep.max_samples", whole, "the first of the hash order"),
    "streaming": only((False, None), "not set", "prep reads all data once"),
    "buffer_size": drops("samples are ordered by a hash"),
    "preprocessing_batch_size": drops("prep has chunks of its own"),
    "preprocessing_num_workers": to("prep.workers"),
    "overwrite_cache": drops("prep knows when its output is current"),
    "tokenized_path": drops("prep keeps its shards in run.work_dir"),
    "data_shared_file_system": drops("prep is a stage of its own"),
    "eval_dataset": only(None, "not set", "see prep.eval.fraction"),
    "eval_on_each_dataset": drops("losses are reported by source"),
    "compute_accuracy": only((False, None), "not set", "see export.eval"),
    "media_dir": drops("images are not offered"),
    "plot_loss": drops("metrics.jsonl has every step"),
    "use_swanlab": _swanlab,
    "swanlab_project": drops("SWANLAB_PROJECT says it"),
    "export_dir": _directory,
    "export_size": to("export.hf.max_shard_size", lambda size: whole(size * 1_000_000_000)),
    "export_device": drops("an export is streamed"),
    "export_legacy_format": only((False, None), "safetensors", "safetensors alone are written"),
    "print_param_status": drops("the audit before the first step names what is trained"),
    "fsdp_transformer_layer_cls_to_wrap": drops("ZeRO 3 shards parameters; see [train.deepspeed]"),
    "use_llama_pro": only((False, None), "not set", _UNUSED),
    "use_galore": only((False, None), "not set", _UNUSED),
    "use_apollo": only((False, None), "not set", _UNUSED),
    "use_badam": only((False, None), "not set", _UNUSED),
    "use_adam_mini": only((False, None), "not set", _UNUSED),
    "use_muon": to("train.optimizer.type", {True: "muon", False: "adamw"}),
    "hf_hub_token": drops('a secret has no place in a file: model.source_args = { token_env = "HF_TOKEN" }'),
    "ms_hub_token": drops('a secret has no place in a file: model.source_args = { token_env = "..." }'),
}
