"""`packtrain order`: the lock file of the data."""

from pathlib import Path
from typing import Any

import click

from pipelines.commands.group import Commands
from pipelines.commands.options import json_output, pipeline_file, read, show
from pipelines.terminal import plural


@click.group(cls=Commands)
def order() -> None:
    """The lock file of the data: which files, in which order."""


@order.command(name="write", short_help="Write data_order.txt.")
@pipeline_file
@click.option("--golden", type=click.Path(path_type=Path), help="Also write the digests of the prep output here.")
@json_output
def order_write(file: Path, overrides: tuple[str, ...], golden: Path | None, as_json: bool) -> None:
    """Write data_order.txt from the files that are there, sorted by code point."""
    from pipelines import golden as goldens
    from prep.order import write_order

    pipeline = read(file, overrides)
    files = write_order(pipeline)
    if golden:
        goldens.write(pipeline, golden)
    where = pipeline.prep.order.file
    written = f"{where}: {plural(files, 'file')}" + (
        f"\n{golden}: digests of {pipeline.home / 'prep'}" if golden else ""
    )
    show({"file": str(where), "files": files}, written, as_json=as_json)


@order.command(name="check", short_help="Compare data_order.txt with the files that are there.")
@pipeline_file
@click.option("--quick", is_flag=True, help="Compare names and sizes, without reading the files.")
@click.option("--golden", type=click.Path(path_type=Path), help="Also compare the prep output with these digests.")
@json_output
def order_check(file: Path, overrides: tuple[str, ...], quick: bool, golden: Path | None, as_json: bool) -> None:
    """Compare data_order.txt with the files that are there; exit 4 with a diff where they differ."""
    from pipelines import golden as goldens
    from prep.order_check import check_order

    pipeline = read(file, overrides)
    files = check_order(pipeline, quick=quick)
    text = f"{pipeline.prep.order.file}: {plural(files, 'file')} as listed"
    result: dict[str, Any] = {"file": str(pipeline.prep.order.file), "files": files}
    if golden:
        result["golden"] = goldens.check(pipeline, golden)
        text += f"\n{golden}: {result['golden']} shards as expected"
    show(result, text, as_json=as_json)
