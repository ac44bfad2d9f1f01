"""The `packtrain` command: thin wrappers that parse, import a stage and call it."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pipelines import completion as completions
from pipelines.errors import CheckError, MachineError, PacktrainError

if TYPE_CHECKING:
    from pipelines.schema import Pipeline  # with pydantic, which --help need not wait for

INTERRUPTED = 75


class Commands(click.Group):
    """A group whose commands end a user's error with its lines and its exit code, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PacktrainError as error:
            self._end(ctx, error)
        except OSError as error:
            from pipelines.failing_disk import storage_error

            found = storage_error(error)
            if found is None:
                raise
            self._end(ctx, found)
        except KeyboardInterrupt:
            click.secho("interrupted; the same command continues", fg="red", err=True)
            ctx.exit(INTERRUPTED)

    @staticmethod
    def _end(ctx: click.Context, error: PacktrainError) -> None:
        for line in str(error).splitlines():
            click.secho(line, fg="red", err=True)
        ctx.exit(error.exit_code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="packtrain")
@click.option("--verbose", is_flag=True, help="Log what libraries say as well.")
@click.option("--local_rank", type=int, hidden=True, expose_value=False)  # DeepSpeed adds it; LOCAL_RANK says the same
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


class WithDefault(Commands):
    """A group that takes a FILE where no command of its own is named: `prep FILE` is `prep run FILE`."""

    default = "run"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first not in self.commands and first not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] FILE  |  COMMAND ...")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.commands[self.default].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


