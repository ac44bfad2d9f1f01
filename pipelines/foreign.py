"""The names that users of other trainers type, and what to write here instead."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import NamedTuple


class Foreign(NamedTuple):
    """A name from another trainer."""

    name: str
    used_by: str
    key: str
    """Ours, or empty where there is none."""
    note: str
    """What to know or to do, to end a sentence; may be empty where there is a key."""


def lookup(path: tuple[str, ...]) -> Foreign | None:
    """What another trainer means by a key, or None where no trainer is known to have it.

    The longest listed ending of the path counts: `optim_wrapper.dtype` says more than `dtype`.
    """
    endings = (fold(".".join(path[start:])) for start in range(len(path)))
    return next((by_name()[ending] for ending in endings if ending in by_name()), None)


def nearest(path: tuple[str, ...], *, similarity: float) -> Foreign | None:
    """The name of another trainer that this one may be, misspelt."""
    near = get_close_matches(fold(path[-1]), by_name(), 1, similarity)
    return by_name()[near[0]] if near else None


@cache
def by_name() -> Mapping[str, Foreign]:
    """Every listed name, folded."""
    return {
        fold(name): Foreign(name, used_by, key, note) for used_by, listed, key, note in ROWS for name in listed.split()
    }


def fold(name: str) -> str:
    """Names that differ in case, hyphens or underscores alone are one name."""
    return name.lower().replace("-", "").replace("_", "")


_BATCH = "it counts the packs of one optimizer step over all ranks, and accumulation follows from it"
_LAUNCH = "it is no key of the file; set NNODES, NODE_RANK, ADDR and PORT in the environment, or use a launcher"
_RANKS = "the launcher says how many ranks there are, and ZeRO shards over all of them; remove it"
_AUTO = "nothing to set here; remove it"

ROWS = (
    # The model.
    ("XTuner", "pretrained_model_name_or_path llm.pretrained_model_name_or_path", "model.name_or_path", ""),
    ("LLaMA-Factory and TRL", "model_name_or_path", "model.name_or_path", ""),
    ("axolotl", "base_model base_model_config", "model.name_or_path", ""),
    ("Unsloth", "model_name", "model.name_or_path", ""),
    ("other trainers", "model_id model_path", "model.name_or_path", ""),
    ("InternEvo", "MODEL_ONLY_FOLDER load_model_only_folder load_ckpt_info", "model.name_or_path", ""),
    ("LLaMA-Factory", "train_from_scratch", "model.scratch", "write the sizes as in a config.json"),
    ("InternEvo", "VOCAB_SIZE", "model.scratch.vocab_size", ""),
    ("InternEvo", "HIDDEN_SIZE", "model.scratch.hidden_size", ""),
    ("InternEvo", "NUM_LAYER num_layers", "model.scratch.num_hidden_layers", ""),
    ("InternEvo", "NUM_ATTENTION_HEAD", "model.scratch.num_attention_heads", ""),
    ("InternEvo", "NUM_KV_ATTENTION_HEAD num_kv_attention_heads", "model.scratch.num_key_value_heads", ""),
    ("InternEvo", "mlp_ratio", "model.scratch.intermediate_size", "it is the ratio times hidden_size"),
    ("InternEvo", "layer_norm_epsilon", "model.scratch.rms_norm_eps", ""),
    ("InternEvo", "model.dtype", "model.torch_dtype", ""),
    ("XTuner", "llm.torch_dtype", "model.torch_dtype", ""),
    ("axolotl", "flash_attention sdp_attention xformers_attention flex_attention", "model.attn_implementation", ""),
    ("LLaMA-Factory", "flash_attn", "model.attn_implementation", ""),
    ("InternEvo", "use_flash_attn use_flash_attention", "model.attn_implementation", ""),
    ("axolotl", "revision_of_model", "model.revision", ""),
    ("LLaMA-Factory", "model_revision", "model.revision", ""),
    ("XTuner", "model_resource model_resource.fn", "model.source", ""),
    ("XTuner", "model_resource.args", "model.source_args", ""),
    ("LLaMA-Factory", "use_modelscope use_openmind", "model.source", ""),
    ("XTuner", "peft_config llm_lora", "model.lora", ""),
    ("TRL", "use_peft", "model.lora", ""),
    ("axolotl", "adapter", "model.lora", ""),
    ("LLaMA-Factory", "finetuning_type", "model.lora", "without the table every parameter is trained"),
    ("axolotl, LLaMA-Factory and TRL", "lora_rank lora_r", "model.lora.r", ""),
    ("other trainers", "lora.rank", "model.lora.r", ""),
    ("axolotl, LLaMA-Factory and TRL", "lora_target lora_target_modules", "model.lora.target_modules", ""),
    ("axolotl", "lora_target_linear", "model.lora.target_modules", ""),
    ("axolotl and TRL", "lora_modules_to_save additional_target", "model.lora.modules_to_save", ""),
    ("XTuner", "quantization_config", "model.quantization", ""),
    ("LLaMA-Factory", "quantization_bit", "model.quantization.load_in_4bit", ""),
    ("LLaMA-Factory", "quantization_type", "model.quantization.bnb_4bit_quant_type", ""),
    ("LLaMA-Factory", "double_quantization", "model.quantization.bnb_4bit_use_double_quant", ""),
    ("XTuner", "use_varlen_attn", "", "attention never crosses documents here; remove it"),
    ("axolotl", "model_type tokenizer_type", "", "the model's own config.json says it; remove it"),
    ("Transformers", "low_cpu_mem_usage device_map", "", "weights go straight to where they are needed; remove it"),
    # The tokenizer and the template.
    ("axolotl", "tokenizer_config", "tokenizer.name_or_path", ""),
    ("other trainers", "tokenizer_name_or_path tokenizer_name tokenizer_path", "tokenizer.name_or_path", ""),
    ("LLaMA-Factory", "use_fast_tokenizer tokenizer_use_fast", "", "tokenizer.json is read as it is; remove it"),
    ("axolotl", "special_tokens tokens", "tokenizer.add_special_tokens", ""),
    ("LLaMA-Factory", "add_tokens new_special_tokens additional_special_tokens", "tokenizer.add_special_tokens", ""),
    ("XTuner", "prompt_template", "template.name", ""),
    ("axolotl", "conversation", "template.name", ""),
    ("axolotl and Transformers", "chat_template template_name", "template.name", ""),
    ("axolotl and TRL", "chat_template_jinja chat_template_path", "template.file", ""),
    ("XTuner", "SYSTEM_TEMPLATE SYSTEM default_system", "template.system", ""),
    ("Unsloth", "system_prompt system_message", "template.system", ""),
    ("axolotl", "roles_to_train train_on_inputs", "template.loss.roles", ""),
    ("LLaMA-Factory", "train_on_prompt", "template.loss.roles", ""),
    ("TRL", "assistant_only_loss completion_only_loss train_on_completions_only", "template.loss.roles", ""),
    ("LLaMA-Factory", "mask_history", "template.loss.turns", ""),
    ("axolotl", "train_on_eos train_on_eot", "template.loss.end_of_turn", ""),
    ("XTuner", "template_map_fn", "", "prep renders the template once; set template.name"),
    ("Transformers", "padding_side pad_token pad_token_id", "", "packs have no padding; remove it"),
    # The data.
    ("XTuner", "train_dataset dataset_folder data_files", "prep.source", "one [[prep.source]] table each"),
    ("axolotl", "datasets pretraining_dataset", "prep.source", "one [[prep.source]] table each"),
    ("LLaMA-Factory and TRL", "dataset dataset_name", "prep.source", "one [[prep.source]] table each"),
    ("XTuner", "data_path", "prep.source.path", ""),
    ("LLaMA-Factory", "dataset_dir", "prep.source.path", ""),
    ("InternEvo", "train_folder", "prep.source.path", ""),
    ("XTuner", "file_type", "prep.source.files", "a pattern such as **/*.bin"),
    ("axolotl", "ds_type", "prep.source.format", ""),
    ("XTuner", "dataset_map_fn map_fn", "prep.source.map", ""),
    ("axolotl", "datasets.type field_messages message_property_mappings", "prep.source.map", ""),
    ("LLaMA-Factory", "formatting", "prep.source.map", ""),
    ("XTuner", "rename_maps", "prep.source.columns", ""),
    ("TRL", "dataset_text_field", "prep.source.columns", ""),
    ("XTuner", "dataset_weights", "prep.source.weight", ""),
    ("LLaMA-Factory", "interleave_probs", "prep.source.weight", ""),
    ("LLaMA-Factory", "mix_strategy", "prep.order.interleave", ""),
    ("XTuner", "max_dataset_length", "prep.max_samples", ""),
    ("XTuner", "data_order_path", "prep.order.file", ""),
    ("XTuner", "shuffle_before_pack", "prep.order.shuffle", ""),
    ("axolotl", "shuffle_merged_datasets", "prep.order.shuffle", ""),
    ("TRL", "shuffle_dataset", "prep.order.shuffle", ""),
    ("XTuner", "map_num_proc", "prep.workers", ""),
    ("TRL", "dataset_num_proc", "prep.workers", ""),
    ("axolotl", "dataset_processes", "prep.workers", ""),
    ("LLaMA-Factory", "preprocessing_num_workers", "prep.workers", ""),
    ("axolotl", "min_sample_len", "prep.min_length", ""),
    ("axolotl", "excess_length_strategy", "prep.overlength", ""),
    ("TRL", "truncation_mode truncation", "prep.overlength", ""),
    ("axolotl", "val_set_size", "prep.eval.fraction", ""),
    ("LLaMA-Factory", "val_size", "prep.eval.fraction", ""),
    ("axolotl and LLaMA-Factory", "test_datasets eval_dataset", "prep.eval.source", ""),
    ("InternEvo", "valid_folder", "prep.eval.source", ""),
    ("axolotl and LLaMA-Factory", "dataset_prepared_path tokenized_path", "", "prep keeps its shards in run.work_dir"),
    ("LLaMA-Factory", "streaming buffer_size preprocessing_batch_size overwrite_cache", "", _AUTO),
    ("XTuner", "remove_unused_columns collate_fn train_dataloader", "", "prep writes what training reads; remove it"),
    ("XTuner", "sampler batch_sampler", "", "prep.order and train.shuffle fix the order; remove it"),
    ("axolotl and Transformers", "group_by_length length_column_name", "", "packing makes lengths equal; remove it"),
    # Packing.
    ("XTuner", "packed_length pack_max_length", "prep.pack.capacity", ""),
    (
        "InternEvo",
        "seq_len micro_bsz",
        "prep.pack.capacity",
        "its packs have micro_bsz times seq_len tokens; with micro_bsz above 1 set prep.pack.attention_window to "
        "seq_len",
    ),
    ("axolotl", "sequence_len max_packed_sequence_len sample_packing_group_size", "prep.pack.capacity", ""),
    ("LLaMA-Factory", "cutoff_len", "prep.pack.capacity", "prep.max_length limits a single sample"),
    ("TRL and Unsloth", "max_seq_length max_seq_len", "prep.pack.capacity", "prep.max_length limits a sample"),
    ("torchtune and Megatron", "seq_length sequence_length block_size context_length", "prep.pack.capacity", ""),
    ("Transformers", "model_max_length", "prep.pack.capacity", ""),
    ("XTuner", "pack_to_max_length", "prep.pack.strategy", '"concat_split" is how XTuner packs'),
    ("TRL", "packing_strategy", "prep.pack.strategy", ""),
    ("axolotl", "sample_packing multipack", "prep.pack.strategy", "samples are packed unless it is none"),
    ("LLaMA-Factory and TRL", "packing neat_packing", "prep.pack.strategy", "samples are packed unless it is none"),
    ("InternEvo", "pack_sample_into_one", "prep.pack.cross_sample_attention", ""),
    ("InternEvo", "use_packed_dataset", "", "samples are always packed; remove it"),
    ("axolotl and TRL", "padding_free pad_to_sequence_len pad_to_max_length", "", "packs have no padding; remove it"),
    ("axolotl and TRL", "eval_packing eval_sample_packing sample_packing_eff_est sample_packing_bin_size", "", _AUTO),
    # Batches and steps.
    ("Transformers and LLaMA-Factory", "per_device_train_batch_size", "train.global_batch_size", _BATCH),
    ("axolotl", "micro_batch_size batch_size_per_device", "train.global_batch_size", _BATCH),
    ("XTuner", "batch_size accumulative_counts", "train.global_batch_size", _BATCH),
    ("InternEvo", "micro_num gradient_accumulation", "train.global_batch_size", _BATCH),
    ("Transformers", "gradient_accumulation_steps train_batch_size", "train.global_batch_size", _BATCH),
    ("DeepSpeed", "train_micro_batch_size_per_gpu", "train.global_batch_size", _BATCH),
    ("Transformers", "num_train_epochs", "train.max_epochs", ""),
    ("axolotl", "num_epochs epochs", "train.max_epochs", ""),
    ("XTuner", "train_cfg train_cfg.max_epochs", "train.max_epochs", ""),
    ("InternEvo", "total_steps", "train.max_steps", ""),
    ("XTuner", "max_iters train_cfg.max_iters", "train.max_steps", ""),
    ("InternEvo", "rampup_batch_size skip_batches valid_micro_num", "", "the global batch is the same at every step"),
    # The optimizer and its schedule.
    ("Transformers and axolotl", "learning_rate", "train.optimizer.lr", ""),
    ("XTuner", "optim_type", "train.optimizer.type", ""),
    ("Transformers", "optim", "train.optimizer.type", ""),
    ("XTuner", "optim_wrapper", "train.optimizer", ""),
    ("InternEvo", "adam hybrid_zero_optimizer", "train.optimizer", ""),
    ("Transformers, axolotl and InternEvo", "adam_beta1 adam_beta2", "train.optimizer.betas", ""),
    ("Transformers", "adam_epsilon", "train.optimizer.eps", ""),
    ("InternEvo", "adam_eps", "train.optimizer.eps", ""),
    ("XTuner", "max_norm clip_grad clip_grad.max_norm", "train.max_grad_norm", ""),
    ("InternEvo", "clip_grad_norm", "train.max_grad_norm", ""),
    ("DeepSpeed", "gradient_clipping", "train.max_grad_norm", ""),
    ("Transformers and axolotl", "lr_scheduler_type", "train.scheduler.type", ""),
    ("axolotl and InternEvo", "lr_scheduler", "train.scheduler", ""),
    ("XTuner", "param_scheduler", "train.scheduler", ""),
    ("XTuner", "warm_up_ratio", "train.scheduler.warmup_ratio", ""),
    ("InternEvo", "init_steps", "train.scheduler.warmup_steps", ""),
    ("XTuner", "start_factor", "train.scheduler.warmup_start_factor", ""),
    ("XTuner and InternEvo", "eta_min", "train.scheduler.min_lr", ""),
    ("Transformers", "min_lr_ratio min_lr_rate lr_scheduler_kwargs lr_scheduler_args", "train.scheduler.min_lr", ""),
    ("axolotl", "cosine_min_lr_ratio", "train.scheduler.min_lr", ""),
    ("XTuner", "convert_to_iter_based param_scheduler.by_epoch", "train.scheduler.interval", ""),
    ("Transformers", "label_smoothing_factor neftune_noise_alpha", "", "the loss is plain cross entropy; remove it"),
    ("InternEvo", "label_smoothing", "", "the loss is plain cross entropy; remove it"),
    # Precision, memory and speed.
    ("Transformers and axolotl", "bf16 fp16 tf32 bfloat16 float16 bf16_full_eval pure_bf16", "train.precision", ""),
    ("XTuner", "optim_wrapper.dtype", "train.precision", ""),
    ("torchtune and Unsloth", "dtype", "train.precision", ""),
    ("Transformers", "mixed_precision", "train.precision", ""),
    ("XTuner", "optim_wrapper.loss_scale", "train.loss_scale", ""),
    ("InternEvo", "grad_scaler", "train.loss_scale", ""),
    ("Transformers", "gradient_checkpointing use_gradient_checkpointing", "train.activation_checkpointing", ""),
    ("LLaMA-Factory", "disable_gradient_checkpointing", "train.activation_checkpointing", ""),
    ("InternEvo", "model.checkpoint", "train.activation_checkpointing", ""),
    ("Transformers and axolotl", "torch_compile", "train.compile", ""),
    ("Transformers", "use_liger_kernel", "train.fused_loss", ""),
    ("LLaMA-Factory", "enable_liger_kernel", "train.fused_loss", ""),
    ("axolotl", "cut_cross_entropy liger_fused_linear_cross_entropy chunked_cross_entropy", "train.fused_loss", ""),
    ("Transformers and TRL", "loss_type", "train.fused_loss", ""),
    # Ranks.
    ("Transformers and axolotl", "deepspeed", "train.deepspeed", "a table, not the name of a JSON file"),
    ("DeepSpeed", "zero_optimization zero_optimization.stage stage", "train.deepspeed.zero_stage", ""),
    ("XTuner", "sp_size", "train.parallel.sequence_parallel_size", ""),
    ("axolotl", "sequence_parallel_degree context_parallel_size", "train.parallel.sequence_parallel_size", ""),
    ("XTuner and torchrun", "NPROC_PER_NODE num_gpus n_gpus gpus num_processes", "train.nproc_per_node", ""),
    ("XTuner and torchrun", "NNODES num_nodes node_rank master_addr master_port", "", _LAUNCH),
    ("InternEvo", "parallel zero1 tensor_parallel_size pipeline_parallel_size", "", _RANKS),
    ("axolotl and Transformers", "fsdp fsdp_config fsdp_version", "", "set train.deepspeed.zero_stage = 3 instead"),
    ("Transformers", "ddp_find_unused_parameters ddp_timeout ddp_bucket_cap_mb ddp_backend local_rank", "", _RANKS),
    ("XTuner", "dist_cfg env_cfg dist_cfg.backend", "train.runtime.backend", ""),
    ("XTuner", "randomness.deterministic", "train.runtime.deterministic", ""),
    ("Transformers", "full_determinism", "train.runtime.deterministic", ""),
    ("InternEvo", "cudnn_deterministic", "train.runtime.deterministic", ""),
    # Saving, evaluating and logging.
    ("Transformers and axolotl", "output_dir", "run.work_dir", ""),
    ("InternEvo", "save_ckpt_folder", "run.work_dir", ""),
    ("Transformers", "run_name", "run.name", ""),
    ("InternEvo", "JOB_NAME", "run.name", ""),
    ("other trainers", "experiment_name exp_name", "run.name", ""),
    ("XTuner", "randomness randomness.seed", "run.seed", ""),
    ("Transformers", "data_seed random_seed", "run.seed", ""),
    ("Transformers", "save_strategy", "train.checkpoint.save_steps", ""),
    ("axolotl", "saves_per_epoch", "train.checkpoint.save_epochs", "it counts epochs between checkpoints"),
    ("XTuner", "CheckpointHook.by_epoch", "train.checkpoint.save_epochs", "it counts epochs between checkpoints"),
    ("InternEvo", "checkpoint_every", "train.checkpoint.save_steps", ""),
    ("XTuner", "default_hooks CheckpointHook", "train.checkpoint", ""),
    ("InternEvo", "ckpt", "train.checkpoint", ""),
    ("XTuner", "max_keep_ckpts", "train.checkpoint.save_total_limit", ""),
    ("Transformers", "save_only_model", "train.checkpoint.save_optimizer", ""),
    ("Transformers", "resume_from_checkpoint", "train.resume", ""),
    ("axolotl", "auto_resume_from_checkpoints", "train.resume", ""),
    ("InternEvo", "auto_resume", "train.resume", ""),
    ("InternEvo", "load_ckpt_folder", "train.load_from", ""),
    ("Transformers", "eval_steps eval_strategy evaluation_strategy", "train.eval.steps", ""),
    ("axolotl", "evals_per_epoch", "train.eval.steps", ""),
    ("XTuner", "evaluation_freq every_n_iters", "train.eval.steps", ""),
    ("InternEvo", "valid_every", "train.eval.steps", ""),
    ("XTuner", "evaluation_inputs", "train.eval.prompts", ""),
    ("XTuner", "DatasetInfoHook", "train.log.show_samples", ""),
    ("Transformers", "logging_steps logging_strategy", "train.log.steps", ""),
    ("XTuner and Transformers", "log_level", "", "`packtrain --verbose` shows more; remove it"),
    ("Transformers", "report_to", "train.log.trackers", ""),
    ("XTuner", "visualizer vis_backends", "train.log.trackers", ""),
    ("axolotl", "wandb_project wandb_entity use_wandb use_tensorboard mlflow_tracking_uri", "train.log.trackers", ""),
    ("LLaMA-Factory", "use_swanlab", "train.log.trackers", ""),
    ("Transformers and XTuner", "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor", "", _AUTO),
    ("XTuner", "custom_hooks log_processor opencv_num_threads", "", "what hooks do has keys of its own; remove it"),
    ("Transformers", "do_train do_eval do_predict", "", "each stage is a command of its own; remove it"),
    ("LLaMA-Factory", "plot_loss include_num_input_tokens_seen", "", "metrics.jsonl has every step; remove it"),
    ("LLaMA-Factory and TRL", "rl trainer_type reward_model ref_model", "", "only supervised training is offered here"),
    ("LLaMA-Factory", "overwrite_output_dir", "", "a run continues by itself; set train.resume or another run.name"),
    ("Transformers and axolotl", "push_to_hub hub_model_id hub_strategy hub_token", "", "upload the export yourself"),
    # The export.
    ("LLaMA-Factory", "export_dir", "run.work_dir", "exports are in export/ below it"),
    ("LLaMA-Factory", "export_size", "export.hf.max_shard_size", "in bytes"),
    ("Transformers", "save_dtype output_dtype", "export.hf.dtype", ""),
    ("axolotl", "save_safetensors", "", "safetensors files are all that is written; remove it"),
)
"""Who uses the names, the names, our key or nothing, a note or nothing."""
