"""Iterations of XTuner, which are micro-batches, as the optimizer steps that are counted here."""

from typing import Any

from pipelines.migrate.config_tree import Node
from pipelines.migrate.draft import Draft, Rule


def steps(key: str) -> Rule:
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


def accumulated(config: Node) -> Any:
    """Micro-batches of an optimizer step, as far as the config says it."""
    return next((config.get(path) for path in ACCUMULATED if config.at(path)), None)


ACCUMULATED = ("optim_wrapper.accumulative_counts", "strategy.gradient_accumulation_steps", "accumulative_counts")
"""Where micro-batches per step stand, the first that is there."""