def as_part(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """I/N, counted from 0, as numbers."""
    if text is None:
        return None
    part, slash, of = text.partition("/")
    if not (slash and part.isdecimal() and of.isdecimal() and int(part) < int(of)):
        raise click.BadParameter(f"expected I/N such as 0/16, the first of sixteen, up to 15/16; found {text!r}")
    return int(part), int(of)


@main.group(cls=WithDefault, short_help="Tokenize, order, mix and pack the data.")
def prep() -> None:
    """Tokenize, order, mix and pack the data of the pipeline FILE into shards."""


@prep.command(name="run", hidden=True)
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


@main.command(short_help="Train on the packs.")
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


@main.group(cls=WithDefault, short_help="Write checkpoints for Hugging Face and TurboMind, and check them.")
def export() -> None:
    """Write the newest checkpoint of the pipeline FILE in the forms its users load, and check them."""


@export.command(name="run", hidden=True)
@pipeline_file
@json_output
def export_run(file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Write the newest checkpoint of the pipeline FILE in the forms its users load, and check them."""
    pipeline = read_for(file, overrides, "export")
    from export.checks import record
    from export.run import facts, run, summary

    run(pipeline)
    record(pipeline.home / "export", file, overrides)
    show(facts(pipeline), summary(pipeline), as_json=as_json)


@export.command(name="verify", short_help="Check an export again that is there.")
@click.argument("place", metavar="FILE|DIR", type=click.Path(path_type=Path))
@overrides_option("Override one key, in TOML syntax.")
@json_output
def export_verify(place: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check the export of the pipeline FILE again, or that in DIR: digests, every number, logits and prompts.

    It is compared with the checkpoint it was made from, which has to be there, and no file changes. Exit 4 at the
    first difference. With export.verify.greedy_tokens = 0 no model is loaded.
    """
    from export.checks import check_again, recorded, summary

    file, given = recorded(place) if place.is_dir() else (place, ())
    found = check_again(read(file, (*given, *overrides)))
    show({"verified": found}, summary(found), as_json=as_json)


@export.command(name="import-internevo", short_help="An InternEvo checkpoint as a Hugging Face directory.")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("out", metavar="DST", type=click.Path(path_type=Path))
@click.option("--layout", type=click.Choice(["internlm2", "llama"]), help="Names of the tensors; by default its own.")
@click.option("--adapt-hf/--no-adapt-hf", default=None, help="model.adapt_hf, where the checkpoint does not say.")
@json_output
def export_import_internevo(
    source: Path, out: Path, layout: Literal["internlm2", "llama"] | None, adapt_hf: bool | None, as_json: bool
) -> None:
    """Write the InternEvo checkpoint SRC as the Hugging Face directory DST.

    SRC is a step's folder: model_config.pt and model_tp*_pp*.pt of an InternLM2 or Llama type. No code in it is run.
    DST holds the same numbers; the tokenizer is not among them.
    """
    from export.internevo.importer import import_internevo, summary

    facts = import_internevo(source, out, layout=layout, adapt_hf=adapt_hf)
    show(facts, summary(facts), as_json=as_json)


@export.command(name="to-internevo", short_help="A Hugging Face directory as an InternEvo checkpoint.")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("out", metavar="DST", type=click.Path(path_type=Path))
@click.option("--tp", type=click.IntRange(min=1), help="Tensor ranks; by default as it was imported, or 1.")
@click.option("--pp", type=click.IntRange(min=1), help="Pipeline stages; by default as it was imported, or 1.")
@click.option("--adapt-hf/--no-adapt-hf", default=None, help="model.adapt_hf; by default as it was imported, or true.")
@click.option("--type", "kind", type=click.Choice(["internlm2", "llama"]), help="InternEvo's type; by default SRC's.")
@json_output
def export_to_internevo(
    source: Path,
    out: Path,
    tp: int | None,
    pp: int | None,
    adapt_hf: bool | None,
    kind: Literal["internlm2", "llama"] | None,
    as_json: bool,
) -> None:
    """Write the Hugging Face directory SRC, of a Llama or an InternLM2, as the InternEvo checkpoint DST."""
    from export.internevo.exporter import summary, to_internevo

    facts = to_internevo(source, out, tp=tp, pp=pp, adapt_hf=adapt_hf, kind=kind)
    show(facts, summary(facts), as_json=as_json)


@main.group(cls=Commands)
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
    show({"file": str(where), "files": files}, f"{where}: {files:,} files", as_json=as_json)


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
    text = f"{pipeline.prep.order.file}: {files:,} files as listed"
    result: dict[str, Any] = {"file": str(pipeline.prep.order.file), "files": files}
    if golden:
        result["golden"] = goldens.check(pipeline, golden)
        text += f"\n{golden}: {result['golden']} shards as expected"
    show(result, text, as_json=as_json)


@main.command(short_help="Find what is wrong with a pipeline before any work.")
@pipeline_file
@click.option("--ranks", type=click.IntRange(min=1), help="All ranks of the run; by default what train starts here.")
@click.option(
    "--gpu", "name", metavar="NAME", help="GPU whose memory is meant, such as H100.", shell_complete=completions.gpu
)
@click.option("--gpu-memory-gb", type=click.FloatRange(min=0, min_open=True), help="Memory of a GPU, in 2^30 bytes.")
@click.option("--strict", is_flag=True, help="Warnings fail the check as well.")
@json_output
def check(
    file: Path,
    overrides: tuple[str, ...],
    ranks: int | None,
    name: str | None,
    gpu_memory_gb: float | None,
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
        report = lint(pipeline)
        report.add(fit(pipeline, assumed, input_bytes=report.input_bytes))
    except PacktrainError as error:
        report = Report(findings=of_error(error))
    for found in report.findings:
        click.secho(str(found), fg="red" if found.is_error else "yellow", err=True)
    lines = [f"{key}: {value}" for key, value in report.facts.items()]
    show(report.as_json(strict=strict), "\n".join([*lines, report.summary()]), as_json=as_json)
    if code := exit_code(report.findings, strict=strict):
        click.get_current_context().exit(code)


def as_token(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """PACK:POSITION as numbers."""
    if text is None:
        return None
    pack, colon, position = text.partition(":")
    if not (colon and pack.isdecimal() and position.isdecimal()):
        raise click.BadParameter(f"expected PACK:POSITION, both from 0, such as 3:17; found {text!r}")
    return int(pack), int(position)


@main.command(short_help="Show packs or samples, with what is trained marked; trace a token.")
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


@main.command(short_help="Download the model and the tokenizer of a pipeline.")
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


@main.command(short_help="Steps, memory on each GPU, time and cost of a training.")
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


@main.command(short_help="Check artefacts by digest, or say where two first differ.")
@click.argument("path", metavar="A", type=click.Path(path_type=Path))
@click.argument("other", metavar="[B]", required=False, type=click.Path(path_type=Path))
@json_output
def verify(path: Path, other: Path | None, as_json: bool) -> None:
    """Check the artefacts at or below A by digest, and what they were made from: export, checkpoint, shards, inputs.

    With B: where two runs, or two artefacts of one kind, first differ, in the order of the work: a setting, an input
    file and its record, a pack and its token, a step, a tensor. Exit 4 where they do.
    """
    from pipelines.divergence import compare
    from pipelines.provenance import verify as walk

    if other is not None:
        comparison = compare(path, other)
        show(comparison.as_json(), comparison.text(), as_json=as_json)
        if comparison.divergences:
            click.get_current_context().exit(CheckError.exit_code)
        return
    found = walk(path)
    lines = [
        f"{one.path}: {one.kind} {one.identity[:12]}, {one.files} files as written"
        + "".join(f"; {kind}: {where}" for kind, where in one.parents.items())
        for one in found
    ]
    result = [{**vars(one), "path": str(one.path)} for one in found]
    show({"verified": result}, "\n".join(lines), as_json=as_json)


@main.command(short_help="One HTML page about a run.")
@click.argument("path", metavar="FILE|RUN", type=click.Path(path_type=Path))
@overrides_option("Override one key of FILE, in TOML syntax.")
@click.option("-o", "--out", metavar="HTML", type=click.Path(path_type=Path), help="By default RUN/report.html.")
@json_output
def report(path: Path, overrides: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Write one HTML page about a run: data, mix, packing, curves, throughput, answers, export, provenance.

    Named by the pipeline FILE or by its directory, work/NAME. The page holds all it shows and loads nothing. The run
    may be unfinished, or going on.
    """
    from pipelines.report.write import summary, write

    if path.is_dir() and overrides:
        raise click.UsageError("--set changes a pipeline file, and this is a run's directory")
    found = write(path, out) if path.is_dir() else write(read(path, overrides), out)
    show(found, summary(found), as_json=as_json)


@main.command(short_help="Talk to an export or a checkpoint.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--prompt", help="Answer this one prompt and end.")
@click.option("--system", default="", help="System text of the conversation.")
@click.option("--max-new-tokens", default=256, show_default=True, type=click.IntRange(min=1))
@json_output
def chat(folder: Path, prompt: str | None, system: str, max_new_tokens: int, as_json: bool) -> None:
    """Talk to the export or checkpoint in DIR, with the template it was trained with."""
    from export.chat import answer_once
    from export.chat import chat as talk

    if as_json:
        if prompt is None:
            raise click.UsageError("--json is the answer to one --prompt")
        answer = answer_once(folder, prompt, system=system, max_new_tokens=max_new_tokens)
        show({"prompt": prompt, "system": system, "answer": answer}, "", as_json=True)
        return
    talk(folder, prompt=prompt, system=system, max_new_tokens=max_new_tokens)


@main.command()
@click.argument("words", nargs=-1, shell_complete=completions.word_of_recipes)
@json_output
def recipes(words: tuple[str, ...], as_json: bool) -> None:
    """List the ready pipelines, or those with all WORDS in their name or text, such as `qwen3 lora`."""
    from pipelines.recipes import recipes as ready

    found = ready(words)
    width = max(map(len, found), default=0)
    lines = [f"{name:{width}}  {what}" for name, what in found.items()]
    show({"recipes": found}, "\n".join(lines or ["no recipe has all these words"]), as_json=as_json)


@main.command(short_help="Copy a ready pipeline.")
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


@main.command(short_help="A config of another trainer as a pipeline, with an account of every key.")
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
        f"{out}: {sum(line.verdict == 'decide' for line in found.lines)} keys to decide" if out else found.toml.rstrip()
    )


@main.command(short_help="Versions, devices, and what is missing.")
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


@main.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice([*completions.SHELLS]))
@json_output
def completion(shell: str, as_json: bool) -> None:
    """Print what makes SHELL complete commands, options, files, recipes, keys and GPUs.

    \b
    bash  eval "$(packtrain completion bash)"    in ~/.bashrc
    zsh   eval "$(packtrain completion zsh)"     in ~/.zshrc, after compinit
    fish  packtrain completion fish | source     in ~/.config/fish/config.fish
    """
    text = completions.script(main, shell)
    show({"shell": shell, "script": text}, text.rstrip(), as_json=as_json)
