"""The whole design's keys and values, and what to say of a key that the schema does not have.

What the schema has wins: a described key or value stops being refused once it is added there.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache

from pipelines import foreign
from pipelines.keys import is_known, names, schema_keys
from pipelines.toml_text import KeyPath, spell_key

_NEAR = 0.6  # similarity of two names of one table that may be one name misspelt
_NEAR_ELSEWHERE = 0.8  # across tables there are many more names to be mistaken for
_MOST_SUGGESTED = 3

Path = tuple[str, ...]
"""A key, without the indices of arrays."""


def advice(path: KeyPath) -> str:
    """What to say about a key, or a table, that the schema does not have."""
    written = names(path)
    if reason := RETIRED.get(spell_key(written)):
        return f"not a key here: {reason}; remove it"
    if is_planned(written):
        return "not supported yet; remove it"
    if found := foreign.lookup(written):
        return _translation(found)
    if near := suggestions(written):
        *most, last = (f"'{spell_key(key[-1:] if key[:-1] == written[:-1] else key)}'" for key in near)
        text = (
            f"unknown key, did you mean {', '.join(most)} or {last}?" if most else f"unknown key, did you mean {last}?"
        )
        return text if any(map(is_known, near)) else f"{text} It is not supported yet"
    if found := foreign.nearest(written, similarity=_NEAR_ELSEWHERE):
        return _translation(found)
    return UNKNOWN


UNKNOWN = "unknown key; remove it"


def _translation(found: foreign.Foreign) -> str:
    if not found.key:
        return f"unknown key; {found.note}"
    text = f"unknown key; {found.name} of {found.used_by} is {found.key} here"
    if not is_known(tuple(found.key.split("."))):
        text += ", which is not supported yet"
    return f"{text}; {found.note}" if found.note else text


def is_planned(path: Path) -> bool:
    """Whether the key or table is described, but not in the schema yet."""
    return path in _planned_tables() or path in planned_keys()


@cache
def planned_keys() -> tuple[Path, ...]:
    """Every described key that the schema does not have yet, in the order of the tables."""
    described = [(*filter(None, table.split(".")), name) for table, keys in DESCRIBED.items() for name in keys.split()]
    return tuple(path for path in described if path not in schema_keys())


@cache
def _planned_tables() -> frozenset[Path]:
    return frozenset(key[:end] for key in planned_keys() for end in range(1, len(key))) - schema_keys().keys()


def is_planned_value(path: KeyPath, value: object) -> bool:
    """Whether a value is described for this key, but not taken by the schema yet."""
    return isinstance(value, str) and any(fnmatchcase(value, pattern) for pattern in planned_values(names(path)))


def planned_values(path: Path) -> tuple[str, ...]:
    """The described values of a key that the schema does not take yet; `*` stands for any text."""
    described = DESCRIBED_VALUES.get(spell_key(path), "").split()
    key = schema_keys().get(path)
    if key is None:
        return tuple(described)
    return tuple(value for value in described if value not in key.values and not ("*" in value and key.is_text))


def suggestions(path: Path) -> list[Path]:
    """The keys that may have been meant, best first; none where there are too many to help."""
    name = foreign.fold(path[-1])
    by_name: dict[str, list[Path]] = {}
    for key in (*schema_keys(), *planned_keys(), *_planned_tables()):
        by_name.setdefault(foreign.fold(key[-1]), []).append(key)
    if name in by_name:
        return by_name[name] if len(by_name[name]) <= _MOST_SUGGESTED else []
    beside = [folded for folded, keys in by_name.items() if any(key[:-1] == path[:-1] for key in keys)]
    if near := get_close_matches(name, beside, 1, _NEAR):
        return [key for key in by_name[near[0]] if key[:-1] == path[:-1]]
    if near := get_close_matches(name, by_name, 1, _NEAR_ELSEWHERE):
        return by_name[near[0]] if len(by_name[near[0]]) <= _MOST_SUGGESTED else []
    return []


DESCRIBED: Mapping[str, str] = {
    "": "schema_version extends",
    "run": "name work_dir seed offline",
    "model": """name_or_path revision source source_args trust_remote_code torch_dtype attn_implementation
        max_position_embeddings rope_scaling scratch weights_format""",
    "model.lora": "r lora_alpha lora_dropout bias task_type target_modules modules_to_save",
    "model.quantization": "load_in_4bit bnb_4bit_compute_dtype bnb_4bit_use_double_quant bnb_4bit_quant_type",
    "tokenizer": "name_or_path source revision source_args add_special_tokens pad_vocab_multiple",
    "template": "name file system bos eos stop_words special_text",
    "template.loss": "roles end_of_turn turns tool_calls reasoning on_empty",
    "prep": """max_length min_length overlength max_samples workers executor on_bad_record max_bad_fraction
        max_record_bytes""",
    "prep.order": "file mode follow_symlinks shuffle interleave",
    "prep.pack": "strategy capacity scope window cross_sample_attention attention_window drop_last",
    "prep.output": "shard_tokens",
    "prep.source": """name path format files map columns split template system weight repeat samples
        tokens sha256""",
    "prep.mix": "unit total max_repeat on_shortage",
    "prep.eval": "fraction source",
    "train": """data shuffle nproc_per_node precision loss_scale max_epochs max_steps
        global_batch_size activation_checkpointing fused_loss max_grad_norm
        error_if_nonfinite on_nonfinite load_from resume compile""",
    "train.optimizer": "type options lr betas eps weight_decay no_decay",
    "train.scheduler": "type warmup_ratio warmup_steps warmup_start_factor min_lr decay_ratio interval",
    "train.parallel": "sequence_parallel_size",
    "train.deepspeed": """zero_stage preset offload_optimizer offload_param nvme_path overlap_comm contiguous_gradients
        extra""",
    "train.checkpoint": "save_steps save_epochs save_total_limit save_optimizer",
    "train.eval": "steps prompts system max_new_tokens",
    "train.log": "steps show_samples trackers per_source_loss",
    "train.runtime": "deterministic backend timeout_minutes env",
    "export": "checkpoint targets merge_base",
    "export.hf": "dtype max_shard_size merge_lora",
    "export.turbomind": "mode model_name tp weight_type model_format group_size session_len chat_template",
    "export.verify": "max_abs_diff greedy_tokens",
}
"""The keys of the whole design by table, whether the schema has them yet or not."""

RETIRED: Mapping[str, str] = {
    "train.loss_reduction": "the loss is one mean over the loss tokens of the global batch, on any layout",
    "train.deepspeed.zero_allow_untested_optimizer": "every optimizer is tried on a matrix before it trains",
    "train.deepspeed.gather_16bit_weights_on_save": "checkpoints are written in parts, and read in parts by the export",
    "train.deepspeed.prebuild_ops": "no operator of DeepSpeed is compiled",
    "model.quantization.load_in_8bit": "load_in_4bit is what a model below an adapter is packed with",
    "model.quantization.llm_int8_threshold": "it belongs to load_in_8bit",
    "model.quantization.llm_int8_has_fp16_weight": "it belongs to load_in_8bit",
    "tokenizer.trust_remote_code": "a tokenizer is read from tokenizer.json or tokenizer.model, and no code of it runs",
    "tokenizer.use_fast": "prep and export read tokenizer.json or tokenizer.model themselves, whatever class it names",
    "tokenizer.padding_side": "packs have no padding, and exported models are asked with it on the left",
    "prep.order.sort": "data_order.txt is always written in code point order",
    "prep.pack.align": "sequence parallelism takes packs of any length",
    "prep.output.format": "shards are Arrow files; `packtrain prep convert` writes other forms of them",
    "prep.output.compression": "shards are memory-mapped, which compressed ones cannot be",
    "prep.output.token_dtype": "ids take 16 bits whenever the vocabulary fits",
    "prep.output.labels": "labels are derived from the loss mask, one bit a token",
    "prep.output.hash": "every file is listed with its SHA-256",
    "prep.output.fsync": "a file is always flushed to disk before it gets its name",
    "prep.output.keep_rejects": "rejects.jsonl is always written",
    "prep.source.tools_column": 'columns = { tools = "..." } says it',
    "prep.repro": "prep reads local files alone, and `packtrain prep verify --resample` takes a number",
    "train.optimizer.fused": "the fused kernel is used wherever an optimizer has one",
    "train.checkpoint.by_epoch": "save_epochs counts epochs",
    "train.checkpoint.save_on_signal": "SIGTERM, SIGINT and SIGUSR1 always let the step finish, save and end with exit "
    "code 75",
    "train.checkpoint.async_save": "the next step waits until a checkpoint is whole",
    "train.checkpoint.verify": "sizes and digests are always checked before a checkpoint is loaded",
    "train.checkpoint.elastic": "a checkpoint always resumes on another number of ranks and another ZeRO stage",
    "train.launcher": "what started the process says it: torchrun, deepspeed, srun, Kubernetes, SkyPilot or nothing",
    "train.nnodes": "what starts the ranks says it, NNODES or a scheduler's own variables",
    "train.runtime.cudnn_benchmark": "language models run no convolution that cuDNN could choose a kernel for",
    "train.runtime.mp_start_method": "no process is forked while training; ranks are started as commands",
    "train.deepspeed.initial_scale_power": "the dynamic loss scale begins at 2^16 and finds its own; train.loss_scale "
    "takes a number",
    "train.log.level": "what is logged is for someone to see, and `packtrain --verbose` adds what libraries say",
    "train.log.jsonl": "metrics.jsonl is always written",
    "train.parallel.audit": "the audit before the first step always runs",
    "train.eval.loss_on_eval": "the loss is evaluated wherever prep.eval holds samples out",
    "export.verify.logits": "greedy_tokens = 0 leaves out the comparison of logits, and with it loading the model",
    "export.verify.template_probe": "prompts of the exported tokenizer are always compared with those that were "
    "trained on",
    "export.hf.safe_serialization": "safetensors files are all that is written",
    "export.hf.max_memory_bytes": "weights go through memory in small blocks, however large the model",
    "export.hf.include": "tokenizer, template and generation_config.json belong to the model and to its check; the "
    "model card and manifest.json can be deleted where they are not wanted",
}
"""Keys of the design that were found to need no key, and why."""

DESCRIBED_VALUES: Mapping[str, str] = {
    "model.attn_implementation": "auto flash_attention_2 flash_attention_3 flex_attention varlen sdpa eager",
    "model.torch_dtype": "auto bfloat16 float16 float32",
    "template.special_text": "escape error allow",
    "template.loss.turns": "all last",
    "template.loss.on_empty": "error drop",
    "prep.overlength": "error truncate_right truncate_left split drop",
    "prep.order.mode": "locked write scan",
    "prep.order.shuffle": "hash none xtuner",
    "prep.order.interleave": "fractional concat",
    "prep.pack.strategy": "best_fit concat_split none",
    "prep.pack.scope": "source file window global",
    "prep.source.format": "auto ftdp jsonl json parquet arrow hf_disk hf_hub csv tsv text webdataset",
    "prep.source.map": "openai sharegpt alpaca alpaca_zh oasst1 pretrain default none python:*",
    "prep.mix.unit": "tokens samples",
    "train.shuffle": "hash none xtuner internrepo internevo",
    "train.log.trackers": "tensorboard wandb swanlab trackio mlflow",
    "train.runtime.backend": "auto nccl gloo hccl mccl",
    "train.precision": "auto bf16 fp16 fp32",
    "train.activation_checkpointing": "none full selective",
    "train.resume": "auto none */*",
    "train.optimizer.type": "adamw adamw_8bit paged_adamw_32bit sgd lion muon python:*",
    "train.deepspeed.offload_optimizer": "none cpu nvme",
    "train.deepspeed.offload_param": "none cpu nvme",
    "train.scheduler.type": "cosine linear constant wsd",
    "export.checkpoint": "latest best */*",
    "export.targets": "hf adapter turbomind",
    "export.hf.dtype": "auto bfloat16 float16 float32",
    "export.turbomind.weight_type": "bfloat16 float16",
    "export.turbomind.model_format": "hf awq gptq",
}
"""The named values of the whole design, for keys that the schema has."""
