"""`packtrain report`: read a run, write its page."""

from pathlib import Path

from pipelines.artifacts import Json
from pipelines.errors import CheckError
from pipelines.named_file import write_named_file
from pipelines.report.page import page
from pipelines.report.run import Run
from pipelines.report.verdict import facts
from pipelines.schema import Pipeline
from pipelines.terminal import printable

PAGE = "report.html"
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What comes of taking apart values that are of another kind than they have to be."""


def write(source: Pipeline | Path, out: Path | None = None) -> dict[str, Json]:
    """Write the page of a run, named by its pipeline or its directory; returns its head in numbers.

    Args:
        out: the file; by default report.html in the run's directory.
    Raises:
        DataError: if no stage has written there.
        CheckError: if a manifest was damaged, or a file holds something else than the stages write.
        MachineError: if the page cannot be written.
    """
    if isinstance(source, Pipeline):
        run = Run.open(source.home, model=source.model.name_or_path.name if source.model.name_or_path else "")
    else:
        run = Run.open(source)
    file = run.folder / PAGE if out is None else out
    try:
        content, head = page(run), facts(run)
    except _MALFORMED as error:
        raise CheckError(
            f"{run.folder}: its files hold something else than the stages write ({type(error).__name__}: {error}); "
            "remove eval.json or run.json if they were changed, or take the version that wrote them"
        ) from error
    write_named_file(file, content)
    return {"file": str(file), "bytes": len(content), **head}


def summary(found: Json) -> str:
    """What was written and what it begins with, in a few lines."""
    lines = [f"{found['file']}: {found['bytes']:,} bytes"]
    lines += [f"  {name:7} {stage['state']}" for name, stage in found["stages"].items()]
    return "\n".join([*lines, *(f"  warning: {printable(warning)}" for warning in found["warnings"])])
