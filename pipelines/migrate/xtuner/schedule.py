"""The learning rate, of XTuner's param_scheduler."""

from collections.abc import Mapping
from typing import Any

from pipelines.migrate.config_tree import Node, listed
from pipelines.migrate.draft import Draft, Rule, asks, drops, only, same
from pipelines.migrate.trainer_arguments import short
from pipelines.migrate.xtuner.iterations import steps
from pipelines.migrate.xtuner.names import last_name


def map_schedule(draft: Draft) -> None:
    """A linear warm-up and what follows it."""
    node = draft.config.at("param_scheduler")
    stages = listed(node) if node is not None and node.resolved().is_list else [node] if node else []
    epochs = draft.config.get("train_cfg.max_epochs")
    warmed = False
    for stage in stages:
        kind = last_name(stage.get("type"))
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
        steps("train.scheduler.warmup_steps")(draft, end) if end else None
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


SHAPES = {
    "CosineAnnealingLR": "cosine",
    "ConstantLR": "constant",
    "LinearLR": "linear",
    "LinearParamScheduler": "linear",
    "CosineAnnealingParamScheduler": "cosine",
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
