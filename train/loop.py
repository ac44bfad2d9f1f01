"""The training loop, as one rank runs it."""

import logging
import math
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipelines.checkpoints import Checkpoint, finished
from pipelines.errors import InterruptedRun, PacktrainError
from pipelines.progress import progress_bar
from pipelines.schema.train import EXPORTED
from pipelines.secret_text import without_secrets
from pipelines.shards import ShardReader
from train.adapters import is_adapted
from train.agreement import on_rank_0
from train.attention import choose_backend
from train.audit import audit
from train.batches import Batches, StepBatch
from train.checkpoint import resume_from, resume_newest, save, start_from, start_over
from train.engine import Engine, StepStats, choose_precision
from train.evaluation import HeldOut
from train.flops import peak_flops
from train.fragments import lay_out_matrices, set_masters, shapes
from train.interview import Interview
from train.launch import gpu_of, hosts, limit_exchanges
from train.launchers import Ranks
from train.metrics import Metrics, Row, duration, memory_gb, write_run_json
from train.model import hollow_model
from train.plan import Plan, packs_left
from train.profiler import Profiler
from train.pulse import Pulse
from train.questions import Questions
from train.samples import show_samples
from train.schedule import learning_rate
from train.sequence_parallel import SequenceParallelAttention, init_sequence_parallel
from train.sources import Sources
from train.stop import StopRequest

log = logging.getLogger(__name__)

MOST_NONFINITE_IN_A_ROW = 5
"""A batch, or a fault of the machine, spoils a step or two. More in a row are of weights that are no numbers."""


def train(plan: Plan, ranks: Ranks, pulse: Pulse, *, resume: bool | Path) -> None:
    """Take the steps of the plan that are not done yet, saving on the way.

    Args:
        resume: from the newest checkpoint of this run if there is one, from this one, or not.
    """
    began = time.monotonic()
    plan.check_ranks(ranks.ranks)
    if resume is True and on_rank_0(plan.is_finished):
        plan.say_finished()
        return
    packs = ShardReader(plan.shards, seen=plan.seen)
    parallel = init_sequence_parallel(plan.train.parallel.sequence_parallel_size, timeout=plan.train.runtime.timeout)
    asked, half = plan.pipeline.model.attn_implementation, choose_precision(plan.train.precision) != "fp32"
    backend = choose_backend(asked, device_of(ranks), half=half)
    attention = SequenceParallelAttention(parallel, backend, strict=asked != "auto")
    attention.register()
    model, initial = hollow_model(plan.pipeline, packs.manifest.facts)
    questions = Questions(plan, model.config) if plan.train.eval and plan.train.eval.prompts else None
    engine = Engine(model, plan.train, plan.pipeline, attention, initial)
    set_masters(engine, initial)
    del model, initial
    limit_exchanges(plan.train.runtime.timeout)
    audit(engine, packs[0])
    lay_out_matrices(engine)
    checkpoint = load_state(engine, plan, resume)
    first = checkpoint.step if checkpoint else 0
    if first >= plan.total_steps:
        plan.say_finished()
        return
    loss = dict(checkpoint.manifest.facts["loss"]) if checkpoint else {}
    sources = Sources.of(packs.manifest.facts) if plan.train.log.per_source_loss else None
    batches = Batches(
        packs,
        global_batch_size=plan.train.global_batch_size,
        shuffle=plan.train.shuffle,
        seed=plan.pipeline.run.seed,
        shuffle_seed=plan.train.shuffle_seed,
        rank=parallel.data.rank,
        ranks=parallel.data.size,
        part=parallel.rank,
        parts=parallel.size,
        device=engine.device,
        sources=sources,
    )
    held_out = HeldOut(ShardReader(plan.shards, "eval", seen=plan.seen), engine, sources) if plan.holds_out else None
    interview = Interview(questions, engine, plan.prep.facts["capacity"]) if questions else None
    announce(plan, ranks, engine, first)
    if ranks.rank == 0:
        show_samples(plan, batches, first)
    in_a_row = 0
    with (
        Metrics(plan, done=first, write=ranks.rank == 0, resume=bool(resume)) as metrics,
        Profiler(plan, done=first, write=ranks.rank == 0) as profiler,
        StopRequest() as stop,
        progress_bar("training", plan.total_steps, "step", done=first) as progress,
    ):
        if interview and first == 0:
            pulse.at(first, "answering prompts")
            metrics.add_answers(interview.rows(first))
        started = time.perf_counter()
        for step, batch in batches.from_step(first, plan.total_steps):
            pulse.at(step + 1)
            lr = learning_rate(plan.train, step, plan.total_steps, plan.packs)
            with profiler.over(step + 1):
                stats = engine.step(batch, lr)
            in_a_row = 0 if stats.finite else in_a_row + 1
            check_finite(plan, stats, step + 1, in_a_row)
            if math.isfinite(stats.loss):
                loss = {"first": loss.get("first", stats.loss), "last": stats.loss}
            taken = row(plan, engine, step + 1, batch, stats, lr=lr, seconds=time.perf_counter() - started)
            metrics.add(taken)
            progress(1, f"loss {stats.loss:.4f}, {taken.tokens_per_s:,.0f} tokens/s")
            if held_out and plan.evaluates_after(step + 1):
                pulse.at(step + 1, "evaluating")
                metrics.add_evaluation(held_out.row(step + 1))
            if interview and plan.evaluates_after(step + 1):
                pulse.at(step + 1, "answering prompts")
                metrics.add_answers(interview.rows(step + 1))
            stopping = stop.agreed(engine.device) if step + 1 < plan.total_steps else None
            if is_due(plan, step + 1) or stopping:
                pulse.at(step + 1, "saving")
                on_rank_0(packs.refuse_changed)  # before what was read of them is kept
                save(engine, plan, step=step + 1, loss=loss)
            if stopping:
                raise InterruptedRun(f"stopped by {stopping} after step {step + 1}, saved; {how_to_continue(plan)}")
            started = time.perf_counter()  # a step's time has in it what reading its packs takes
    conclude(plan, loss, seconds=time.monotonic() - began)


