"""What this machine lacks, said in one line."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipelines.errors import ConfigError, MachineError
from pipelines.failing_disk import storing
from pipelines.layouts import sizes_of, what_fits
from pipelines.memory import GIB, layout_of, memory
from pipelines.model_sizes import UnknownModelError
from train.forecast import checkpoint_bytes
from train.launch import gpu_of
from train.launchers import Ranks
from train.plan import Plan
from train.pulse import Pulse

log = logging.getLogger(__name__)

NOT_DETERMINISTIC = "does not have a deterministic implementation"
"""What PyTorch says of an operation."""


@contextmanager
def machine_errors(plan: Plan, ranks: Ranks, pulse: Pulse) -> Iterator[None]:
    """Turn errors of the machine into the user's, with what would help.

    Raises:
        MachineError: if memory, or room or rights for files, are missing.
        ConfigError: if an operation cannot be deterministic, which was asked for.
    """
    try:
        with storing(plan.home, "a checkpoint", lambda: _checkpoint_bytes(plan, ranks)):
            yield
    except torch.OutOfMemoryError as error:
        used, room = _gpu_memory(ranks)
        raise MachineError(
            f"rank {ranks.rank}, {pulse.place}: the GPU is out of memory ({used}; packs of "
            f"{plan.prep.facts['capacity']:,} tokens); {_what_fits(plan, ranks, room)}"
        ) from error
    except MemoryError as error:
        raise MachineError(
            f"rank {ranks.rank}, {pulse.place}: this machine is out of memory; use fewer ranks a machine, a higher "
            "zero_stage on more machines, or no offload"
        ) from error
    except OSError as error:
        if error.errno != errno.EACCES:
            raise
        raise MachineError(
            f"{error.filename or 'run.work_dir'}: {error.strerror}; the same command continues"
        ) from error
    except RuntimeError as error:
        if NOT_DETERMINISTIC not in str(error):
            raise
        name = str(error).partition(NOT_DETERMINISTIC)[0].strip()
        raise ConfigError(
            f"{plan.pipeline.cite('train.runtime.deterministic')}: {name} has no deterministic form in PyTorch "
            f"{torch.__version__} on this device; set it to false"
        ) from error


def warn_of_too_little(plan: Plan, ranks: Ranks) -> None:
    """Say before the model is loaded that it will not fit, by an estimate that is not sure enough to refuse it."""
    if ranks.rank == 0 and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(gpu_of(ranks))
        if text := too_little(plan, ranks, free):
            log.warning("%s", text)


def too_little(plan: Plan, ranks: Ranks, free: int) -> str:
    """What to say of a GPU with so many free bytes; empty where they suffice or nothing is known of the model."""
    try:
        sizes = sizes_of(plan.pipeline, vocabulary=plan.prep.facts["vocab_size"])
    except (UnknownModelError, ConfigError):
        return ""
    if memory(sizes, layout_of(plan.pipeline, ranks.ranks)).total <= free:
        return ""
    return f"{free / GIB:.1f} GB of this GPU are free: {_what_fits(plan, ranks, free)}"


def _what_fits(plan: Plan, ranks: Ranks, total: int) -> str:
    advice = what_fits(plan.pipeline, ranks.ranks, total, vocabulary=plan.prep.facts["vocab_size"])
    return advice or "use a higher zero_stage, activation_checkpointing, a smaller prep.pack.capacity, or more GPUs"


def _checkpoint_bytes(plan: Plan, ranks: Ranks) -> int:
    try:
        sizes = sizes_of(plan.pipeline, vocabulary=plan.prep.facts["vocab_size"])
    except (UnknownModelError, ConfigError):
        return 0
    return checkpoint_bytes(plan, memory(sizes, layout_of(plan.pipeline, ranks.ranks)).trained)


def _gpu_memory(ranks: Ranks) -> tuple[str, int]:
    """What a GPU's memory is used for, and how much of it a run could have, in bytes."""
    device = gpu_of(ranks)
    free, total = torch.cuda.mem_get_info(device)
    ours, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    others = max(0, total - free - reserved)
    text = f"{ours / GIB:.1f} GB of {total / GIB:.1f} GB in use here, {(reserved - ours) / GIB:.1f} GB reserved besides"
    if others >= total // 20:
        text += f", {others / GIB:.1f} GB by CUDA and other processes"
    return text, total - others
