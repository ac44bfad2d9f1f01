"""The arguments of Transformers' Trainer, which axolotl and LLaMA-Factory pass on, each by one name or another."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.migrate.config_tree import Finding, Node
from pipelines.migrate.draft import Draft, Rule, asks, drops, only, same, to
from pipelines.toml_file import Written


def short(value: float) -> float:
    """Without the rounding of a product: 2e-6, not 2.0000000000000003e-06."""
    return float(f"{value:.12g}")


def whole(value: Any) -> Any:
    """3.0 is 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def map_batch(draft: Draft, each: str, *, default: int, shared: str = "", gpus: int | None) -> None:
    """train.global_batch_size, in packs.

    Args:
        draft: to write to.
        each: the key of the batch of one GPU.
        default: what it is where it is not given.
        shared: the key of how many GPUs share a sequence.
        gpus: of the whole run, which the config does not say.
    """
    config = draft.config
    sizes = []
    for key, usual in ((each, default), ("gradient_accumulation_steps", 1), (shared, 1)):
        value = whole(config.get(key)) if key and config.at(key) else None
        sizes.append(value if isinstance(value, int) and value > 0 else usual)
        if value is not None and value != sizes[-1]:
            draft.decide(config.at(key), f"{key} = {value} is not known; see train.global_batch_size")
    size, accumulated, ranks = sizes
    count = gpus or ranks
    if count % ranks:
        raise ConfigError(f"{draft.name}: --gpus = {count}: {shared} {ranks} does not divide it")
    packs = size * accumulated * count // ranks
    arithmetic = f"{each} {size} x gradient_accumulation_steps {accumulated} x {count} GPUs"
    arithmetic += f" / {shared} {ranks}" if ranks > 1 else ""
    for key in (each, "gradient_accumulation_steps"):
        node = config.at(key)
        if node is not None and node.finding is None and node.get("") is not None:
            draft.map(node, "train.global_batch_size", packs)
    draft.keys[("train", "global_batch_size")] = Written(packs, f"was: {arithmetic}")
    if gpus is None:
        draft.ask("train.global_batch_size", packs, f"was: {arithmetic}; give --gpus of the run, which multiply it")
    if shared and config.at(shared) is not None and config.get(shared) is not None:
        draft.map(config.at(shared), "train.parallel.sequence_parallel_size", ranks)


def map_epochs(draft: Draft, key: str, *, default: int) -> None:
    """train.max_epochs, where no max_steps stands in their place."""
    config = draft.config
    steps, node = config.at("max_steps"), config.at(key)
    most = whole(config.get("max_steps")) if steps else None
    if isinstance(most, int) and most > 0:
        draft.map(steps, "train.max_steps", most)
        draft.drop(node, "max_steps says when to end")
        return
    draft.same(steps, "not set")
    value = node.get("") if node else None
    if value is None:
        draft.same(node, "not set")
        draft.put("train.max_epochs", default, f"the default of {draft.trainer}")
    elif isinstance(value, int | float) and value == int(value) and value > 0:
        draft.map(node, "train.max_epochs", int(value))
    else:
        draft.decide(node, f"epochs are whole here; {value} of them are train.max_steps")


