"""The train stage: packed shards into checkpoints."""

import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from pipelines.artifacts import exclusive, make_directory
from pipelines.schema import Pipeline
from train.launch import (
    Ranks,
    prepare_environment,
    process_group,
    rank_errors,
    ranks_to_start,
    start_ranks,
    started_here,
)
from train.plan import Plan

log = logging.getLogger(__name__)


def run(pipeline: Pipeline, *, resume: bool | None = None, command: Sequence[str] | None = None) -> None:
    """Train the pipeline's model on its packs, from its newest checkpoint on; does nothing when all steps are done.

    Args:
        resume: continue from a checkpoint, instead of train.resume.
        command: arguments of `packtrain` that repeat this call, for the ranks to be started; by default this process's.
    Raises:
        PacktrainError: for anything a user can cause; checkpoints saved before stay usable.
    """
    ranks = Ranks.from_launcher()
    with rank_errors(ranks):
        plan = Plan.of(pipeline)
        resume = plan.train.resume == "auto" if resume is None else resume
        if resume and plan.is_finished():
            log.info("train: nothing to do, %s has all %d steps", plan.checkpoints, plan.total_steps)
            return
        if ranks is None or ranks.rank == 0:
            make_directory(plan.home)
        # Digests once a run: here, or by the process that started this rank.
        plan.prep.verify(plan.shards, hashes=ranks is None or (ranks.rank == 0 and not started_here()))
        if ranks is None:
            count = ranks_to_start(plan.train)
            plan.check_ranks(count)
            if count > 1:
                start_ranks(count, sys.argv[1:] if command is None else command)
                return
            ranks = Ranks.alone()
        prepare_environment(ranks)
        from train.loop import machine_errors, train

        with exclusive(plan.home) if ranks.rank == 0 else nullcontext(), machine_errors(), process_group(ranks):
            train(plan, ranks, resume=resume)
