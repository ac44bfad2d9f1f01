"""What this machine lacks, said in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipelines.errors import ConfigError, MachineError
from train.launch import gpu_of
from train.launchers import Ranks
from train.plan import Plan
from train.pulse import Pulse

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
        yield
    except torch.OutOfMemoryError as error:
        raise MachineError(
            f"rank {ranks.rank}, {pulse.place}: the GPU is out of memory ({_gpu_memory(ranks)}; packs of "
            f"{plan.prep.facts['capacity']:,} tokens); {what_would_fit(plan, ranks)}"
        ) from error
    except MemoryError as error:
        raise MachineError(
            f"rank {ranks.rank}, {pulse.place}: this machine is out of memory; use fewer ranks a machine, a higher "
            "zero_stage on more machines, or no offload"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
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


def what_would_fit(plan: Plan, ranks: Ranks) -> str:
    """Settings that need less memory on each GPU, those without a cost first."""
    train, remedies = plan.train, []
    if not train.fused_loss:
        remedies.append("train.fused_loss = true")
    if train.deepspeed.zero_stage < 3 and ranks.ranks > 1:
        remedies.append(f"train.deepspeed.zero_stage = {max(2, train.deepspeed.zero_stage + 1)}")
    if train.activation_checkpointing != "full":
        remedies.append('train.activation_checkpointing = "full"')
    if train.deepspeed.zero_stage and train.deepspeed.offload_optimizer == "none":
        remedies.append('train.deepspeed.offload_optimizer = "cpu"')
    if train.parallel.sequence_parallel_size < ranks.ranks:
        remedies.append(f"train.parallel.sequence_parallel_size = {_next_size(plan, ranks)}")
    return f"try {', '.join(remedies)}, more GPUs, or a smaller prep.pack.capacity"


def _next_size(plan: Plan, ranks: Ranks) -> int:
    size = plan.train.parallel.sequence_parallel_size
    return next(number for number in range(size + 1, ranks.ranks + 1) if ranks.ranks % number == 0)


def _gpu_memory(ranks: Ranks) -> str:
    if not torch.cuda.is_available():
        return "none is visible"
    device = gpu_of(ranks)
    free, total = torch.cuda.mem_get_info(device)
    ours, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    others = max(0, total - free - reserved)
    text = f"{_gib(total)} in all, {_gib(ours)} in use here, {_gib(reserved - ours)} reserved besides"
    return text if others < total // 20 else f"{text}, {_gib(others)} by CUDA and other processes"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
