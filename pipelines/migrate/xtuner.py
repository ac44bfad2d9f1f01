"""Configs of XTuner 0.1, so that packs, their order and the global batch stay what they were.

What each key comes to here, and where the two differ, is on the page docs/moving-from-xtuner-and-internevo.md.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pipelines.batches_elsewhere import batch
from pipelines.migrate.config_tree import Finding, Node, Symbol
from pipelines.migrate.draft import Draft, Rule, asks, drops, known_elsewhere, only, same, to
from pipelines.migrate.origins import add_source, map_data, map_model, run_name, stem
from pipelines.migrate.trainer_arguments import short
from pipelines.migrate.xtuner_dump import ACCUMULATED, accumulated, map_strategy, name_symbols
from pipelines.schema import MapName
from pipelines.system_texts import SYSTEM_TEXTS
from pipelines.toml_file import Written

_LANGUAGE_MODEL = "SupervisedFinetune"
_LOADS = ("load_dataset", "load_from_disk", "MsDataset.load", "load")


def draft(config: Node, *, name: str, gpus: int | None) -> Draft:
    """A pipeline of a config's keys.

    Args:
        config: as `python_config.read` gives it.
        name: of the file.
        gpus: of the whole run, which the config does not say.
    """
    name_symbols(config)
    found = Draft(config, trainer="XTuner 0.1", name=name)
    run_name(found, Path(name).stem)
    _model(found)
    _data(found)
    _batch(found, gpus)
    map_strategy(found)
    _optimizer(found)
    _schedule(found)
    for hook in _listed(config.at("custom_hooks")):
        _hook(found, hook)
    found.rules(config, TOP)
    found.close(unused=_unused)
    return found


def _model(draft: Draft) -> None:
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


def _data(draft: Draft) -> None:
    config = draft.config
    root = config.at("train_dataloader.dataset") or config.at("train_dataset")
    datasets = _listed(root.at("datasets")) if root and root.at("datasets") else [root] if root else []
    if root and root.at("datasets"):
        draft.same(root.at("type"), "every data set is a [[prep.source]]")
    packed = exact = False
    for dataset in datasets:
        kind = dataset.get("type")
        if _last(kind) == "build_packed_dataset" and _last(dataset.get("dataset_cfg.type")).startswith(
            "load_intern_repo"
        ):
            _intern_repo(draft, dataset)
            packed = exact = True
        elif _last(kind) in ("process_hf_dataset", "process_ms_dataset"):
            packed |= _hugging_face(draft, dataset)
        else:
            draft.decide(dataset, f"data sets of {_last(kind) or 'this kind'} are not known; write a [[prep.source]]")
    if ("prep", "source", 0, "name") not in draft.keys:
        index = add_source(draft, "data")
        draft.ask(f"prep.source.{index}.path", "data", "name the file or the directory of the data")
    for node in (config.at("model.use_varlen_attn"), config.at("use_varlen_attn")):
        if node is not None:
            _attention(draft, node, packed=packed)
    _order(draft, exact=exact)


def _attention(draft: Draft, node: Node, *, packed: bool) -> None:
    if node.get("") is False and packed:
        draft.map(node, "prep.pack.cross_sample_attention", True, note="samples of a pack see each other, as there")
    else:
        draft.same(node, "attention never crosses samples")


def _intern_repo(draft: Draft, dataset: Node) -> None:
    """build_packed_dataset: the packs of a run there, token for token."""
    folder = dataset.at("dataset_cfg.folder")
    index = add_source(draft, stem(folder.get("")) if folder else "data")
    if folder is not None:
        map_data(draft, folder, index)
    else:
        draft.ask(f"prep.source.{index}.path", "data", "name the directory of the data")
    tokenized = _last(dataset.get("dataset_cfg.type")) == "load_intern_repo_tokenized_dataset"
    if tokenized:
        draft.same(dataset.at("dataset_cfg.type"), 'format = "auto" knows .bin files with their .meta')
        draft.put(f"prep.source.{index}.map", "none", "tokenized data")
    else:
        draft.decide(
            dataset.at("dataset_cfg.type"), "its records are bare lists of messages; write a python: map for them"
        )
    ending = dataset.at("dataset_cfg.file_type")
    pattern = f"**/*{ending.get('') if ending else '.bin'}"
    if ending is not None:
        draft.map(ending, f"prep.source.{index}.files", [pattern])
    else:
        draft.put(f"prep.source.{index}.files", [pattern], "XTuner's default")
    order = dataset.at("dataset_cfg.data_order_path")
    if order is not None and order.get("") is not None:
        draft.map(order, "prep.order.file", note="is honoured line by line", keep=True)
    else:
        what = "without a data_order.txt XTuner took folders as the file system listed them; put that of its run here"
        draft.decide(order, what)
        if order is None:
            draft.notes.append(what)
    template = dataset.at("dataset_cfg.template_map_fn")
    if template is not None:
        _template(draft, template, index)
    draft.rules(dataset, {f"dataset_cfg.{key}": rule for key, rule in INTERN_REPO.items()})
    draft.rules(dataset, PACKED)
    draft.put("prep.order.shuffle", "xtuner", "file by file, as build_packed_dataset")
    draft.put("prep.pack.strategy", "concat_split", "as build_packed_dataset")
    draft.put("prep.pack.scope", "file", "as build_packed_dataset")
    draft.put("prep.pack.drop_last", True, "as build_packed_dataset")
    draft.put("template.loss.on_empty", "keep", "as build_packed_dataset")
    if index:
        draft.put("prep.order.interleave", "concat", "data sets follow each other")


def _hugging_face(draft: Draft, dataset: Node) -> bool:
    """process_hf_dataset; whether it packs."""
    loader = dataset.at("dataset")
    where = loader.at("data_files") if loader else None
    files = _listed(where) if where is not None and where.resolved().is_list else [where] if where else []
    if where is not None and where.items() and not where.resolved().is_list:
        files = [*where.items().values()]
    named = dataset.resolved().path[-1] if len(dataset.resolved().path) == 1 else ""
    label = str(named) if named not in ("", "train_dataset") else ""
    path = loader.at("path") if loader else None
    if not files and path is not None:
        files = [path]
    indices = []
    found: list[Node | None] = [*files] or [None]
    for file in found:
        name = label if label and len(files) < 2 else stem(file.get("")) if file else ""
        index = add_source(draft, name or "data")
        indices.append(index)
        if file is not None:
            map_data(draft, file, index)
        else:
            draft.ask(f"prep.source.{index}.path", "data", "name the file or the directory of the data")
        _record_map(draft, dataset, index)
        if _last(loader.get("type") if loader else None) == "load_from_disk":
            draft.put(f"prep.source.{index}.format", "hf_disk", "load_from_disk")
    if len(indices) > 1:
        draft.put("prep.pack.scope", "global", "one data set of several files was packed as one")
    template = dataset.at("template_map_fn")
    for index in indices:
        if template is not None:
            _template(draft, template, index)
    if loader is not None:
        draft.rules(loader, LOADER)
    packs, most = dataset.at("pack_to_max_length"), dataset.at("max_dataset_length")
    if most is not None and most.get("") is not None:
        note = "the first of the hash order, there a random draw"
        draft.map(most, f"prep.source.{indices[0]}.samples", note=note)
    draft.rules(dataset, HUGGING_FACE)
    if ("prep", "pack", "capacity") not in draft.keys:
        draft.ask("prep.pack.capacity", 2048, "the config has no max_length")
    draft.put("prep.max_length", draft.keys[("prep", "pack", "capacity")].value, "a sample is cut there")
    draft.put("prep.overlength", "truncate_right", "as process_hf_dataset")
    draft.put("template.loss.on_empty", "drop", "as process_hf_dataset")
    if packs is not None and packs.get("") is False:
        draft.map(packs, "prep.pack.strategy", "none")
        return False
    draft.map(packs, "prep.pack.strategy", "concat_split", note="the stream is cut every max_length tokens")
    draft.put("prep.pack.strategy", "concat_split", "XTuner's default")
    draft.put("prep.pack.drop_last", True, "as process_hf_dataset")
    return True


def _record_map(draft: Draft, dataset: Node, index: int) -> None:
    node = dataset.at("dataset_map_fn")
    value = node.get("") if node else None
    key = f"prep.source.{index}.map"
    if value is None:
        what = 'records with "messages" are map = "openai", the default; with "conversation" of XTuner they need a map'
        draft.same(node, what)
        return
    name = _last(value) if isinstance(value, Symbol) else str(value)
    name = name.removesuffix("_map_fn").removesuffix("_factory")
    if name in get_args(MapName):
        draft.map(node, key, name, keep=True)
    elif node is not None:
        draft.decide(node, f"no map here is called {name}; see prep.source.map, or python:module:function for your own")


def _template(draft: Draft, node: Node, index: int) -> None:
    if not node.items() and node.get("") is None:
        draft.map(node, "template.name", "none", note="plain text")
        return
    draft.same(node.at("type"), "prep renders the template")
    found = node.at("template")
    value = found.get("") if found else None
    if not isinstance(value, Symbol):
        draft.decide(found or node, 'give it as a Jinja file: template.name = "custom" and template.file')
        return
    named = draft.keys.get(("template", "name"))
    if named is None or named.value == value.last:
        draft.map(found, "template.name", value.last, keep=True)
    else:
        draft.map(found, f"prep.source.{index}.template", value.last)


def _order(draft: Draft, *, exact: bool) -> None:
    """Which packs a step sees."""
    config = draft.config
    sampler = config.at("train_dataloader.sampler")
    kind, shuffle = sampler.at("type") if sampler else None, sampler.at("shuffle") if sampler else None
    seed = sampler.at("seed") if sampler else None
    general = config.at("randomness.seed")
    for node in (seed, general):
        if node is None or node.get("") is None:
            draft.same(node, "not set")
        elif ("run", "seed") not in draft.keys and not (exact and node.get("") != 1024):
            draft.map(node, "run.seed")
        elif node.get("") != draft.keys.get(("run", "seed"), Written(1024)).value:
            draft.decide(node, "there is one seed here, run.seed, and that of the packs is taken")
        else:
            draft.same(node, "run.seed")
    if shuffle is not None and shuffle.get("") is False:
        draft.map(shuffle, "train.shuffle", "none")
        draft.same(kind, "train.shuffle")
        return
    known = SAMPLERS.get(_last(kind.get("")) if kind else "")
    seeded = exact or any(node is not None and isinstance(node.get(""), int) for node in (seed, general))
    if known == "internrepo" and draft.keys.get(("run", "seed"), Written(1024)).value != 1024:
        draft.decide(kind, "its seed is always 1024, and that of the packs another; there is one seed here, run.seed")
    elif known and seeded:
        draft.map(kind, "train.shuffle", known)
        draft.same(shuffle, "train.shuffle")
        unseeded = all(node is None or node.get("") is None for node in (seed, general))
        if known == "xtuner" and unseeded:
            draft.notes.append("the sampler of that run had a seed drawn by chance; its log says it: set run.seed")
    elif known or kind is None:
        draft.same(kind, "packs are shuffled, by chance there")
        draft.same(shuffle, "packs are shuffled")
    else:
        draft.decide(kind, "no such order of packs here; see train.shuffle")


def _batch(draft: Draft, gpus: int | None) -> None:
    config = draft.config
    read: dict[str, int] = {"max_length": 1}
    for name, paths in BATCH.items():
        nodes = [node for path in paths if (node := config.at(path)) is not None]
        value = nodes[0].get("") if nodes else 1
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            read[name] = value
        else:
            draft.decide(nodes[0] if nodes else None, f"{name} is not known; see train.global_batch_size")
    shared = read.get("sp", 1)
    read["gpus"] = gpus or shared
    packs = batch("xtuner", read, cited=f"{draft.name}: --gpus").keys["train.global_batch_size"]
    arithmetic = (
        f"batch_size {read.get('batch_size', 1)} x accumulative_counts {read.get('accumulative_counts', 1)} x "
        f"{read['gpus']} GPUs / sequence_parallel_size {shared}"
    )
    for name in ("accumulative_counts", "batch_size"):
        node = next((node for path in BATCH[name] if (node := config.at(path)) is not None), None)
        if node is not None and node.finding is None:
            draft.map(node, "train.global_batch_size", packs)
    draft.keys[("train", "global_batch_size")] = Written(packs, f"was: {arithmetic}")
    if gpus is None:
        draft.ask("train.global_batch_size", packs, f"was: {arithmetic}; give --gpus of the run, which multiply it")
    draft.map(config.at("sequence_parallel_size"), "train.parallel.sequence_parallel_size")


def _optimizer(draft: Draft) -> None:
    config = draft.config
    wrapper = config.at("optim_wrapper")
    draft.rules(wrapper, OPTIMIZER)
    if config.at("optim_wrapper.optimizer.lr") is None:
        draft.ask("train.optimizer.lr", 1e-3, "the config names none")
    for key, (value, why) in _UNSAID.items():
        if not (wrapper and wrapper.at(key.partition(":")[2])):
            draft.unsaid(key.partition(":")[0], value, why)
    decay = draft.keys.get(("train", "optimizer", "weight_decay"))
    if decay and decay.value and ("train", "optimizer", "no_decay") not in draft.keys:
        draft.put("train.optimizer.no_decay", [], "every parameter is decayed there")


_UNSAID: Mapping[str, tuple[Any, str]] = {
    "train.optimizer.betas:optimizer.betas": ([0.9, 0.999], "PyTorch's default"),
    "train.optimizer.weight_decay:optimizer.weight_decay": (0.01, "PyTorch's default"),
    "train.max_grad_norm:clip_grad.max_norm": (0.0, "gradients are not clipped there"),
}
"""Key here, key there, what it comes to where theirs is not given, and why."""


def _schedule(draft: Draft) -> None:
    """A linear warm-up and what follows it."""
    node = draft.config.at("param_scheduler")
    stages = _listed(node) if node is not None and node.resolved().is_list else [node] if node else []
    epochs = draft.config.get("train_cfg.max_epochs")
    warmed = False
    for stage in stages:
        kind = _last(stage.get("type"))
        rising = kind == "LinearLR" and stage.at("start_factor") is not None and len(stages) > 1 and not warmed
        if rising:
            warmed = True
            _warm_up(draft, stage, epochs)
        elif kind in SHAPES:
            draft.map(stage.at("type"), "train.scheduler.type", SHAPES[kind])
            _shape(draft, stage)
        else:
            draft.decide(stage, f"no schedule here is like {kind or 'this'}; see train.scheduler")
            continue
        by_epoch = stage.at("by_epoch")
        if by_epoch is not None and by_epoch.get("") is not False and not stage.get("convert_to_iter_based"):
            draft.map(by_epoch, "train.scheduler.interval", "step" if rising else "epoch")
        draft.rules(stage, STAGE)
    if not warmed:
        draft.unsaid("train.scheduler.warmup_ratio", 0.0, "no warm-up there")
    if not stages:
        draft.unsaid("train.scheduler.type", "constant", "no param_scheduler there")


def _warm_up(draft: Draft, stage: Node, epochs: Any) -> None:
    draft.same(stage.at("type"), "the warm-up is linear")
    draft.map(stage.at("start_factor"), "train.scheduler.warmup_start_factor")
    end = stage.at("end")
    value = end.get("") if end else None
    if not isinstance(value, int | float):
        draft.decide(end, "is not known; see train.scheduler.warmup_ratio")
    elif stage.get("by_epoch") is False:
        _steps("train.scheduler.warmup_steps")(draft, end) if end else None
    elif isinstance(epochs, int | float) and epochs > 0:
        draft.map(end, "train.scheduler.warmup_ratio", round(value / epochs, 10), note="of all steps")
    else:
        draft.decide(end, "counts epochs, and there is no max_epochs; see train.scheduler.warmup_ratio")


def _shape(draft: Draft, stage: Node) -> None:
    lowest, share = stage.at("eta_min"), stage.at("eta_min_ratio")
    rate = draft.config.get("optim_wrapper.optimizer.lr")
    value = lowest.get("") if lowest else None
    draft.map(lowest, "train.scheduler.min_lr", short(value) if isinstance(value, float) else value)
    if share is not None and isinstance(value := share.get(""), int | float) and isinstance(rate, int | float):
        draft.map(share, "train.scheduler.min_lr", short(value * rate))
    top = stage.at("T_max")
    if top is not None and stage.at("end") is None and stage.get("begin"):
        draft.same(top, "the last step has min_lr; there it ended a little above, as T_max counts the warm-up")


def _hook(draft: Draft, hook: Node) -> None:
    kind = _last(hook.get("type"))
    if kind == "EvaluateChatHook":
        template = hook.get("prompt_template")
        if isinstance(template, Symbol) and ("template", "name") not in draft.keys:
            draft.map(hook.at("prompt_template"), "template.name", template.last)
        draft.rules(hook, CHAT)
    elif kind == "DatasetInfoHook":
        draft.same(hook.at("type"), "train.log.show_samples shows them")
        draft.drop(hook, "train.log.show_samples knows the data")
    elif kind == "VarlenAttnArgsToMessageHubHook":
        draft.drop(hook, "where samples begin travels with the batch")
    elif kind == "ThroughputHook":
        draft.same(hook, "tokens a second are always reported")
    elif kind == "HFCheckpointHook":
        draft.drop(hook, "`packtrain export` writes a Hugging Face directory")
    else:
        draft.decide(hook, f"no counterpart of {kind or 'this hook'} is known")


def _listed(node: Node | None) -> list[Node]:
    return [*node.items().values()] if node is not None and node.resolved().is_list else []


def _last(value: Any) -> str:
    """The last part of a name, given as a symbol or as text."""
    name = str(value.name if isinstance(value, Symbol) else value or "")
    return re.sub(r"\.(from_pretrained|load)$", "", name).rpartition(".")[2] or name


def _unused(node: Node) -> Finding:
    root = str(node.path[0])
    if root in READ or root.startswith("line "):
        return known_elsewhere(node)
    return Finding("dropped", (), "nothing in the file uses this name, and XTuner reads no such name")


READ = frozenset(
    {
        *("model", "tokenizer", "train_dataset", "train_dataloader", "val_dataloader", "test_dataloader"),
        *("optim_wrapper", "param_scheduler", "train_cfg", "val_cfg", "test_cfg", "val_evaluator", "test_evaluator"),
        *("custom_hooks", "default_hooks", "hooks", "env_cfg", "visualizer", "log_level", "log_processor", "_base_"),
        *("load_from", "resume", "randomness", "work_dir", "launcher", "custom_imports", "default_scope", "exp_name"),
        *("experiment_name", "strategy", "runner_type", "compile", "auto_scale_lr", "sequence_parallel_size", "cfg"),
        *("model_resource", "framework_type", "training_args", "trainer"),
    }
)
"""The names of a file that XTuner itself reads."""
SAMPLERS = {
    "DefaultSampler": "xtuner",
    "SequenceParallelSampler": "xtuner",
    "InternRepoSampler": "internrepo",
    "InternlmRepoSampler": "internrepo",
}
SHAPES = {
    "CosineAnnealingLR": "cosine",
    "ConstantLR": "constant",
    "LinearLR": "linear",
    "LinearParamScheduler": "linear",
    "CosineAnnealingParamScheduler": "cosine",
}
BATCH = {
    "batch_size": ("train_dataloader.batch_size", "batch_size"),
    "accumulative_counts": ACCUMULATED,
    "sp": ("sequence_parallel_size",),
}
DTYPES = {
    "float16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "float32": "float32",
    "float": "float32",
    "auto": "auto",
}
PRECISIONS = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "fp16": "fp16", "bf16": "bf16"}
OPTIMIZERS = {
    "AdamW": "adamw",
    "Adam": "adam",
    "SGD": "sgd",
    "Adagrad": "adagrad",
    "Adafactor": "adafactor",
    "PagedAdamW32bit": "paged_adamw_32bit",
    "PagedAdamW8bit": "paged_adamw_8bit",
    "PagedAdamW": "paged_adamw_32bit",
    "AdamW8bit": "adamw_8bit",
    "Lion": "lion",
    "Lion8bit": "lion_8bit",
    "PagedLion8bit": "paged_lion_8bit",
    "PagedLion32bit": "paged_lion_32bit",
    "DeepSpeedCPUAdam": "adamw",
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
    "llm.quantization_config.load_in_4bit": lambda draft, node: _four_bits(draft, node),
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
PACKED: Mapping[str, Rule] = {
    "type": same("prep.pack"),
    "packed_length": to("prep.pack.capacity", keep=True),
    "seed": to("run.seed"),
}
INTERN_REPO: Mapping[str, Rule] = {
    "min_length": to("prep.min_length"),
    "max_length": to("prep.max_length"),
    "tokenizer": same("[tokenizer]"),
    "map_num_proc": to("prep.workers"),
    "processed_dataset_dict_path": only(None, "not set", "prep keeps its shards in run.work_dir"),
}
LOADER: Mapping[str, Rule] = {
    "type": same("format = auto goes by the file's ending"),
    "path": drops("format = auto goes by the file's ending"),
    "split": only("train", "the whole source", "give the split's file"),
    "name": asks("name the configuration's file in prep.source.path"),
}
HUGGING_FACE: Mapping[str, Rule] = {
    "type": same("prep"),
    "tokenizer": same("[tokenizer]"),
    "max_length": to("prep.pack.capacity", keep=True),
    "max_dataset_length": same("not set"),
    "split": only("train", "the whole source", "give the split's file"),
    "remove_unused_columns": drops("a map reads the keys that it names"),
    "rename_maps": asks("write it as prep.source.columns = { new = old }"),
    "shuffle_before_pack": lambda draft, node: _shuffled(draft, node),
    "use_varlen_attn": same("see model.use_varlen_attn"),
    "input_ids_with_output": only(True, "so it is", "training is on answers"),
    "with_image_token": only(False, "so it is", "images are not offered"),
    "map_num_proc": to("prep.workers"),
}
OPTIMIZER: Mapping[str, Rule] = {
    "type": same("train.precision"),
    "constructor": asks("no rates by parameter here but no_decay"),
    "paramwise_cfg": asks("no rates by parameter here but train.optimizer.no_decay"),
    "optimizer.type": to("train.optimizer.type", OPTIMIZERS),
    "optimizer.lr": to("train.optimizer.lr", keep=True),
    "optimizer.betas": to("train.optimizer.betas"),
    "optimizer.eps": to("train.optimizer.eps"),
    "optimizer.weight_decay": to("train.optimizer.weight_decay"),
    "optimizer.momentum": to("train.optimizer.options.momentum"),
    "clip_grad.max_norm": to("train.max_grad_norm"),
    "clip_grad.error_if_nonfinite": to("train.error_if_nonfinite"),
    "clip_grad": only(None, "gradients are not clipped", "see train.max_grad_norm"),
    "loss_scale": to("train.loss_scale"),
    "dtype": to("train.precision", PRECISIONS),
}
STAGE: Mapping[str, Rule] = {
    "by_epoch": same("train.scheduler.interval"),
    "convert_to_iter_based": same("train.scheduler.interval"),
    "begin": same("one follows the other"),
    "end": same("until the last step"),
    "T_max": same("until the last step"),
    "factor": only((1, 1.0), "constant at the peak", "the rate after the warm-up is train.optimizer.lr"),
    "verbose": drops("metrics.jsonl has the rate of every step"),
    "start_factor": only((1, 1.0), "falls from the peak", "the rate after the warm-up is train.optimizer.lr"),
    "end_factor": asks("see train.scheduler.min_lr, which is a rate and no factor"),
}
CHAT: Mapping[str, Rule] = {
    "type": same("[train.eval]"),
    "tokenizer": same("[tokenizer]"),
    "prompt_template": same("[template]"),
    "every_n_iters": lambda draft, node: _steps("train.eval.steps")(draft, node),
    "evaluation_inputs": to("train.eval.prompts"),
    "system": lambda draft, node: _system(draft, node),
    "max_new_tokens": to("train.eval.max_new_tokens"),
    "evaluation_images": only(None, "not set", "images are not offered"),
    "stop_word": only(None, "not set", "the template's end of turn ends an answer"),
    "stop_words": only(None, "not set", "the template's end of turn ends an answer"),
    "generation_kwargs": asks("the most likely token is taken each time"),
}
TOP: Mapping[str, Rule] = {
    "tokenizer.type": same("tokenizer.json or tokenizer.model is read as it is"),
    "tokenizer.trust_remote_code": drops("no code of a tokenizer runs"),
    "tokenizer.padding_side": drops("packs have no padding"),
    "tokenizer.use_fast": drops("tokenizer.json or tokenizer.model is read as it is"),
    "tokenizer.encode_special_tokens": drops('template.special_text = "escape" is the default'),
    "tokenizer.model_max_length": drops("prep.max_length cuts samples"),
    "train_dataloader.dataset": same("[[prep.source]]"),
    "train_dataloader.num_workers": drops("training reads finished shards"),
    "train_dataloader.prefetch_factor": drops("training reads finished shards"),
    "train_dataloader.persistent_workers": drops("training reads finished shards"),
    "train_dataloader.pin_memory": drops("training reads finished shards"),
    "train_dataloader.collate_fn": drops("prep writes what training reads"),
    "train_dataloader.batch_sampler": drops("train.global_batch_size counts packs, and steps are always full"),
    "train_cfg.type": same("the loop is the trainer's"),
    "train_cfg.max_epochs": to("train.max_epochs"),
    "train_cfg.max_iters": lambda draft, node: _steps("train.max_steps")(draft, node),
    "train_cfg.by_epoch": same("max_epochs or max_steps"),
    "default_hooks.timer": same("step_time_s is always reported"),
    "default_hooks.logger.type": same("metrics.jsonl is always written"),
    "default_hooks.logger.interval": lambda draft, node: _steps("train.log.steps")(draft, node),
    "default_hooks.logger.log_metric_by_epoch": drops("metrics.jsonl has every step"),
    "default_hooks.param_scheduler": same("[train.scheduler]"),
    "default_hooks.sampler_seed": same("train.shuffle goes by the epoch"),
    "default_hooks.checkpoint.type": same("[train.checkpoint]"),
    "default_hooks.checkpoint.interval": lambda draft, node: _every(draft, node),
    "default_hooks.checkpoint.by_epoch": same("save_epochs counts epochs, save_steps steps"),
    "default_hooks.checkpoint.max_keep_ckpts": to("train.checkpoint.save_total_limit"),
    "default_hooks.checkpoint.save_optimizer": to("train.checkpoint.save_optimizer"),
    "default_hooks.checkpoint.save_last": same("the last step is always saved"),
    "default_hooks.checkpoint.out_dir": drops("checkpoints are in run.work_dir"),
    "env_cfg.cudnn_benchmark": drops("language models run no convolution that cuDNN could choose a kernel for"),
    "env_cfg.mp_cfg": drops("no process is forked while training"),
    "env_cfg.dist_cfg.backend": to("train.runtime.backend", {"nccl": "auto", "gloo": "gloo"}),
    "env_cfg.dist_cfg.init_timeout": asks("see train.runtime.timeout_minutes"),
    "visualizer": lambda draft, node: _visualizer(draft, node),
    "log_level": drops("`packtrain --verbose` shows more"),
    "log_processor": drops("metrics.jsonl has every step"),
    "load_from": only(None, "not set", "export that checkpoint to a Hugging Face directory, and name that one"),
    "resume": only(False, "a new run starts anew; this very run continues", "train.resume continues runs of its own"),
    "randomness.deterministic": to("train.runtime.deterministic"),
    "randomness.diff_rank_seed": drops("every rank has its own from run.seed"),
    "work_dir": to("run.work_dir"),
    "launcher": drops("what started the process says it"),
    "default_scope": drops("nothing is registered here"),
    "exp_name": drops("run.name"),
    "model_resource": same("model.source"),
    "val_dataloader": only(None, "not set", "see prep.eval.fraction"),
    "test_dataloader": only(None, "not set", "see prep.eval.fraction"),
    "val_cfg": only(None, "not set", "see [train.eval]"),
    "test_cfg": only(None, "not set", "see [train.eval]"),
    "val_evaluator": only(None, "not set", "see [train.eval]"),
    "test_evaluator": only(None, "not set", "see [train.eval]"),
    "runner_type": same("[train.deepspeed]"),
}


def _steps(key: str) -> Rule:
    """Iterations, which are micro-batches there, in optimizer steps."""

    def rule(draft: Draft, node: Node) -> None:
        value, each = node.get(""), accumulated(draft.config)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            draft.map(node, key)
        elif not isinstance(each, int) or each < 2:
            draft.map(node, key, value)
        else:
            note = f"{value} iterations there, of one micro-batch of {each} each"
            draft.map(node, key, max(1, round(value / each)), note=note)

    return rule


def _shuffled(draft: Draft, node: Node) -> None:
    if node.get("") is False:
        draft.map(node, "prep.order.shuffle", "none")
    else:
        draft.map(node, "prep.order.shuffle", "hash", note="there the order was drawn by chance")


def _system(draft: Draft, node: Node) -> None:
    value = node.get("")
    text = SYSTEM_TEXTS.get(value.last) if isinstance(value, Symbol) else value
    draft.map(node, "train.eval.system", value if text is None else text)


def _four_bits(draft: Draft, node: Node) -> None:
    if node.get("") is True:
        draft.map(node, "model.quantization.load_in_4bit", keep=True)
    else:
        draft.same(node, "no quantization")
        draft.drop(draft.config.at("model.llm.quantization_config"), "nothing is quantized there")


def _every(draft: Draft, node: Node) -> None:
    if node.get("") == -1:
        draft.map(node, "train.checkpoint.save_steps", 0, note="only the last")
        return
    if draft.config.get("default_hooks.checkpoint.by_epoch") is False:
        _steps("train.checkpoint.save_steps")(draft, node)
        return
    draft.map(node, "train.checkpoint.save_epochs")
    draft.put("train.checkpoint.save_steps", 0, "by_epoch = True there")


def _visualizer(draft: Draft, node: Node) -> None:
    text = " ".join(str(leaf.value) for leaf in node.leaves())
    named = {"WandbVis": "wandb", "TensorboardVis": "tensorboard", "MLflowVis": "mlflow", "SwanLab": "swanlab"}
    trackers = [tracker for part, tracker in named.items() if part in text]
    if trackers:
        draft.map(node, "train.log.trackers", trackers, note="project and address by its own environment variables")
    else:
        draft.same(node, "metrics.jsonl is always written")
