"""What commands share: FILE and --set as a pipeline, and --json as what they print."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines import completion as completions

if TYPE_CHECKING:
    from pipelines.schema import Pipeline  # with pydantic, which --help need not wait for


def pipeline_file(command: Callable[..., None]) -> Callable[..., None]:
    """FILE and --set: the command receives the pipeline's path and the overrides."""
    command = click.argument("file", type=click.Path(path_type=Path))(command)
    return overrides_option("Override one key, in TOML syntax; repeatable.")(command)


def overrides_option(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """--set, with keys of the schema as completions."""
    return click.option(
        "overrides", "--set", multiple=True, metavar="KEY=VALUE", help=text, shell_complete=completions.override
    )


json_output = click.option("as_json", "--json", is_flag=True, help="Print the result as JSON on standard output.")


def show(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print what a command found, for a person or for a program."""
    from pipelines.artifacts import canonical_json

    click.echo(canonical_json(result).decode().rstrip() if as_json else text)


def read(file: Path, overrides: tuple[str, ...]) -> "Pipeline":
    from pipelines.config import load

    return load(file, overrides)


def read_for(file: Path, overrides: tuple[str, ...], stage: str) -> "Pipeline":
    """The same for a stage that nobody else may be running, learnt before libraries take their time to load."""
    from pipelines.artifacts import refuse_busy

    pipeline = read(file, overrides)
    refuse_busy(pipeline.home / stage)
    return pipeline
