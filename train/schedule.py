"""The learning rate of every step: a pure function, so that resuming needs no state."""

import math

from pipelines.schema import Train


def learning_rate(train: Train, step: int, total_steps: int) -> float:
    """Linear warm-up, then a cosine, a line or a constant.

    Args:
        step: optimizer steps done before this one, in 0..total_steps - 1.
    Returns:
        `warmup_start_factor` times the peak at step 0 of a warm-up, the peak right after it, `min_lr` at the last step.
    """
    schedule, peak = train.scheduler, train.optimizer.lr
    warmup = warmup_steps(train, total_steps)
    if step < warmup:
        start = schedule.warmup_start_factor
        return peak * (start + (1 - start) * step / warmup)
    if schedule.type == "constant":
        return peak
    done = (step - warmup) / max(1, total_steps - 1 - warmup)  # 0 at the peak, 1 at the last step
    share = (1 + math.cos(math.pi * done)) / 2 if schedule.type == "cosine" else 1 - done
    return schedule.min_lr + (peak - schedule.min_lr) * share


def warmup_steps(train: Train, total_steps: int) -> int:
    """Steps of the linear warm-up."""
    schedule = train.scheduler
    if schedule.warmup_steps is not None:
        return min(schedule.warmup_steps, total_steps)
    return math.ceil(schedule.warmup_ratio * total_steps)
