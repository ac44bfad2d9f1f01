"""`packtrain prep`: data into shards, for other trainers too, and derived again."""

import os
from pathlib import Path
from typing import Literal

import click

from pipelines.commands.group import Unnamed, WithDefault
from pipelines.commands.options import json_output, pipeline_file, read, read_for, show


def as_part(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """I/N, counted from 0, as numbers."""
    if text is None:
        return None
    part, slash, of = text.partition("/")
    if not (slash and part.isdecimal() and of.isdecimal() and int(part) < int(of)):
        raise click.BadParameter(f"expected I/N such as 0/16, the first of sixteen, up to 15/16; found {text!r}")
    return int(part), int(of)


@click.group(cls=WithDefault, short_help="Tokenize, order, mix and pack the data.")
def prep() -> None:
    """Tokenize, order, mix and pack the data of the pipeline FILE into shards."""


@prep.command(name="run", cls=Unnamed, hidden=True)
@pipeline_file
@click.option("--workers", type=click.IntRange(min=0), help="Processes now, instead of prep.workers; same bytes.")
@click.option("--plan", "plan_only", is_flag=True, help="Print the plan of the packs and write no shards.")
@click.option("--part", metavar="I/N", callback=as_part, help="Tokenize part I of N of the plan that slurm froze.")
@json_output
def prep_run(
    file: Path,
    overrides: tuple[str, ...],
    workers: int | None,
    plan_only: bool,
    part: tuple[int, int] | None,
    as_json: bool,
) -> None:
    """Tokenize, order, mix and pack the data of the pipeline FILE into shards."""
    if plan_only and part is not None:
        raise click.UsageError("--plan and --part exclude each other: a part plans no packs")
    pipeline = read(file, overrides) if part else read_for(file, overrides, "prep")
    from prep import part as parts
    from prep import plan
    from prep.executors import slurm
    from prep.run import dry_run, processes, run, summary

    if part is None and pipeline.prep.executor == "slurm":
        part = slurm.part_of(os.environ)
    try:
        if plan_only:
            found = dry_run(pipeline, workers=workers)
            show(found, plan.summary(found), as_json=as_json)
        elif part is not None:
            found = parts.run_part(pipeline, *part, workers=workers or processes(pipeline))
            show(found, parts.summary(found), as_json=as_json)
        else:
            facts = run(pipeline, workers=workers)
            show(facts, summary(facts), as_json=as_json)
    except slurm.NotTokenized as waiting:
        lines = slurm.submission(file, overrides, waiting.left)
        found = {"chunks": waiting.chunks, "left": waiting.left, "submit": lines}
        show(found, "\n".join(lines), as_json=as_json)
        raise


@prep.command(name="convert")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("form", "--to", required=True, type=click.Choice(["hf", "ftdp", "xtuner"]), help="What is to read it.")
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Where to write it.")
@json_output
def prep_convert(folder: Path, form: Literal["hf", "ftdp", "xtuner"], out: Path, as_json: bool) -> None:
    """Write the packs in DIR for other trainers.

    DIR is a finished prep output; what is written holds the same packs, or with ftdp the same segments.

    \b
    hf      a dataset for datasets.load_from_disk, with labels, position_ids and seq_lengths
    ftdp    .bin and .bin.meta, a line a segment, for XTuner 0.1 and InternEvo
    xtuner  preset packs, for XTuner 1
    """
    from prep.convert import convert, summary

    facts = convert(folder, out, form=form)
    show(facts, summary(facts), as_json=as_json)


@prep.command(name="verify")
@pipeline_file
@click.option("--resample", "count", required=True, type=click.IntRange(min=1), help="Samples to derive again.")
@json_output
def prep_verify(file: Path, overrides: tuple[str, ...], count: int, as_json: bool) -> None:
    """Derive samples of FILE again from raw data.

    Exit 4 where its shards hold another token or target, or were made with other settings, tokenizer or inputs.
    """
    from prep.resample import resample, summary

    result = resample(read(file, overrides), count)
    show(result, summary(result), as_json=as_json)
