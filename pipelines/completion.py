"""What the shell offers behind `packtrain`: names of recipes, keys of a pipeline and GPUs, beside files and options."""

from collections.abc import Iterable

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

VARIABLE = "_PACKTRAIN_COMPLETE"
SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


def script(command: click.Command, shell: str) -> str:
    """What a shell runs to complete `packtrain`: click's own script, which asks the command itself."""
    return SHELLS[shell](command, {}, "packtrain", VARIABLE).source()


def recipe(_ctx: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of ready pipelines, each with what it does."""
    from pipelines.recipes import recipes

    return [CompletionItem(name, help=what) for name, what in recipes().items() if name.startswith(typed)]


def word_of_recipes(_ctx: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """The words that names of ready pipelines are made of."""
    from pipelines.recipes import recipes

    return _beginning(typed, sorted({word for name in recipes() for word in name.split("-")}))


def override(_ctx: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Keys of a pipeline with their =, and behind it what a key can be where that is a choice."""
    from pipelines.keys import schema_keys
    from pipelines.toml_text import spell_value

    key, equals, _ = typed.partition("=")
    keys = {one.name: one for one in schema_keys().values() if one.table is None}
    if not equals:
        arrays = tuple(f"{one.name}." for one in schema_keys().values() if one.table and one.is_array)
        return _beginning(typed, (f"{name}=" for name in keys if not name.startswith(arrays)))
    values = keys[key].values if key in keys else ()
    return _beginning(typed, (f"{key}={spell_value(value)}" for value in values))


def gpu(_ctx: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of the GPUs whose peak is known."""
    from pipelines.gpus import PEAK_FLOPS

    return [CompletionItem(name) for name in PEAK_FLOPS if name.lower().startswith(typed.lower())]


def _beginning(typed: str, offered: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(one) for one in offered if one.startswith(typed)]
