"""One part of tokenizing, for the tasks of a Slurm array or of any other scheduler."""

from pipelines.artifacts import Json, shared
from pipelines.schema import Pipeline
from prep.executors import executor
from prep.frozen import frozen
from prep.tokenize import missing, tokenize_chunks


def run_part(pipeline: Pipeline, part: int, of: int, *, workers: int) -> Json:
    """Tokenize what belongs to part `part` of `of`, counted from 0, of the frozen plan and is not there yet.

    Parts may run at once, on any machine that has the inputs and run.work_dir at the same path, and twice; every chunk
    appears whole or not at all, so a part that was killed is run again and does the rest.

    Returns:
        How many chunks it tokenized, and how many of its own were there.
    Raises:
        ConfigError: if no plan is frozen, or one with other settings.
        DataError: for a faulty record, or an input that changed since the plan was frozen.
        BusyError: while the plan is being frozen, or the packs written.
    """
    with shared(pipeline.home / "prep"):
        job, chunks, left = frozen(pipeline)
        own = left[part::of]
        to_do = sorted(set(own) & set(missing(job.chunks, len(chunks))))
        tokenize_chunks(chunks, to_do, job.rules, job.chunks, execute=executor("local", workers=workers))
        return {"part": part, "of": of, "tokenized": len(to_do), "there": len(own) - len(to_do)}


def summary(found: Json) -> str:
    """What a part did, in a line."""
    return (
        f"part {found['part']} of {found['of']}: {found['tokenized']:,} chunks tokenized, {found['there']:,} were there"
    )
