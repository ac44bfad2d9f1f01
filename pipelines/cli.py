"""The `packtrain` command: thin wrappers that parse, import a stage and call it."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipelines.errors import PacktrainError
from pipelines.schema import Pipeline

INTERRUPTED = 75


class Commands(click.Group):
    """A group whose commands end a user's error with its lines and its exit code, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PacktrainError as error:
            for line in str(error).splitlines():
                click.secho(line, fg="red", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.secho("interrupted; the same command continues", fg="red", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="packtrain")
@click.option("--verbose", is_flag=True, help="Log what libraries say as well.")
def main(verbose: bool) -> None:
    """Fine-tune large language models in three stages: prep, train, export.

    Everything about a run stands in one TOML file; flags only say how to run it now.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("pipelines", "prep", "train", "export"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)


def pipeline_file(command: Callable[..., None]) -> Callable[..., None]:
    """FILE and --set: the command receives the pipeline's path and the overrides."""
    command = click.argument("file", type=click.Path(path_type=Path))(command)
    return click.option(
        "overrides", "--set", multiple=True, metavar="KEY=VALUE", help="Override one key, in TOML syntax; repeatable."
    )(command)


json_output = click.option("as_json", "--json", is_flag=True, help="Print the result as JSON on standard output.")


def show(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print what a command found, for a person or for a program."""
    click.echo(json.dumps(result, indent=2, ensure_ascii=False, sort_keys=True) if as_json else text)


def read(file: Path, overrides: tuple[str, ...]) -> Pipeline:
    from pipelines.config import load

    return load(file, overrides)


@main.command()
@pipeline_file
@click.option("--workers", type=click.IntRange(min=0), help="Processes now, instead of prep.workers; same bytes.")
@json_output
def prep(file: Path, overrides: tuple[str, ...], workers: int | None, as_json: bool) -> None:
    """Tokenize, order, mix and pack the data of the pipeline FILE into shards."""
    from prep.run import run, summary

    facts = run(read(file, overrides), workers=workers)
    show(facts, summary(facts), as_json=as_json)
