"""Chats, checkpoints and the log, of XTuner's hooks."""

from collections.abc import Mapping

from pipelines.migrate.config_tree import Node, Symbol
from pipelines.migrate.draft import Draft, Rule, asks, drops, only, same, to
from pipelines.migrate.xtuner.iterations import steps
from pipelines.migrate.xtuner.names import last_name
from pipelines.system_texts import SYSTEM_TEXTS


def map_hook(draft: Draft, hook: Node) -> None:
    """One of custom_hooks."""
    kind = last_name(hook.get("type"))
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


def _system(draft: Draft, node: Node) -> None:
    value = node.get("")
    text = SYSTEM_TEXTS.get(value.last) if isinstance(value, Symbol) else value
    draft.map(node, "train.eval.system", value if text is None else text)


def _every(draft: Draft, node: Node) -> None:
    if node.get("") == -1:
        draft.map(node, "train.checkpoint.save_steps", 0, note="only the last")
        return
    if draft.config.get("default_hooks.checkpoint.by_epoch") is False:
        steps("train.checkpoint.save_steps")(draft, node)
        return
    draft.map(node, "train.checkpoint.save_epochs")
    draft.put("train.checkpoint.save_steps", 0, "by_epoch = True there")


CHAT: Mapping[str, Rule] = {
    "type": same("[train.eval]"),
    "tokenizer": same("[tokenizer]"),
    "prompt_template": same("[template]"),
    "every_n_iters": steps("train.eval.steps"),
    "evaluation_inputs": to("train.eval.prompts"),
    "system": _system,
    "max_new_tokens": to("train.eval.max_new_tokens"),
    "evaluation_images": only(None, "not set", "images are not offered"),
    "stop_word": only(None, "not set", "the template's end of turn ends an answer"),
    "stop_words": only(None, "not set", "the template's end of turn ends an answer"),
    "generation_kwargs": asks("the most likely token is taken each time"),
}
DEFAULT_HOOKS: Mapping[str, Rule] = {
    "default_hooks.timer": same("step_time_s is always reported"),
    "default_hooks.logger.type": same("metrics.jsonl is always written"),
    "default_hooks.logger.interval": steps("train.log.steps"),
    "default_hooks.logger.log_metric_by_epoch": drops("metrics.jsonl has every step"),
    "default_hooks.param_scheduler": same("[train.scheduler]"),
    "default_hooks.sampler_seed": same("train.shuffle goes by the epoch"),
    "default_hooks.checkpoint.type": same("[train.checkpoint]"),
    "default_hooks.checkpoint.interval": _every,
    "default_hooks.checkpoint.by_epoch": same("save_epochs counts epochs, save_steps steps"),
    "default_hooks.checkpoint.max_keep_ckpts": to("train.checkpoint.save_total_limit"),
    "default_hooks.checkpoint.save_optimizer": to("train.checkpoint.save_optimizer"),
    "default_hooks.checkpoint.save_last": same("the last step is always saved"),
    "default_hooks.checkpoint.out_dir": drops("checkpoints are in run.work_dir"),
}