def map_schedule(draft: Draft, shape: str, *, default: str) -> None:
    """train.scheduler.

    Args:
        draft: to write to.
        shape: the key of its kind.
        default: what that is where it is not given.
    """
    config = draft.config
    node = config.at(shape)
    named = (config.get(shape) or default) if node else default
    kind = SHAPES.get(str(named))
    if node is None or node.get("") is None:
        draft.put("train.scheduler.type", kind, f"the default of {draft.trainer}")
        draft.same(node, f"{named}, the default")
    elif kind:
        draft.map(node, "train.scheduler.type", kind)
    else:
        draft.decide(node, f"no schedule here is called {named}; see train.scheduler")
    steps, ratio = config.at("warmup_steps"), config.at("warmup_ratio")
    count, share = (whole(one.get("")) if one else None for one in (steps, ratio))
    warms = any(isinstance(one, int | float) and one > 0 for one in (count, share))
    if named != "constant" and warms:
        draft.put("train.scheduler.warmup_start_factor", 0.0, "the first step has no rate there")
    if isinstance(count, int) and count > 0:
        draft.map(steps, "train.scheduler.warmup_steps", count)
        draft.drop(ratio, "warmup_steps counts where both are given")
    elif isinstance(count, float) and 0 < count < 1:
        draft.map(steps, "train.scheduler.warmup_ratio", count, note="below 1 it is a share of all steps")
        draft.drop(ratio, "warmup_steps counts where both are given")
    elif isinstance(share, int | float) and share > 0 and named != "constant":
        draft.map(ratio, "train.scheduler.warmup_ratio", share)
        draft.same(steps, "warmup_ratio")
    else:
        for one in (steps, ratio):
            draft.same(one, "no warm-up")
        if draft.trainer != "axolotl" or steps or ratio or named == "constant":
            draft.put("train.scheduler.warmup_ratio", 0.0, "no warm-up there")


def map_deepspeed(draft: Draft, folder: Path) -> None:
    """train.deepspeed, from the JSON file that is named where it is there, and else from its name.

    Args:
        draft: to write to.
        folder: of the config.
    """
    node = draft.config.at("deepspeed")
    value = node.get("") if node else None
    if node is None or value is None or value == "":
        draft.same(node, "not set")
        return
    found, where = _json(value, folder) if isinstance(value, str) else (value, "")
    text = str(value).lower()
    if isinstance(found, dict):
        zero = found.get("zero_optimization", {})
        zero = zero if isinstance(zero, dict) else {}
        stage = zero.get("stage", 0)
        offloads = {key for key in ("optimizer", "param") if _device(zero.get(f"offload_{key}")) == "cpu"}
        others = [key for key in _set(found) if not key.startswith(_OWN)]
        note = f"{where}; see train.deepspeed.extra for {', '.join(others)}" if others else where
    else:
        named = re.search(r"z(?:ero)?[_-]?(?:stage)?[_-]?([0-3])", text)
        stage = int(named[1]) if named else None
        offloads = {"optimizer", "param"} if "offload" in text else set()
        note = "by its name; the file is not here"
    if stage not in (0, 1, 2, 3):
        draft.decide(node, "its ZeRO stage is not known; see train.deepspeed.zero_stage")
        return
    draft.map(node, "train.deepspeed.zero_stage", stage, note=note)
    if "optimizer" in offloads and stage:
        draft.put("train.deepspeed.offload_optimizer", "cpu", f"was: {node.key}")
    if "param" in offloads and stage == 3:
        draft.put("train.deepspeed.offload_param", "cpu", f"was: {node.key}")


def map_precision(draft: Draft) -> None:
    """train.precision, from bf16 and fp16."""
    config = draft.config
    half, other = config.at("bf16"), config.at("fp16")
    if half is not None and half.get("") in (True, "full"):
        draft.map(half, "train.precision", "bf16")
        draft.same(other, "bf16")
    elif other is not None and other.get("") is True:
        draft.map(other, "train.precision", "fp16")
        draft.same(half, "fp16")
    elif half is not None and half.get("") == "auto":
        draft.map(half, "train.precision", "auto")
        draft.same(other, "train.precision is auto")
    elif half is not None and half.get("") is False and (other is None or not other.get("")):
        draft.map(half, "train.precision", "fp32", note="neither bf16 nor fp16")
        draft.same(other, "train.precision")
    else:
        draft.same(half, "not set")
        draft.same(other, "not set")


