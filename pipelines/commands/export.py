"""`packtrain export`: checkpoints for Hugging Face, TurboMind and InternEvo."""

from pathlib import Path
from typing import Literal

import click

from pipelines.commands.group import Unnamed, WithDefault
from pipelines.commands.options import json_output, overrides_option, pipeline_file, read, read_for, show


@click.group(cls=WithDefault, short_help="Write checkpoints for Hugging Face and TurboMind, and check them.")
def export() -> None:
    """Write the newest checkpoint of the pipeline FILE in the forms its users load, and check them."""


@export.command(name="run", cls=Unnamed, hidden=True)
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
