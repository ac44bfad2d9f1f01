"""`packtrain check`: what is wrong with a pipeline, before any work."""

from pathlib import Path

import click

from pipelines import completion as completions
from pipelines.commands.options import json_output, pipeline_file, read, show
from pipelines.errors import PacktrainError


@click.command(short_help="Find what is wrong with a pipeline before any work.")
@pipeline_file
@click.option("--ranks", type=click.IntRange(min=1), help="All ranks of the run; by default what train starts here.")
@click.option(
    "--gpu", "name", metavar="NAME", help="GPU whose memory is meant, such as H100.", shell_complete=completions.gpu
)
@click.option("--gpu-memory-gb", type=click.FloatRange(min=0, min_open=True), help="Memory of a GPU, in 2^30 bytes.")
@click.option("--all", "all_records", is_flag=True, help="Look at every record, not only the first of some files.")
@click.option("--strict", is_flag=True, help="Warnings fail the check as well.")
@json_output
def check(
    file: Path,
    overrides: tuple[str, ...],
    ranks: int | None,
    name: str | None,
    gpu_memory_gb: float | None,
    all_records: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Find what is wrong with the pipeline FILE before any work, all of it at once.

    Keys, paths, data order, the template on probe conversations, loss masks of the first records, batch and layout
    arithmetic, weights, memory and disk. Writes nothing. docs/check.md lists what it finds.
    """
    from pipelines.findings import Report, exit_code, of_error
    from pipelines.gpus import gpu
    from pipelines.memory import GIB
    from pipelines.model_source import with_small_files
    from prep.lint import lint
    from train.fit import fit
    from train.forecast import Assumed

    memory = int(gpu_memory_gb * GIB) if gpu_memory_gb else None
    assumed = Assumed(ranks=ranks, gpu=gpu(name) if name else None, gpu_memory=memory)
    try:
        pipeline = with_small_files(read(file, overrides))
        report = lint(pipeline, all_records=all_records)
        report.add(fit(pipeline, assumed, input_bytes=report.input_bytes))
    except PacktrainError as error:
        report = Report(findings=of_error(error))
    for found in report.findings:
        click.secho(str(found), fg="red" if found.is_error else "yellow", err=True)
    lines = [f"{key}: {value}" for key, value in report.facts.items()]
    show(report.as_json(strict=strict), "\n".join([*lines, report.summary()]), as_json=as_json)
    if code := exit_code(report.findings, strict=strict):
        click.get_current_context().exit(code)
