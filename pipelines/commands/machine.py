"""`packtrain env`, `fetch` and `completion`: what a machine lacks, and what it is given."""

from pathlib import Path

import click

from pipelines import completion as completions
from pipelines.commands.options import json_output, overrides_option, pipeline_file, read, show
from pipelines.errors import MachineError


@click.command(short_help="Versions, devices, and what is missing.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@overrides_option("Override one key of FILE, in TOML syntax.")
@json_output
def env(file: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Versions and devices, what is missing, and the command that adds it.

    With FILE: what this machine lacks for the stages of that pipeline; exit 5 where it lacks something that they need.
    """
    from pipelines.environment import describe, lacking, lines, needs

    found = describe()
    if file is not None:
        found["needs"] = needs(read(file, overrides), found)
    show(found, "\n".join(lines(found)), as_json=as_json)
    if lacking(found):
        click.get_current_context().exit(MachineError.exit_code)


@click.command(short_help="Download the model and the tokenizer of a pipeline.")
@pipeline_file
@json_output
def fetch(file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Download what the pipeline FILE names on a hub, for machines without a network, whatever run.offline says."""
    from pipelines.model_source import fetch as download

    found = download(read(file, overrides))
    lines = [
        f"{one['table']}: {one['repository']} of {one['source']}, revision {one['revision']}: {one['folder']}"
        for one in found
    ]
    show({"fetched": found}, "\n".join(lines or ["nothing to fetch: model and tokenizer are local"]), as_json=as_json)


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice([*completions.SHELLS]))
@json_output
def completion(shell: str, as_json: bool) -> None:
    """Print what makes SHELL complete commands, options, files, recipes, keys and GPUs.

    \b
    bash  eval "$(packtrain completion bash)"    in ~/.bashrc
    zsh   eval "$(packtrain completion zsh)"     in ~/.zshrc, after compinit
    fish  packtrain completion fish | source     in ~/.config/fish/config.fish
    """
    text = completions.script(click.get_current_context().find_root().command, shell)
    show({"shell": shell, "script": text}, text.rstrip(), as_json=as_json)