def map_saving(draft: Draft) -> None:
    """train.checkpoint."""
    config = draft.config
    strategy, steps = config.at("save_strategy"), config.at("save_steps")
    kind = config.get("save_strategy") if strategy else None
    if kind == "epoch":
        draft.map(strategy, "train.checkpoint.save_epochs", 1)
        draft.put("train.checkpoint.save_steps", 0, "by epochs")
        draft.drop(steps, "save_strategy counts epochs")
    elif kind == "no":
        draft.map(strategy, "train.checkpoint.save_steps", 0, note="only the last")
        draft.drop(steps, "save_strategy is no")
    else:
        only(("steps", None), "save_steps", "see train.checkpoint.save_steps")(draft, strategy) if strategy else None
        value = whole(steps.get("")) if steps else None
        if isinstance(value, float):
            draft.decide(steps, "a share of all steps there; see train.checkpoint.save_steps")
        elif value is not None:
            draft.map(steps, "train.checkpoint.save_steps", value)
    limit = config.at("save_total_limit")
    if limit is not None and limit.get("") is not None:
        draft.map(limit, "train.checkpoint.save_total_limit", whole(limit.get("")))
    else:
        draft.same(limit, "not set")
        draft.put("train.checkpoint.save_total_limit", -1, f"the default of {draft.trainer} keeps all")


def map_evaluation(draft: Draft, held_out: str) -> None:
    """prep.eval.fraction and train.eval.steps.

    Args:
        draft: to write to.
        held_out: the key of what is held out.
    """
    config = draft.config
    node = config.at(held_out)
    value = whole(node.get("")) if node else None
    if isinstance(value, float) and 0 < value < 1:
        draft.map(node, "prep.eval.fraction", value)
    elif isinstance(value, int) and value > 0:
        draft.decide(node, "a count of samples; prep.eval.fraction takes their share")
    else:
        draft.same(node, "nothing is held out")
    on = ("prep", "eval", "fraction") in draft.keys
    steps, strategy = config.at("eval_steps"), config.at("eval_strategy") or config.at("evaluation_strategy")
    count = whole(steps.get("")) if steps else None
    if on and isinstance(count, int) and count > 0:
        draft.map(steps, "train.eval.steps", count, keep=True)
    elif isinstance(count, float):
        draft.decide(steps, "a share of all steps there; see train.eval.steps")
    else:
        draft.same(steps, "nothing is held out" if count else "not set")
    if strategy is not None:
        if strategy.get("") in ("steps", "no", None):
            draft.same(strategy, "train.eval.steps")
        else:
            draft.decide(strategy, "evaluations are counted in steps here; see train.eval.steps")
    if on:
        draft.keys.setdefault(("train", "eval", "steps"), Written(500, f"the default of {draft.trainer}"))


def map_optimizer(draft: Draft, name: str) -> None:
    """train.optimizer; betas as Transformers has them, which are not those here."""
    config = draft.config
    node = config.at(name)
    kind = config.get(name) if node else None
    if kind is None:
        draft.same(node, "AdamW, the default")
    elif str(kind) in OPTIMIZERS:
        draft.map(node, "train.optimizer.type", OPTIMIZERS[str(kind)])
    else:
        draft.decide(node, f"no optimizer here is called {kind}; see train.optimizer.type, or python:module:Class")
    first, second = config.at("adam_beta1"), config.at("adam_beta2")
    given = [one.get("") if one else None for one in (first, second)]
    betas = [
        value if isinstance(value, int | float) else usual for value, usual in zip(given, (0.9, 0.999), strict=True)
    ]
    for one, value in zip((first, second), given, strict=True):
        if value is None:
            draft.same(one, "not set")
        else:
            draft.map(one, "train.optimizer.betas", betas)
    if "lion" not in OPTIMIZERS.get(str(kind), ""):
        draft.put("train.optimizer.betas", betas, "the default of Transformers") if given == [None, None] else None


def _json(text: str, folder: Path) -> tuple[Any, str]:
    for base in (folder, Path()):
        path = base / text
        if path.is_file() and path.suffix == ".json":
            try:
                return json.loads(path.read_bytes()), f"by {path.name}"
            except ValueError as error:
                raise ConfigError(f"{path}: is no JSON ({error})") from error
    return None, ""


