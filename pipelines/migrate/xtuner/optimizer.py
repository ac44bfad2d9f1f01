"""The optimizer, of XTuner's optim_wrapper."""

from collections.abc import Mapping
from typing import Any

from pipelines.migrate.draft import Draft, Rule, asks, only, same, to


def map_optimizer(draft: Draft) -> None:
    """[train.optimizer], with what theirs comes to where it is not given."""
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
