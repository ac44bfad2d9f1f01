"""Names of libraries in XTuner's configs; in the copy that it leaves in its work_dir they are text."""

import re
from typing import Any

from pipelines.migrate.config_tree import Node, Symbol


def name_symbols(config: Node) -> None:
    """Turn text that stands for a name of a library into the name, as the config itself has it."""
    for leaf in config.leaves():
        if leaf.path and leaf.path[-1] in _NAMED and isinstance(leaf.value, str) and _NAME.fullmatch(leaf.value):
            leaf.value = Symbol(leaf.value)


def last_name(value: Any) -> str:
    """The last part of a name, given as a symbol or as text."""
    name = str(value.name if isinstance(value, Symbol) else value or "")
    return re.sub(r"\.(from_pretrained|load)$", "", name).rpartition(".")[2] or name


_NAME = re.compile(r"(torch|transformers|mmengine|xtuner|peft|bitsandbytes|deepspeed|datasets|modelscope)(\.\w+)+")
_NAMED = frozenset(
    {"type", "template", "prompt_template", "dataset_map_fn", "template_map_fn", "system"}
    | {"torch_dtype", "bnb_4bit_compute_dtype", "SYSTEM"}
)
"""Keys whose values are names of a library."""