def _device(table: Any) -> str:
    return str(table.get("device", "none")) if isinstance(table, dict) else "none"


def _set(table: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The keys of a JSON that say something."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _set(value, f"{above}{key}.")
        elif value != "auto":
            yield f"{above}{key}"


_OWN = (
    *("zero_optimization.stage", "zero_optimization.offload_", "bf16", "fp16", "gradient_", "train_"),
    *("zero_optimization.overlap_comm", "zero_optimization.contiguous_gradients", "zero_allow_untested_optimizer"),
    *("zero_optimization.stage3_gather_16bit", "wall_clock_breakdown", "steps_per_print", "optimizer", "scheduler"),
)
"""Keys of a DeepSpeed JSON that have keys here, or are so anyway."""

SHAPES = {
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
}
OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw": "adamw",
    "adamw_apex_fused": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_torch_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "lion": "lion",
    "lion_pytorch": "lion",
    "lion_32bit": "lion",
    "lion_8bit": "lion_8bit",
    "paged_lion": "paged_lion_32bit",
    "paged_lion_32bit": "paged_lion_32bit",
    "paged_lion_8bit": "paged_lion_8bit",
    "sgd": "sgd",
    "adagrad": "adagrad",
    "rmsprop": "rmsprop",
    "adafactor": "adafactor",
    "muon": "muon",
}
REPORTERS = ("tensorboard", "wandb", "swanlab", "mlflow", "trackio")


def reports(draft: Draft, node: Node) -> None:
    """report_to: one name or several."""
    value = node.get("")
    named = value if isinstance(value, list) else [value]
    if named in ([None], ["none"], [""], []):
        draft.same(node, "none")
    elif all(one in REPORTERS for one in named):
        draft.map(node, "train.log.trackers", named)
    else:
        draft.decide(node, f"train.log.trackers takes {', '.join(REPORTERS)}")


def sharded(draft: Draft, node: Node) -> None:
    """fsdp: any way of it."""
    if node.get("") in (None, "", [], False):
        draft.same(node, "not set")
    else:
        draft.map(node, "train.deepspeed.zero_stage", 3, note="ZeRO 3 shards parameters as FSDP does")


def everyone(draft: Draft, node: Node) -> None:
    """Whether prompts are trained as well."""
    if node.get("") is True:
        draft.map(node, "template.loss.roles", ["system", "user", "assistant"], note="everything is trained")
    else:
        draft.same(node, "answers are trained")


def _by_length(draft: Draft, node: Node) -> None:
    """Batches of samples of like length, which spare padding."""
    if node.get("") is not True:
        draft.same(node, "not set")
    elif draft.keys.get(("prep", "pack", "strategy"), Written("")).value == "none":
        draft.drop(node, "samples are not padded here, and each step takes them in the shuffled order")
    else:
        draft.drop(node, "packing makes lengths equal")


def is_off(node: Node) -> bool:
    """Whether a key says false or nothing."""
    return isinstance(node.value, bool | None) and not node.value and node.is_leaf and not node.is_list


OFF = Finding("same", (), "is off there")
SUPERVISED = "only supervised training is offered here"


def minutes(seconds: Any) -> Any:
    return seconds if not isinstance(seconds, int | float) else min(10_080, math.ceil(seconds / 60))


_PLAIN_LOSS = "the loss here is plain cross entropy"
_SHARED = "ZeRO 3 shares the weights over all ranks; see [train.deepspeed]"

