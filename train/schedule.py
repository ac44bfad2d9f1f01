"""The learning rate of every step: a pure function, so that resuming needs no state."""

import math

from pipelines.schema import Train


def learning_rate(train: Train, step: int, total_steps: int, packs: int) -> float:
    """Linear warm-up, then a cosine, a line, a constant, or a constant with a line at its end (wsd).

    By step, the rate is the peak right after the warm-up and `min_lr` at the last step. By epoch, a step has the rate
    that its epoch's first step after the warm-up has by step; the warm-up goes by step all the same.

    Args:
        step: optimizer steps done before this one, in 0..total_steps - 1.
        packs: of one epoch.
    Returns:
        `warmup_start_factor` times the peak at step 0 of a warm-up.
    """
    schedule, peak = train.scheduler, train.optimizer.lr
    warmup = warmup_steps(train, total_steps)
    if step < warmup:
        start = schedule.warmup_start_factor
        return peak * (start + (1 - start) * step / warmup)
    if schedule.interval == "epoch":
        step = max(warmup, epoch_start(step, train.global_batch_size, packs))
    done = (step - warmup) / max(1, total_steps - 1 - warmup)  # 0 at the peak, 1 at the last step
    return schedule.min_lr + (peak - schedule.min_lr) * _share(train, done)


def warmup_steps(train: Train, total_steps: int) -> int:
    """Steps of the linear warm-up."""
    schedule = train.scheduler
    if schedule.warmup_steps is not None:
        return min(schedule.warmup_steps, total_steps)
    return math.ceil(schedule.warmup_ratio * total_steps)


def epoch_start(step: int, global_batch_size: int, packs: int) -> int:
    """The first step whose first pack is of the epoch that this step's first pack is of."""
    epoch = step * global_batch_size // packs
    return -(-epoch * packs // global_batch_size)


def _share(train: Train, done: float) -> float:
    """What is left of the way from min_lr to the peak, when `done` of the steps after the warm-up are done."""
    match train.scheduler.type:
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        case "linear":
            return 1 - done
        case "wsd":
            return min(1.0, (1 - done) / train.scheduler.decay_ratio)
        case "constant":
            return 1.0
