"""`packtrain plan`: what a training comes to."""

from pathlib import Path

import click

from pipelines import completion as completions
from pipelines.commands.options import json_output, overrides_option, read, show


@click.command(short_help="Steps, memory on each GPU, time and cost of a training.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@overrides_option("Override one key, in TOML syntax.")
@click.option("--ranks", type=click.IntRange(min=1), help="All ranks of the run; by default what train starts here.")
@click.option("--nodes", default=1, type=click.IntRange(min=1), help="Machines like this one.")
@click.option("--packs", type=click.IntRange(min=1), help="Packs of an epoch, before prep has finished.")
@click.option("--capacity", type=click.IntRange(min=1), help="prep.pack.capacity, for this question.")
@click.option(
    "--gpu",
    "name",
    metavar="NAME",
    help="GPU whose peak and memory are meant, such as H100.",
    shell_complete=completions.gpu,
)
@click.option("--gpu-memory-gb", type=click.FloatRange(min=0, min_open=True), help="Memory of a GPU, in 2^30 bytes.")
@click.option("--peak-tflops", type=click.FloatRange(min=0, min_open=True), help="Dense peak of a GPU in bf16.")
@click.option("--mfu", type=click.FloatRange(0, 1, min_open=True), help="Share of the peak that is reached, 0 to 1.")
@click.option("--price", type=click.FloatRange(min=0), help="Of a GPU hour.")
@click.option("--layouts", is_flag=True, help="Which layouts fit the GPU, best first.")
@click.option("--from-internevo", metavar="SETTINGS", help="micro_num=4,tp=2,... or a config file, as keys here.")
@click.option("--from-xtuner", metavar="SETTINGS", help="batch_size=1,sp=4,... or a config file, as keys here.")
@json_output
def plan(
    file: Path | None,
    overrides: tuple[str, ...],
    ranks: int | None,
    nodes: int,
    packs: int | None,
    capacity: int | None,
    name: str | None,
    gpu_memory_gb: float | None,
    peak_tflops: float | None,
    mfu: float | None,
    price: float | None,
    layouts: bool,
    from_internevo: str | None,
    from_xtuner: str | None,
    as_json: bool,
) -> None:
    """Say what training the pipeline FILE comes to, before or after prep. Needs no GPU.

    Steps, batches and events; memory on each GPU by part; with --gpu or --peak-tflops also time, and with --price cost.
    Refuses what train would refuse. --from-internevo and --from-xtuner take no FILE: they say what those batches are.
    """
    from pipelines import batches_elsewhere
    from pipelines.gpus import gpu
    from pipelines.memory import GIB
    from train.forecast import Assumed, forecast
    from train.forecast_text import text

    if from_internevo or from_xtuner:
        asked: list[tuple[batches_elsewhere.Where, str | None]]
        asked = [("internevo", from_internevo), ("xtuner", from_xtuner)]
        batches = {where: batches_elsewhere.batch_of(where, given, gpus=ranks) for where, given in asked if given}
        lines = [batches_elsewhere.text(batch) for batch in batches.values()]
        show({where: vars(batch) for where, batch in batches.items()}, "\n\n".join(lines), as_json=as_json)
        return
    if file is None:
        raise click.UsageError("Missing argument 'FILE'.")
    if ranks is not None and nodes > 1:
        raise click.UsageError("--nodes and --ranks exclude each other: --ranks is all ranks of the run")
    if capacity is not None:
        overrides = (*overrides, f"prep.pack.capacity={capacity}")
    assumed = Assumed(
        ranks=ranks,
        nodes=nodes,
        packs=packs,
        gpu=gpu(name) if name else None,
        gpu_memory=int(gpu_memory_gb * GIB) if gpu_memory_gb else None,
        peak_flops=peak_tflops * 1e12 if peak_tflops else None,
        mfu=mfu,
        price=price,
        other_packs=capacity is not None,
    )
    found = forecast(read(file, overrides), assumed, layouts=layouts)
    show(found, text(found), as_json=as_json)
