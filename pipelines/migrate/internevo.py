"""Configs of InternEvo, so that packs, their order and the global batch stay what they were.

What each key comes to here, and where the two differ, is on the page docs/from-internevo.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.batches_elsewhere import batch, settings_of
from pipelines.errors import ConfigError
from pipelines.migrate.config_tree import Finding, Node, Symbol, Unread
from pipelines.migrate.draft import Draft, Rule, asks, drops, known_elsewhere, only, same, to
from pipelines.migrate.origins import add_source, local, map_data, run_name, stem
from pipelines.toml_file import Written

_ROUNDED_TO = 256  # the width of its MLPs is a multiple of this
_BIASED = ("INTERNLM", "INTERNLM_MOE")  # model types whose attention has biases
_LLAMAS = ("INTERNLM", "INTERNLM2", "INTERNLM2_PUBLIC", "LLAMA2", "LLAMA")
_LOCAL = "local:"
_PACKS_SEED = 1024


def draft(config: Node, *, name: str, gpus: int | None) -> Draft:
    """A pipeline of a config's keys.

    Args:
        config: as `python_config.read` gives it.
        name: of the file.
        gpus: of the whole run, which the config does not say.
    """
    found = Draft(config, trainer="InternEvo", name=name)
    job = config.get("JOB_NAME")
    run_name(found, job if isinstance(job, str) else Path(name).stem)
    found.map(config.at("JOB_NAME"), "run.name", found.keys[("run", "name")].value, keep=True)
    _model(found)
    _data(found)
    _batch(found, gpus)
    _schedule(found)
    _optimizer(found)
    _checkpoints(found)
    found.rules(config, TOP)
    found.close(unused=_unused)
    return found


def _model(draft: Draft) -> None:
    config = draft.config
    path, kind = config.at("ckpt.load_ckpt_info.path"), config.get("ckpt.load_ckpt_info.ckpt_type")
    old = config.at("ckpt.load_ckpt_folder.path")
    path = path or old
    text = path.get("") if path else None
    if isinstance(text, str):
        _from_checkpoint(draft, path, text.removeprefix(_LOCAL), str(kind or "internevo"))
    elif path is not None and text is not None:
        draft.ask("model.name_or_path", "models/base", "a Hugging Face directory of the weights to begin with")
    else:
        _from_scratch(draft)
    draft.rules(config.at("model"), MODEL)
    recomputed = config.at("model.checkpoint")
    share = recomputed.get("") if recomputed else None
    if isinstance(share, bool | int | float):
        note = f"of {share:.0%} of the layers there" if 0 < share < 1 else ""
        draft.map(recomputed, "train.activation_checkpointing", "full" if share else "none", note=note)


def _from_checkpoint(draft: Draft, node: Node | None, where: str, kind: str) -> None:
    config = draft.config
    if kind.startswith("hf"):
        draft.map(node, "model.name_or_path", local(where), keep=True)
    else:
        folder = f"models/{draft.keys[('run', 'name')].value}"
        what = f"`packtrain export import-internevo {where} {folder}` makes a Hugging Face directory; add its tokenizer"
        draft.keys[("model", "name_or_path")] = Written(folder, f"decide: was: {node.key if node else ''} = {where}")
        draft.decide(node, what)
    draft.same(config.at("ckpt.load_ckpt_info.ckpt_type"), "model.name_or_path")
    content = config.at("ckpt.load_ckpt_info.content")
    values = content.get("") if content else ["model"]
    if values in (["model"], "model", ["model_weights"]):
        draft.same(content, "weights alone are loaded, with a fresh optimizer")
    else:
        draft.decide(content, "weights alone are loaded; state of its optimizer cannot be continued from here")
    for name in SIZES:
        draft.drop(config.at(f"model.{name}"), "the checkpoint's config.json says it")
    draft.drop(config.at("model_type"), "the checkpoint's config.json says it")


def _from_scratch(draft: Draft) -> None:
    config = draft.config
    kind = config.get("model_type") or "INTERNLM"
    if kind in _LLAMAS:
        draft.map(config.at("model_type"), "model.scratch.model_type", "llama")
        draft.keys.setdefault(("model", "scratch", "model_type"), Written("llama", "InternEvo's default, INTERNLM"))
    else:
        draft.decide(config.at("model_type"), f"write the model_type of {kind} as in a config.json, and what it adds")
        draft.keys[("model", "scratch", "model_type")] = Written("llama", "decide: a model_type of Transformers")
    for name, key in SIZES.items():
        node = config.at(f"model.{name}")
        if node is not None and key:
            value = node.get("")
            draft.map(node, f"model.scratch.{key}", value)
    hidden, ratio = config.get("model.hidden_size"), config.at("model.mlp_ratio")
    if (
        ratio is not None
        and isinstance(hidden, int)
        and isinstance(share := ratio.get(""), int | float)
        and 0 < share < 64
    ):
        width = -(-int(hidden * share) // _ROUNDED_TO) * _ROUNDED_TO
        draft.map(ratio, "model.scratch.intermediate_size", width, note=f"rounded up to a multiple of {_ROUNDED_TO}")
    if kind in _BIASED:
        draft.put("model.scratch.attention_bias", True, "as INTERNLM has")
    length = config.at("model.max_position_embeddings")
    if length is not None:
        draft.map(length, "model.scratch.max_position_embeddings")
    elif isinstance(config.get("data.seq_len"), int):
        draft.put("model.scratch.max_position_embeddings", config.get("data.seq_len"), "seq_len")
    draft.ask("tokenizer.name_or_path", "tokenizer", "the directory of the tokenizer that the data was tokenized with")


def _data(draft: Draft) -> None:
    config = draft.config
    folder = config.at("data.train_folder")
    index = add_source(draft, stem(folder.get("")) if folder and folder.get("") else "data")
    draft.put(f"prep.source.{index}.map", "none", "tokenized data")
    draft.put(f"prep.source.{index}.files", ["**/*.bin"], "as InternEvo")
    if folder is not None and isinstance(folder.get(""), str):
        map_data(draft, folder, index)
    else:
        draft.keys[("prep", "source", index, "path")] = Written("data", "decide: name the directory of the data")
        draft.decide(folder, "without a folder InternEvo trains on random tokens; name the directory of the data")
    for key, value in PACKS.items():
        draft.put(key, value, "as InternEvo")
    draft.notes.append(
        "InternEvo takes folders as the file system lists them: XTuner's get_data_order.py, run where the run ran, "
        "writes the data_order.txt to put beside this file; without it packs are the same, and not their order"
    )
    width, count = config.at("data.seq_len"), config.at("data.micro_bsz")
    length, size = width.get("") if width else None, count.get("") if count else 1
    if isinstance(length, int) and isinstance(size, int):
        draft.map(width, "prep.pack.capacity", length * size, keep=True, note=f"x micro_bsz {size}" if size > 1 else "")
        if size > 1:
            draft.map(count, "prep.pack.attention_window", length, note="with prep.pack.capacity")
        else:
            draft.same(count, "prep.pack.capacity")
    else:
        draft.decide(width, "is not known; set prep.pack.capacity to seq_len x micro_bsz")
        draft.ask("prep.pack.capacity", 2048, "seq_len x micro_bsz")
    draft.rules(config.at("data"), DATA)


def _batch(draft: Draft, gpus: int | None) -> None:
    config = draft.config
    read = {"micro_num": 1, "seq_len": 1, **settings_of("internevo", config)}
    copies = read.get("tp", 1) * read.get("pp", 1)
    read["gpus"] = gpus or copies
    if min(size for name, size in read.items() if name != "zero1") < 1:
        raise ConfigError(f"{draft.name}: data and parallel: expected sizes of 1 or more; mend the config first")
    found = batch("internevo", read, cited=f"{draft.name}: --gpus")
    packs = found.keys["train.global_batch_size"]
    arithmetic = f"micro_num {read['micro_num']} x {read['gpus']} GPUs / ({found.lines[0].partition('(')[2]}"
    arithmetic = arithmetic.partition(" =")[0]
    draft.map(config.at("data.micro_num"), "train.global_batch_size", packs)
    draft.map(config.at("data.gradient_accumulation"), "train.global_batch_size", packs)
    draft.keys[("train", "global_batch_size")] = Written(packs, f"was: {arithmetic}")
    if gpus is None:
        draft.ask("train.global_batch_size", packs, f"was: {arithmetic}; give --gpus of the run, which multiply it")
    shared, stage = read.get("tp", 1), found.keys["train.deepspeed.zero_stage"]
    for path in ("parallel.tensor.size", "parallel.tensor"):
        node = config.at(path)
        if node is not None and node.is_leaf:
            draft.map(node, "train.parallel.sequence_parallel_size", shared, note="ranks that share each pack")
    for path in ("parallel.pipeline.size", "parallel.pipeline", "parallel.weight.size", "parallel.weight"):
        node = config.at(path)
        if node is not None and node.is_leaf:
            spread = isinstance(node.get(""), int) and node.get("") > 1
            if spread:
                draft.map(node, "train.deepspeed.zero_stage", stage, note="ZeRO 3 shares the weights of the layers")
            else:
                draft.same(node, "nothing to share")
    for path in ("parallel.zero1.size", "parallel.zero1"):
        node = config.at(path)
        if node is not None and node.is_leaf:
            draft.map(node, "train.deepspeed.zero_stage", stage, note="over all ranks")
    draft.put("train.deepspeed.zero_stage", stage, "optimizer state is shared over ranks there")
    draft.rules(config.at("parallel"), PARALLEL)


def _schedule(draft: Draft) -> None:
    config = draft.config
    table = config.at("lr_scheduler")
    start, total = config.get("lr_scheduler.init_steps"), config.get("data.total_steps")
    ratio = config.get("lr_scheduler.warmup_ratio")
    if not ratio:
        draft.unsaid("train.scheduler.warmup_ratio", 0.0, "no warm-up there")
    elif isinstance(ratio, int | float) and isinstance(total, int) and 0 < ratio <= 1 <= int(total * ratio):
        draft.put("train.scheduler.warmup_start_factor", round(1 / int(total * ratio), 10), "its first step")
    if isinstance(start, int) and start > 0:
        draft.decide(config.at("lr_scheduler.init_steps"), "no steps without learning here; see warmup_steps")
    draft.rules(table, SCHEDULE)


def _optimizer(draft: Draft) -> None:
    config = draft.config
    if config.at("adam.lr") is None:
        draft.ask("train.optimizer.lr", 1e-4, "the config names none")
    first, second = config.at("adam.adam_beta1"), config.at("adam.adam_beta2")
    betas = [node.get("") if node else usual for node, usual in ((first, 0.9), (second, 0.95))]
    for node in (first, second):
        draft.map(node, "train.optimizer.betas", betas)
    draft.rules(config.at("adam"), ADAM)
    if config.at("hybrid_zero_optimizer.clip_grad_norm") is None:
        draft.unsaid("train.max_grad_norm", 0.0, "gradients are not clipped there")
    draft.rules(config.at("hybrid_zero_optimizer"), ZERO)
    decay = draft.keys.get(("train", "optimizer", "weight_decay"))
    if decay and decay.value:
        draft.put("train.optimizer.no_decay", [], "every parameter is decayed there")


def _checkpoints(draft: Draft) -> None:
    config = draft.config
    saves, every = config.at("ckpt.enable_save_ckpt"), config.at("ckpt.checkpoint_every")
    if saves is not None and saves.get("") is False:
        draft.map(saves, "train.checkpoint.save_steps", 0, note="only the last")
        draft.drop(every, "nothing is saved there between the steps")
    else:
        draft.same(saves, "checkpoints are saved")
        draft.map(every, "train.checkpoint.save_steps")
    draft.put("train.checkpoint.save_total_limit", -1, "InternEvo removes none")
    folder = config.at("ckpt.save_ckpt_folder")
    where = folder.get("") if folder else None
    if isinstance(where, str) and where.partition(":")[0] in ("boto3", "volc", "oss2"):
        draft.decide(
            folder, "checkpoints are written to a file system; name one that all machines share in run.work_dir"
        )
    elif isinstance(where, str):
        draft.map(folder, "run.work_dir", local(where.removeprefix(_LOCAL)))
    draft.rules(config.at("ckpt"), CKPT)


def _unused(node: Node) -> Finding:
    root = str(node.path[0])
    if len(node.path) == 1 and root.isupper():
        return Finding("dropped", (), "nothing in the file uses this name, so it had no effect there")
    return known_elsewhere(node)


def _dtype(draft: Draft, node: Node) -> None:
    """`torch.bfloat16`, as text or as a symbol."""
    value = node.get("")
    name = value.last if isinstance(value, Symbol) else str(value).removeprefix("torch.")
    precision = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "tf32": "fp32"}.get(name)
    if isinstance(value, Unread) or precision is None:
        draft.decide(node, "is not known; see train.precision")
        return
    draft.map(node, "train.precision", precision, note="TF32 is PyTorch's to allow" if name == "tf32" else "")


def _scale(draft: Draft, node: Node) -> None:
    if node.get("") == 65536:
        draft.same(node, "the dynamic loss scale begins there")
    else:
        draft.drop(node, "the dynamic loss scale of fp16 begins at 65,536 and finds its own")


def _order_seed(draft: Draft, node: Node) -> None:
    """The seed of its sampler; its packs always have the same."""
    if node.get("") == _PACKS_SEED:
        draft.same(node, "run.seed")
    else:
        draft.map(node, "train.shuffle_seed")


SIZES: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_kv_attention_heads": "num_key_value_heads",
    "layer_norm_epsilon": "rms_norm_eps",
    "rope_base": "rope_theta",
    "mlp_ratio": "",
    "max_position_embeddings": "",
    "num_experts": "",
    "top_k": "",
}
"""Names of sizes there, and in a config.json."""
PACKS: Mapping[str, Any] = {
    "prep.order.shuffle": "xtuner",
    "prep.pack.strategy": "concat_split",
    "prep.pack.scope": "file",
    "prep.pack.drop_last": True,
    "template.loss.on_empty": "keep",
    "train.shuffle": "internevo",
}
"""Its packs and their order."""
MODEL: Mapping[str, Rule] = {
    "dtype": _dtype,
    "use_flash_attn": only(True, "flash-attn is used where it is installed", 'see model.attn_implementation = "sdpa"'),
    "use_swiglu": only(True, "so Llama's MLP is", "no other MLP is known"),
    "norm_type": only("rmsnorm", "so Llama's is", "no other norm is known"),
    "no_bias": only(True, "so Llama is", "see model.scratch.attention_bias"),
    "mlp_layer_fusion": drops("it decides how tensors are kept, not what they hold"),
    "multiple_of": only(_ROUNDED_TO, "so intermediate_size is rounded", "see model.scratch.intermediate_size"),
    "apply_post_layer_norm": only(False, "norms come first", "norms behind the layers are not known"),
    "qk_interleaved": only(False, "so it is in a Hugging Face directory", "import-internevo brings it to that order"),
    "embed_split_hidden": drops("it decides how tensors are shared, not what they hold"),
    "embed_grad_scale": only(1, "so it is", "gradients of the embedding are not scaled here"),
    "parallel_output": drops("train.fused_loss computes the loss a stretch after the other"),
    "num_chunks": only(1, "so it is", "there are no pipeline stages here"),
    "drop_rate": only((0, 0.0), "no dropout", "dropout is a key of the model's config.json"),
    "attn_drop_rate": only((0, 0.0), "no dropout", "dropout is a key of the model's config.json"),
    "residual_in_fp32": drops("additions round as Transformers' do"),
    "norm_head": only(False, "so it is", "no such output is known"),
    "max_position_embeddings": same("[model.scratch]"),
    "adapt_hf": only(True, "so a Hugging Face directory is", "give it as `import-internevo --no-adapt-hf`"),
}
DATA: Mapping[str, Rule] = {
    "type": only("tokenized", "tokenized data", "no such data is known; see prep.source.format and map"),
    "packed_length": drops("InternEvo sets it to seq_len x micro_bsz itself"),
    "pack_sample_into_one": to("prep.pack.cross_sample_attention"),
    "total_steps": to("train.max_steps"),
    "min_length": to("prep.min_length"),
    "min_length_dict": only((None, {}), "not set", "min_length is one number for all files"),
    "seed": _order_seed,
    "valid_folder": only(None, "not set", "see prep.eval.fraction, which holds out samples of the training data"),
    "valid_micro_num": drops("evaluation goes over all that is held out"),
    "valid_every": drops("see train.eval.steps, with prep.eval.fraction or train.eval.prompts"),
    "rampup_batch_size": only(("", None), "not set", "the global batch is the same at every step"),
    "skip_batches": only(("", None), "not set", "no steps are left out here"),
    "empty_cache_and_diag_interval": drops("step times and memory are in metrics.jsonl"),
    "diag_outlier_ratio": drops("step times and memory are in metrics.jsonl"),
    "num_worker": drops("training reads finished shards"),
    "use_packed_dataset": only(True, "samples are packed", 'see prep.pack.strategy = "none"'),
    "fixed_random_dataset_seqlen": drops("it belongs to random data"),
    "tokenizer_path": to("tokenizer.name_or_path"),
}
PARALLEL: Mapping[str, Rule] = {
    "tensor.mode": drops("ranks share each pack by its tokens, whichever the mode"),
    "sequence_parallel": drops("ranks share each pack by its tokens"),
    "zero1.fsdp": only(False, "not set", "see train.deepspeed.zero_stage = 3"),
    "pipeline.interleaved_overlap": drops("there are no pipeline stages"),
    "pipeline.mode": drops("there are no pipeline stages"),
    "pipeline.zero_bubble": drops("there are no pipeline stages"),
    "weight": drops("ZeRO 3 gathers weights ahead of their use itself"),
    "sequence_2D": drops("sequence_parallel_size finds its own split into heads and tokens"),
    "expert": asks("experts are not spread over ranks here; ZeRO 3 shares them"),
}
SCHEDULE: Mapping[str, Rule] = {
    "total_steps": same("train.max_steps"),
    "init_steps": same("none"),
    "warmup_ratio": to("train.scheduler.warmup_ratio"),
    "eta_min": to("train.scheduler.min_lr"),
    "last_epoch": only(-1, "from the beginning", "a run continues by itself"),
}
ADAM: Mapping[str, Rule] = {
    "lr": to("train.optimizer.lr", keep=True),
    "adam_beta2_c": only((0, 0.0), "beta2 stays as it is", "beta2 does not change while training here"),
    "adam_eps": to("train.optimizer.eps"),
    "weight_decay": to("train.optimizer.weight_decay"),
}
ZERO: Mapping[str, Rule] = {
    "clip_grad_norm": to("train.max_grad_norm"),
    "overlap_sync_grad": to("train.deepspeed.overlap_comm"),
    "overlap_sync_param": drops("ZeRO 3 gathers weights ahead of their use itself"),
    "reduce_bucket_size": drops("DeepSpeed's default; see train.deepspeed.extra"),
    "use_split_tensor_optim": drops("tensors are cut as ZeRO does"),
    "all_gather_size": drops("DeepSpeed's default; see train.deepspeed.extra"),
}
CKPT: Mapping[str, Rule] = {
    "load_ckpt_folder": drops("load_ckpt_info is what InternEvo loads; see model.name_or_path"),
    "load_ckpt_info": only(None, "not set", "see model.name_or_path"),
    "auto_resume": to("train.resume", {True: "auto", False: "none"}),
    "async_upload": drops("the next step waits until a checkpoint is whole"),
    "async_upload_tmp_folder": drops("checkpoints appear by rename in run.work_dir"),
    "oss_snapshot_freq": drops("see train.checkpoint.save_steps"),
    "snapshot_ckpt_folder": drops("checkpoints are in run.work_dir"),
    "stop_file_path": drops("SIGTERM and SIGUSR1 let the step finish, save and end"),
    "need_metadata": drops("a manifest is always written"),
}
TOP: Mapping[str, Rule] = {
    "DO_ALERT": drops("no alerts are sent"),
    "grad_scaler.fp16.initial_scale": _scale,
    "grad_scaler": drops("the dynamic loss scale of fp16 halves on overflow and doubles after 1,000 steps"),
    "loss.label_smoothing": only((0, 0.0), "the loss is plain cross entropy", "the loss here is plain cross entropy"),
    "loss.op_type": drops("train.fused_loss"),
    "loss.moe_loss_coeff": asks("the coefficient is a key of the model's config.json"),
    "beta2_scheduler.init_beta2": same("train.optimizer.betas"),
    "beta2_scheduler.c": only((0, 0.0), "beta2 stays as it is", "beta2 does not change while training here"),
    "beta2_scheduler.cur_iter": drops("beta2 stays as it is"),
    "use_fp32_norm": only(False, "so it is", "norms compute in float32 as the model's code has it"),
    "use_fp32_logits": only(True, "the loss is computed in float32", "the loss here is computed in float32"),
    "use_fp32_head": drops("the loss is computed in float32"),
    "cudnn_deterministic": to("train.runtime.deterministic"),
    "cudnn_benchmark": drops("language models run no convolution that cuDNN could choose a kernel for"),
    "monitor.alert": drops("no alerts are sent"),
    "monitor.tensorboard": drops('train.log.trackers = ["tensorboard"] draws the same'),
    "enable_tb": to("train.log.trackers", {True: ["tensorboard"], False: []}),
    "tensorboard_folder": drops("TensorBoard's files are in this run's train directory"),
    "resume_tb_folder": drops("TensorBoard's files are in this run's train directory"),
    "metric_dtype": drops("metrics are computed in float32 or more"),
    "seed": drops(f"run.seed is that of the packs, which is always {_PACKS_SEED} there"),
    "timeout": drops("see train.runtime.timeout_minutes"),
    "enable_collect_data": drops("metrics.jsonl has every step"),
    "selective_checkpoint": to("train.activation_checkpointing", {True: "selective", False: "none"}),
    "generation": asks("see train.eval.prompts"),
    "batch_count": drops("a run continues by itself"),
}