LORA: Mapping[str, Rule] = {
    "lora_alpha": to("model.lora.lora_alpha"),
    "lora_dropout": to("model.lora.lora_dropout"),
}
RULES: Mapping[str, Rule] = {
    "learning_rate": to("train.optimizer.lr", keep=True),
    "weight_decay": to("train.optimizer.weight_decay"),
    "adam_epsilon": to("train.optimizer.eps"),
    "max_grad_norm": to("train.max_grad_norm"),
    "trust_remote_code": drops("Transformers has to know the model, or see model.trust_remote_code"),
    "low_cpu_mem_usage": drops("weights go straight to where they are needed"),
    "seed": to("run.seed"),
    "data_seed": drops("samples and packs are in an order of their own; see run.seed and train.shuffle_seed"),
    "logging_steps": to("train.log.steps", whole),
    "logging_strategy": only("steps", "train.log.steps", "metrics.jsonl has every step"),
    "logging_first_step": drops("metrics.jsonl has every step"),
    "logging_dir": drops("files of trackers are in this run's train directory"),
    "report_to": reports,
    "save_only_model": to("train.checkpoint.save_optimizer", {True: False, False: True}),
    "save_safetensors": only(True, "safetensors alone are written", "safetensors alone are written"),
    "load_best_model_at_end": only(False, "the last checkpoint is exported", "see export.checkpoint"),
    "metric_for_best_model": drops("see export.checkpoint"),
    "greater_is_better": drops("see export.checkpoint"),
    "per_device_eval_batch_size": drops("held-out samples are packed as the others are"),
    "eval_batch_size": drops("held-out samples are packed as the others are"),
    "do_train": same("each stage is a command of its own"),
    "do_eval": same("each stage is a command of its own"),
    "do_predict": only(False, "each stage is a command of its own", "see export.eval"),
    "overwrite_output_dir": drops("a run continues by itself; set train.resume or another run.name to start anew"),
    "resume_from_checkpoint": only((None, False), "this very run continues by itself", "see train.resume"),
    "fsdp": sharded,
    "fsdp_config": drops("ZeRO 3 shards parameters; see [train.deepspeed]"),
    "group_by_length": _by_length,
    "length_column_name": drops("packing makes lengths equal"),
    "ddp_timeout": to("train.runtime.timeout_minutes", minutes),
    "ddp_find_unused_parameters": drops("gradients are reduced by DeepSpeed"),
    "ddp_backend": drops("train.runtime.backend = auto"),
    "local_rank": drops("the launcher says it"),
    "dataloader_num_workers": drops("training reads finished shards"),
    "dataloader_pin_memory": drops("training reads finished shards"),
    "dataloader_prefetch_factor": drops("training reads finished shards"),
    "dataloader_drop_last": drops("steps are always full"),
    "remove_unused_columns": drops("prep writes what training reads"),
    "tf32": drops("TF32 is PyTorch's to allow, and half precision does not need it"),
    "torch_compile": to("train.compile"),
    "torch_compile_backend": drops("layers are compiled by inductor"),
    "accelerator_config": drops("batches are dealt to ranks by their place in the order"),
    "tensor_parallel_size": drops(_SHARED),
    "neftune_noise_alpha": only((None, 0), _PLAIN_LOSS, "no noise is added to embeddings here"),
    "label_smoothing_factor": only((None, 0, 0.0), _PLAIN_LOSS, _PLAIN_LOSS),
    "include_num_input_tokens_seen": drops("metrics.jsonl has every step"),
    "include_tokens_per_second": drops("tokens a second are always reported"),
    "push_to_hub": only((None, False), "nothing is uploaded", "upload the export yourself"),
    "hub_model_id": only(None, "nothing is uploaded", "upload the export yourself"),
    "hub_strategy": drops("nothing is uploaded"),
    "disable_tqdm": drops("a line every train.log.steps steps is logged"),
    "predict_with_generate": only((None, False), "no generation", "see train.eval.prompts"),
    "lr_scheduler_kwargs.min_lr": to("train.scheduler.min_lr"),
    "lr_scheduler_kwargs": asks("see train.scheduler.min_lr and decay_ratio"),
    "optim_args": asks("see train.optimizer.options"),
}
"""Keys that both pass on under one name."""
