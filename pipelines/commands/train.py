"""`packtrain train`: packs into checkpoints."""

from pathlib import Path

import click

from pipelines.commands.options import json_output, pipeline_file, read, show


@click.command(short_help="Train on the packs.")
@pipeline_file
@click.option("--resume/--no-resume", default=None, help="Continue from the newest checkpoint, or start over.")
@json_output
def train(file: Path, overrides: tuple[str, ...], resume: bool | None, as_json: bool) -> None:
    """Train the model of the pipeline FILE on its packs."""
    from train.run import result, run

    pipeline = read(file, overrides)
    run(pipeline, resume=resume)
    if as_json and (found := result(pipeline)) is not None:
        show(found, "", as_json=True)
