"""`packtrain report`: read a run, write its page."""

from pathlib import Path

from pipelines.artifacts import Json
from pipelines.named_file import write_named_file
from pipelines.report.page import page
from pipelines.report.run import Run
from pipelines.report.verdict import facts
from pipelines.schema import Pipeline
from pipelines.terminal import printable

PAGE = "report.html"


def write(source: Pipeline | Path, out: Path | None = None) -> dict[str, Json]:
    """Write the page of a run, named by its pipeline or its directory; returns its head in numbers.

    Args:
        out: the file; by default report.html in the run's directory.
    Raises:
        DataError: if no stage has written there.
        CheckError: if a manifest was damaged.
        MachineError: if the page cannot be written.
    """
    if isinstance(source, Pipeline):
        run = Run.open(source.home, model=source.model.name_or_path.name if source.model.name_or_path else "")
    else:
        run = Run.open(source)
    file = run.folder / PAGE if out is None else out
    content = page(run)
    write_named_file(file, content)
    return {"file": str(file), "bytes": len(content), **facts(run)}


def summary(found: Json) -> str:
    """What was written and what it begins with, in a few lines."""
    lines = [f"{found['file']}: {found['bytes']:,} bytes"]
    lines += [f"  {name:7} {stage['state']}" for name, stage in found["stages"].items()]
    return "\n".join([*lines, *(f"  warning: {printable(warning)}" for warning in found["warnings"])])
