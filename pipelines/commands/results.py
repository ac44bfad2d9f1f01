"""`packtrain verify`, `report` and `chat`: what runs have left, checked, shown and talked to."""

from pathlib import Path

import click

from pipelines.commands.options import json_output, overrides_option, read, show
from pipelines.errors import CheckError


@click.command(short_help="Check artefacts by digest, or say where two first differ.")
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


@click.command(short_help="One HTML page about a run.")
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


@click.command(short_help="Talk to an export or a checkpoint.")
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
