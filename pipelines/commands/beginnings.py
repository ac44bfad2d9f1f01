"""`packtrain recipes`, `init` and `migrate`: what a pipeline begins as."""

from pathlib import Path
from typing import Literal

import click

from pipelines import completion as completions
from pipelines.commands.options import json_output, show
from pipelines.terminal import plural


@click.command()
@click.argument("words", nargs=-1, shell_complete=completions.word_of_recipes)
@json_output
def recipes(words: tuple[str, ...], as_json: bool) -> None:
    """List the ready pipelines, or those with all WORDS in their name or text, such as `qwen3 lora`."""
    from pipelines.recipes import recipes as ready

    found = ready(words)
    width = max(map(len, found), default=0)
    lines = [f"{name:{width}}  {what}" for name, what in found.items()]
    show({"recipes": found}, "\n".join(lines or ["no recipe has all these words"]), as_json=as_json)


@click.command(short_help="Copy a ready pipeline.")
@click.argument("name", shell_complete=completions.recipe)
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@json_output
def init(name: str, folder: Path, as_json: bool) -> None:
    """Copy the ready pipeline NAME into DIR as one file, the quickstart with its data.

    What is already right stays untouched. The others name a model of a hub, and the place of data that is yours.
    """
    from pipelines.recipes import copy, generate

    written = copy(name, folder)
    if name == "quickstart":
        from prep.quickstart import write_quickstart

        written += generate(
            folder / "quickstart" / "data",
            lambda place: write_quickstart(place, tokenizer=folder / "quickstart" / "tokenizer"),
        )
    what = f"{len(written)} files written" if written else "nothing to do"
    show({"written": [str(path) for path in written]}, f"{folder / name}.toml: {what}", as_json=as_json)


@click.command(short_help="A config of another trainer as a pipeline, with an account of every key.")
@click.argument("trainer", type=click.Choice(["xtuner", "internevo", "axolotl", "llamafactory"]))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("out", "-o", "--out", metavar="OUT", type=click.Path(path_type=Path), help="Where to write the TOML.")
@click.option("--gpus", type=click.IntRange(min=1), help="Of the whole run, which the config does not say.")
@json_output
def migrate(
    trainer: Literal["xtuner", "internevo", "axolotl", "llamafactory"],
    file: Path,
    out: Path | None,
    gpus: int | None,
    as_json: bool,
) -> None:
    """Write the config FILE of TRAINER as a pipeline TOML.

    Python configs are read as syntax and never run. Standard error has what became of every key: mapped, so here
    without a key, dropped for a reason, or for you to decide. Without -o the TOML goes to standard output.
    """
    from pipelines.migrate import migration

    found = migration.migrate(trainer, file, gpus=gpus)
    if out is not None:
        migration.write(found, out)
    if as_json:
        show({**found.facts(), "toml": found.toml, "out": None if out is None else str(out)}, "", as_json=True)
        return
    click.echo(found.report(), err=True)
    click.echo(
        f"{out}: {plural(sum(line.verdict == 'decide' for line in found.lines), 'key')} to decide"
        if out
        else found.toml.rstrip()
    )
