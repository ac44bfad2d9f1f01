"""The train stage: packed shards into checkpoints."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from pipelines.artifacts import Json, exclusive, identity, make_directory
from pipelines.checkpoints import Checkpoint, finished
from pipelines.errors import ConfigError
from pipelines.schema import Pipeline
from pipelines.toml_text import spell_value
from train.launch import (
    leave,
    prepare_environment,
    process_group,
    rank_errors,
    ranks_to_start,
    set_environment,
    start_ranks,
    started_here,
)
from train.launchers import Node, Ranks, launch_of
from train.plan import Plan
from train.pulse import watched
from train.stop import stopped_at_once
from train.trackers import check_installed

SEEN = "PACKTRAIN_SHARDS_SEEN"
"""Environment variable that tells ranks which files, by their stamps, had the right digests."""


def run(pipeline: Pipeline, *, resume: bool | None = None, command: Sequence[str] | None = None) -> None:
    """Train the pipeline's model on its packs, from its newest checkpoint on; does nothing when all steps are done.

    As one rank of several, which a launcher started, this ends the process when there is an error.

    Args:
        resume: continue from a checkpoint, instead of train.resume.
        command: arguments of `packtrain` that repeat this call, for the ranks to be started; by default this process's.
    Raises:
        PacktrainError: for anything a user can cause; checkpoints saved before stay usable.
    """
    launch = launch_of(os.environ)
    ranks = launch if isinstance(launch, Ranks) else None
    with rank_errors(ranks), stopped_at_once():
        plan = Plan.of(pipeline)
        asked = plan.train.resume
        start: bool | Path = resume if resume is not None else asked if isinstance(asked, Path) else asked == "auto"
        if isinstance(launch, Node) and start is True and plan.is_finished():  # else the ranks find it out together
            plan.say_finished()
            return
        is_first = launch.rank == 0 if isinstance(launch, Ranks) else launch.node == 0
        if is_first:
            check_installed(plan.train.log.trackers)
            make_directory(plan.home)
        if isinstance(launch, Node) and launch.nodes == 1:  # else ranks of other machines would wait for these
            with exclusive(plan.home):  # who meets another run learns it before digests and ranks take their time
                pass
        # Digests once a run: here, or by the process that started this rank, if files are as that process saw them.
        seen = identity(plan.seen)
        plan.prep.verify(plan.shards, hashes=is_first and os.environ.get(SEEN) != seen)
        if is_first:
            os.environ[SEEN] = seen
        set_environment(plan.train.runtime)
        if isinstance(launch, Node):
            count = local_ranks(plan, launch)
            plan.check_ranks(count * launch.nodes)
            if count * launch.nodes > 1:
                arguments = [*(sys.argv[1:] if command is None else command), *_same_model(plan)]
                start_ranks(launch, count, arguments, home=plan.home)
                return
            ranks = Ranks.alone()
        assert ranks is not None
        prepare_environment(ranks)
        train_as(ranks, plan, resume=start)


def result(pipeline: Pipeline) -> Json | None:
    """What training came to, by its newest checkpoint; None on all ranks but the first, which say nothing."""
    launch = launch_of(os.environ)
    rank = launch.rank if isinstance(launch, Ranks) else launch.node
    if rank or started_here():
        return None
    home = pipeline.home / "train"
    folders = finished(home / "checkpoints")
    facts = Checkpoint(folders[-1]).manifest.facts if folders else {}
    names = ("run", "step", "total_steps", "epoch", "packs_consumed", "skipped_steps", "loss", "layout", "versions")
    return {
        "checkpoint": str(folders[-1]) if folders else None,
        "metrics": str(home / "metrics.jsonl"),
        **{name: facts.get(name) for name in names},
    }


def _check_one_run(plan: Plan) -> None:
    """Refuse ranks that are about to compute different things, such as those of nodes that found different models."""
    import torch.distributed as dist

    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, plan.identity)
    if other := next((rank for rank, one in enumerate(found) if one != found[0]), None):
        raise ConfigError(
            f"rank {other} has another pipeline, data or model than rank 0; give all nodes the same files, and set "
            "model.revision to a commit where the model is of a hub"
        )


def _same_model(plan: Plan) -> list[str]:
    """Arguments that let the ranks take from the cache the very model that this process found, and ask no hub."""
    origin = plan.pipeline.origins.get("model")
    if origin is None:
        return []
    return ["--set", f"model.revision={spell_value(origin['revision'])}", "--set", "run.offline=true"]


def train_as(ranks: Ranks, plan: Plan, *, resume: bool | Path) -> None:
    """Train as one rank, in an environment that is prepared."""
    from train.loop import train
    from train.shortage import machine_errors, warn_of_too_little

    runtime = plan.train.runtime
    with (
        process_group(ranks, runtime),
        sole_run(plan),
        watched(plan.home, ranks, timeout=runtime.timeout, leave=partial(leave, ranks)) as pulse,
        machine_errors(plan, ranks, pulse),
    ):
        _check_one_run(plan)
        warn_of_too_little(plan, ranks)
        train(plan, ranks, pulse, resume=resume)


@contextmanager
def sole_run(plan: Plan) -> Iterator[None]:
    """Keep other runs out of the directory; all ranks say so alike if one is in it.

    Raises:
        BusyError: if another process works there.
    """
    from train.agreement import on_rank_0

    with ExitStack() as held:
        on_rank_0(lambda: held.enter_context(exclusive(plan.home)))
        yield


def local_ranks(plan: Plan, node: Node) -> int:
    """Ranks to start on this machine.

    Raises:
        ConfigError: if the launch and the file say different numbers.
    """
    asked = plan.train.nproc_per_node
    if node.local_ranks is None:
        return ranks_to_start(plan.train)
    if asked not in ("auto", node.local_ranks):
        raise ConfigError(
            f"{plan.pipeline.cite('train.nproc_per_node')}: the environment says {node.local_ranks} (NPROC_PER_NODE "
            "or a scheduler's variable); remove the key"
        )
    return node.local_ranks
