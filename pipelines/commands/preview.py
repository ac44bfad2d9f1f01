"""`packtrain preview`: packs and samples for a person to read."""

import sys
from pathlib import Path
from typing import Literal

import click

from pipelines.commands.options import json_output, pipeline_file, read, show


def as_token(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """PACK:POSITION as numbers."""
    if text is None:
        return None
    pack, colon, position = text.partition(":")
    if not (colon and pack.isdecimal() and position.isdecimal()):
        raise click.BadParameter(f"expected PACK:POSITION, both from 0, such as 3:17; found {text!r}")
    return int(pack), int(position)


@click.command(short_help="Show packs or samples, with what is trained marked; trace a token.")
@pipeline_file
@click.option("packs", "--pack", multiple=True, type=click.IntRange(min=0), help="This pack, from 0; repeatable.")
@click.option("--shard", type=click.IntRange(min=0), help="--pack counts within this shard, from 0.")
@click.option("held_out", "--eval", is_flag=True, help="The packs that are held out.")
@click.option("from_sources", "--samples", is_flag=True, help="Samples of the sources, also where there are shards.")
@click.option(
    "records", "--sample", multiple=True, metavar="SOURCE:RECORD", help="This record, from 1; or SOURCE/PATH:RECORD."
)
@click.option("token", "--token", metavar="PACK:POSITION", callback=as_token, help="Trace this token to its record.")
@click.option("--count", default=3, show_default=True, type=click.IntRange(min=1), help="Packs, or samples a source.")
@click.option("lines", "--lines", default=40, show_default=True, type=click.IntRange(min=8), help="Of a pack, at most.")
@click.option("page", "--html", type=click.Path(path_type=Path), help="Write a page of whole packs here.")
@json_output
def preview(
    file: Path,
    overrides: tuple[str, ...],
    packs: tuple[int, ...],
    shard: int | None,
    held_out: bool,
    from_sources: bool,
    records: tuple[str, ...],
    token: tuple[int, int] | None,
    count: int,
    lines: int,
    page: Path | None,
    as_json: bool,
) -> None:
    """Show what the pipeline FILE trains on: packs of its shards, or samples of its sources where there are none yet.

    What is trained is green, or between marks. --token says where one token came from, down to the bytes of its file;
    exit 4 where its record does not give it again. Packs and tokens count from 0, records from 1.
    """
    import shutil

    from pipelines.artifacts import Manifest
    from pipelines.preview import COLUMNS
    from pipelines.terminal import wants_colour
    from prep.preview import Wanted, show_packs, show_samples, show_token

    if (packs or shard is not None or held_out) and (records or from_sources):
        raise click.UsageError("--pack, --shard and --eval are about shards, --sample and --samples about sources")
    if token is not None and (packs or shard is not None or records or from_sources):
        raise click.UsageError("--token names its pack itself")
    pipeline = read(file, overrides)
    part: Literal["train", "eval"] = "eval" if held_out else "train"
    width = shutil.get_terminal_size((COLUMNS, 0)).columns if sys.stdout.isatty() else COLUMNS
    wanted = Wanted(count=count, lines=lines, width=width, colour=wants_colour(sys.stdout), page=page)
    by_shards = packs or shard is not None or held_out or Manifest.read(pipeline.home / "prep") is not None
    if token is not None:
        found = show_token(pipeline, *token, part, wanted)
    elif records or from_sources or not by_shards:
        found = show_samples(pipeline, records, wanted)
    else:
        found = show_packs(pipeline, packs, shard, part, wanted)
    show(found.facts, found.text, as_json=as_json)
    if found.exit_code:
        click.get_current_context().exit(found.exit_code)
