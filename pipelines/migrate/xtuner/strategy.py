"""[train.deepspeed], of the strategy that --deepspeed wrote into the copy of a config."""

from collections.abc import Mapping

from pipelines.migrate.draft import Draft, Rule, asks, drops, only, same, to


def map_strategy(draft: Draft) -> None:
    """[train.deepspeed], precision and clipping, of what --deepspeed wrote into the copy."""
    strategy = draft.config.at("strategy")
    if strategy is None:
        return
    half, other = strategy.at("config.bf16.enabled"), strategy.at("config.fp16.enabled")
    for node, name in ((half, "bf16"), (other, "fp16")):
        if node is not None and node.get("") is True:
            draft.map(node, "train.precision", name)
    for node in (half, other):
        only((False, None), "the other, or neither", "see train.precision")(draft, node) if node else None
    if strategy.get("config.zero_optimization.stage") == 0:
        draft.drop(strategy.at("config.zero_optimization"), "stage 0 shares nothing")
    draft.rules(strategy, STRATEGY)


def _device(key: str) -> Rule:
    return to(key, {"cpu": "cpu", "none": "none"})


STRATEGY: Mapping[str, Rule] = {
    "type": same("[train.deepspeed]"),
    "gradient_accumulation_steps": same("train.global_batch_size"),
    "train_micro_batch_size_per_gpu": same("train.global_batch_size"),
    "sequence_parallel_size": same("train.parallel.sequence_parallel_size"),
    "gradient_clipping": to("train.max_grad_norm", keep=True),
    "exclude_frozen_parameters": drops("checkpoints hold what is trained"),
    "config.gradient_accumulation_steps": same("train.global_batch_size"),
    "config.train_micro_batch_size_per_gpu": same("train.global_batch_size"),
    "config.train_batch_size": same("train.global_batch_size"),
    "config.gradient_clipping": same("train.max_grad_norm"),
    "config.zero_allow_untested_optimizer": same("any optimizer is taken"),
    "config.zero_force_ds_cpu_optimizer": same("the optimizer is train.optimizer.type"),
    "config.fp16.initial_scale_power": lambda draft, node: (
        draft.decide(node, "see train.loss_scale")
        if draft.config.get("strategy.config.fp16.enabled") is True
        else draft.drop(node, "without fp16 it has no effect")
    ),
    "config.fp16": drops("without fp16 it has no effect"),
    "config.zero_optimization.stage": to("train.deepspeed.zero_stage", keep=True),
    "config.zero_optimization.offload_optimizer.device": _device("train.deepspeed.offload_optimizer"),
    "config.zero_optimization.offload_param.device": _device("train.deepspeed.offload_param"),
    "config.zero_optimization.offload_optimizer.pin_memory": drops("pinned where there is a GPU"),
    "config.zero_optimization.offload_param.pin_memory": drops("pinned where there is a GPU"),
    "config.zero_optimization.overlap_comm": to("train.deepspeed.overlap_comm"),
    "config.zero_optimization.contiguous_gradients": to("train.deepspeed.contiguous_gradients"),
    "config.zero_optimization.stage3_gather_16bit_weights_on_model_save": drops("`packtrain export` gathers them"),
    "config.steps_per_print": drops("train.log.steps"),
    "config.wall_clock_breakdown": drops("step_time_s is always reported"),
    "config": asks("see train.deepspeed.extra"),
}