def device_of(ranks: Ranks) -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", gpu_of(ranks)) if torch.cuda.is_available() else torch.device("cpu")


def load_state(engine: Engine, plan: Plan, resume: bool | Path) -> Checkpoint | None:
    """Continue from a checkpoint, which is returned, or start: from the model's weights, or those of another run."""
    if isinstance(resume, Path):
        return resume_from(engine, plan, resume)
    if not resume:
        start_over(plan)
    checkpoint = resume_newest(engine, plan)
    if checkpoint is None and plan.train.load_from is not None:
        start_from(engine, plan.train.load_from)
    return checkpoint


def how_to_continue(plan: Plan) -> str:
    """What to do after a stop."""
    if not plan.train.checkpoint.save_optimizer:
        return "but without the optimizer (train.checkpoint.save_optimizer = false), so it cannot continue from there"
    return "the same command continues"


def is_due(plan: Plan, step: int) -> bool:
    """Whether a checkpoint follows `step` steps."""
    steps, epochs = plan.train.checkpoint.save_steps, plan.train.checkpoint.save_epochs
    size = plan.train.global_batch_size
    return (
        step == plan.total_steps
        or (steps > 0 and step % steps == 0)
        or (epochs > 0 and step * size // (plan.packs * epochs) > (step - 1) * size // (plan.packs * epochs))
    )


def check_finite(plan: Plan, stats: StepStats, step: int, in_a_row: int) -> None:
    """Stop at a step that is not finite where that was asked for, or when they do not end: the weights are lost then.

    Args:
        in_a_row: such steps without one between them, this one included; 0 if it is finite.
    """
    stops = plan.train.error_if_nonfinite or plan.train.on_nonfinite == "stop"
    if not in_a_row or (not stops and in_a_row < MOST_NONFINITE_IN_A_ROW):
        return
    finding = f"loss is {stats.loss}" if not math.isfinite(stats.loss) else f"gradient's norm is {stats.grad_norm}"
    many = f", and so it was for {in_a_row} steps in a row" if in_a_row > 1 else ""
    lower = "" if plan.train.loss_scale == "dynamic" else "train.loss_scale, "
    raise PacktrainError(
        f"step {step}: the {finding}{many}; lower {lower}train.optimizer.lr or train.max_grad_norm, or use bf16 or "
        "fp32, then train with --no-resume"
    )


def row(plan: Plan, engine: Engine, step: int, batch: StepBatch, stats: StepStats, *, lr: float, seconds: float) -> Row:
    """The metrics of a step."""
    peak = peak_flops(engine.device)
    return Row(
        step=step,
        epoch=step * plan.train.global_batch_size / plan.packs,
        loss=stats.loss if math.isfinite(stats.loss) else None,
        loss_tokens=batch.loss_tokens,
        tokens=batch.tokens,
        grad_norm=stats.grad_norm if math.isfinite(stats.grad_norm) else None,
        lr=lr,
        step_time_s=seconds,
        tokens_per_s=batch.tokens / seconds,
        mfu=engine.work.flops(batch) / seconds / (peak * engine.ranks) if peak and engine.work else None,
        memory_gb=memory_gb(engine.device),
        skipped=stats.skipped,
        skipped_steps=engine.skipped_steps,
        loss_by_source=stats.loss_by_source,
    )


def announce(plan: Plan, ranks: Ranks, engine: Engine, first: int) -> None:
    """Say what is about to happen, and record it in run.json."""
    where = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else "CPU"
    facts: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "hosts": hosts(),
        "command": [without_secrets(word) for word in sys.argv],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": where,
        "ranks": ranks.ranks,
        "sequence_parallel_size": engine.parallel.size,
        "threads": torch.get_num_threads(),
        "zero_stage": engine.zero_stage,
        "precision": engine.precision,
        "attention": engine.attention.backend,
        "first_step": first,
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(EXPORTED)},
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "identity": plan.identity,
        "origins": plan.pipeline.origins,
    }
    trained = sum(math.prod(shape) for shape in shapes(engine.model).values())
    if ranks.rank == 0:
        write_run_json(plan.home / "run.json", facts)
        log.info(
            "training %s%.1fM parameters on %d x %s%s: ZeRO %d, %s, %s attention",
            "an adapter of " if is_adapted(engine.model) else "", trained / 1e6, ranks.ranks, where,
            "" if engine.parallel.size == 1 else f", {engine.parallel.size} to a pack",
            engine.zero_stage, engine.precision, engine.attention.backend,
        )  # fmt: skip
        log.info(
            "%s step %d of %d: %d packs a step of %d, %.2f epochs in all",
            "resuming after" if first else "from", first, plan.total_steps, plan.train.global_batch_size, plan.packs,
            plan.total_steps * plan.train.global_batch_size / plan.packs,
        )  # fmt: skip
        if text := packs_left(plan.pipeline, plan.packs, plan.total_steps):
            log.warning("%s", text)
        if not plan.train.checkpoint.save_optimizer:
            log.warning("train.checkpoint.save_optimizer = false: checkpoints hold weights alone, no run can resume")


def conclude(plan: Plan, loss: dict[str, float], *, seconds: float) -> None:
    """Say what came of it."""
    if dist.get_rank() == 0:
        write_run_json(plan.home / "run.json", {"ended": datetime.now(UTC).isoformat(timespec="seconds")})
        log.info(
            "trained %d steps in %s: loss %.4f -> %.4f; checkpoint %s",
            plan.total_steps, duration(seconds), loss.get("first", math.nan), loss.get("last", math.nan),
            finished(plan.checkpoints)[-1],
        )  # fmt: skip
