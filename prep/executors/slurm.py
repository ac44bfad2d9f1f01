"""Chunks tokenized by the tasks of a Slurm array, each doing its part of the frozen plan.

Slurm schedules, retries and cancels; here is only how a task learns its part and what to submit.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

from pipelines.errors import ConfigError, InterruptedRun

CHUNKS_PER_TASK = 64
"""Of a few MiB each: minutes of one core."""
MOST_TASKS = 1000
"""A task more than Slurm's default MaxArraySize takes is refused."""


class NotTokenized(InterruptedRun):
    """The plan is frozen and waits for the array.

    Args:
        left: chunks that are not tokenized yet.
        chunks: all of them.
    """

    def __init__(self, left: int, chunks: int) -> None:
        super().__init__(
            f"prep: {left:,} of {chunks:,} chunks are not tokenized yet; submit the lines above, or pipe them to sh, "
            "with options of sbatch as your cluster needs them"
        )
        self.left = left
        self.chunks = chunks


def part_of(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Which part of how many this task of an array does, from Slurm's variables; None outside an array.

    Raises:
        ConfigError: if the array is no unbroken range, or Slurm does not tell what it is.
    """
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    told = {name: environment.get(f"SLURM_ARRAY_TASK_{name}", "") for name in ("ID", "COUNT", "MIN", "STEP")}
    for name, number in told.items():
        if not number.isdecimal():
            raise ConfigError(
                f"SLURM_ARRAY_TASK_{name} is {number!r}, and a task of an array has a number there; unset "
                "SLURM_ARRAY_TASK_ID if this is none, or name the part with --part I/N"
            )
    task, count, first, step = map(int, told.values())
    part, rest = divmod(task - first, step or 1)
    if rest or not 0 <= part < count:
        raise ConfigError(
            f"task {task} of a Slurm array of {count} that begins at {first}: the array has gaps; submit a range, such "
            f"as --array=0-{count - 1}: whichever chunks are missing are shared out among its tasks"
        )
    return part, count


def submission(file: Path, overrides: Sequence[str], left: int) -> list[str]:
    """The lines of a shell that submit an array for so many chunks, and a job that finishes after it."""
    tasks = min(MOST_TASKS, -(-left // CHUNKS_PER_TASK))
    words = ["packtrain", "prep", str(file.absolute()), *(word for one in overrides for word in ("--set", one))]
    command = quote(" ".join(map(quote, words)))
    return [
        f"array=$(sbatch --parsable --array=0-{tasks - 1} --wrap {command})",
        f'sbatch --dependency="afterok:${{array%%;*}}" --kill-on-invalid-dep=yes --wrap {command}',
    ]
