"""What `packtrain plan` says of a training run, without torch: steps, memory on each GPU, time and cost.

The result is one JSON object, the same that --json prints:

    run         name of the run
    ranks       total, from (what the number was taken from), sequence_parallel_size, groups, micro_batches
    batch       packs, tokens (of a step at most)
    data        from (`prep`, `--packs` or null), packs, tokens, loss_tokens, samples: of an epoch, null where unknown
    steps       total, epochs, tokens, loss_tokens: of the whole run, null where unknown
    events      save_steps and saves, eval_steps and evaluations, learning_rate: [{step, lr, what}]
    checkpoint  bytes of one, kept (null: all), disk: bytes of those kept
    model       model_type, parameters, trained, multiplied (of a token), source (`closed form` or `meta device`)
    memory      total, parts: {name: bytes}, peak (when), host, gpu_memory and fits (null where no GPU is named), error
    layout      the keys of the TOML that the memory is of
    time        null where no peak is known: seconds (a step), hours, gpu_hours, tokens_per_gpu_s, cost, peak_flops,
                mfu, mfu_source, attended (what was assumed of document lengths)
    layouts     with --layouts: [{keys, total, host, fits, seconds, tokens_per_gpu_s, frontier}], best first; frontier:
                takes less memory than all before it
    notes       what was assumed, a line each
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.artifacts import Json, Manifest
from pipelines.errors import ConfigError
from pipelines.gpus import Gpu, visible_gpus
from pipelines.layouts import Choice, Rate, Step, choices, config_of, frontier, keys, step_seconds
from pipelines.memory import Layout, Memory, layout_of, memory, state_bytes
from pipelines.model_sizes import ModelSizes, UnknownModelError, model_sizes
from pipelines.model_source import with_small_files
from pipelines.preflight import model_problems
from pipelines.schema import Pipeline, Train
from train.order import epoch_packs
from train.plan import Plan, check_evaluation, total_steps
from train.schedule import learning_rate, warmup_steps

MFU = 0.368
MFU_SOURCE = "torchtitan's published Llama 3.1 8B on H100; not measured with packtrain"
"""Causal MFU, as this project counts operations."""
MEMORY_ERROR = "estimate, measured error on CPU -8 to +31 %; not calibrated on a GPU"
"""Of all cases of bench.estimates; a test holds those in bench/results/plan.json against it."""


@dataclass(frozen=True)
class Assumed:
    """What the command line says about machines, beside the pipeline's file."""

    ranks: int | None = None
    """All ranks of the run."""
    nodes: int = 1
    packs: int | None = None
    """Packs of an epoch, where prep has not finished."""
    gpu: Gpu | None = None
    gpu_memory: int | None = None
    """Bytes of one GPU."""
    peak_flops: float | None = None
    mfu: float | None = None
    price: float | None = None
    """Of a GPU hour."""
    other_packs: bool = False
    """Whether the packs are of another capacity than the file says: what then does not go together is only noted."""


def forecast(pipeline: Pipeline, assumed: Assumed, *, layouts: bool = False) -> dict[str, Json]:
    """The plan of a pipeline's training, in the shape that this file's first lines describe.

    Raises:
        ConfigError: for what training would refuse, in the same words, or a model whose sizes cannot be known.
    """
    train = pipeline.train
    if train is None:
        raise ConfigError("the pipeline has no [train] table; add one with global_batch_size and train.optimizer.lr")
    pipeline = with_small_files(pipeline)
    notes: list[str] = []
    if problems := list(model_problems(pipeline)):
        if not assumed.other_packs:
            raise ConfigError(*problems)
        notes += [f"training refuses this: {problem}" for problem in problems]
    ranks, reason, on_gpu = _ranks(train, assumed)
    prep = Manifest.read(pipeline.home / "prep")
    plan = _plan(pipeline, train, prep, assumed.packs)
    plan.check_ranks(ranks)
    data = _data(plan, prep, assumed.packs)
    layout = layout_of(pipeline, ranks, on_gpu=on_gpu)
    sizes = _sizes(pipeline, prep, notes)
    taken = memory(sizes, layout)
    gpu_memory = assumed.gpu_memory or (assumed.gpu.memory if assumed.gpu else None)
    peak = assumed.peak_flops or (assumed.gpu.peak_flops if assumed.gpu else None)
    rate = Rate(peak, assumed.mfu or MFU) if peak else None
    step, attended = _step(plan, prep)
    groups = ranks // layout.sequence_parallel_size
    if layout.effective_stage != layout.zero_stage:
        notes.append(f"zero_stage = {layout.zero_stage} with {layout.precision} runs as ZeRO 2")
    if train.compile:
        notes.append("train.compile keeps other activations and runs faster; neither is in the estimates")
    if rate is not None and layout.precision == "fp32":
        notes.append("the peak is that of bf16; float32 is several times slower")
    if sizes.has_experts:
        notes.append("experts are taken to share the tokens evenly")
    found: dict[str, Json] = {
        "run": pipeline.run.name,
        "ranks": {
            "total": ranks,
            "from": reason,
            "sequence_parallel_size": layout.sequence_parallel_size,
            "groups": groups,
            "micro_batches": -(-train.global_batch_size // groups),
        },
        "batch": {"packs": train.global_batch_size, "tokens": train.global_batch_size * layout.capacity},
        "data": data,
        "steps": _steps(plan, data),
        "events": _events(plan),
        "checkpoint": _checkpoint(plan, taken.trained),
        "model": {
            "model_type": sizes.model_type,
            "parameters": sizes.parameters,
            "trained": taken.trained,
            "multiplied": sizes.multiplied,
            "source": sizes.source,
        },
        "layout": {**keys(layout), "train.precision": layout.precision, "prep.pack.capacity": layout.capacity},
        "memory": _memory(taken, gpu_memory),
        "time": None if rate is None else _time(sizes, layout, taken, step, rate, plan, assumed, attended),
        "notes": notes,
    }
    if layouts:
        if gpu_memory is None:
            raise ConfigError("--layouts: of which GPU? give --gpu, or --gpu-memory-gb")
        best = choices(sizes, layout, gpu_memory, step=step, rate=rate)
        found["layouts"] = [
            {**_choice(one, step, gpu_memory), "frontier": is_frontier}
            for one, is_frontier in zip(best, frontier(best), strict=True)
        ]
    return found


def _ranks(train: Train, assumed: Assumed) -> tuple[int, str, bool]:
    """All ranks, where the number is from, and whether they have GPUs."""
    described = assumed.gpu is not None or assumed.gpu_memory is not None or assumed.peak_flops is not None
    if assumed.ranks is not None:
        return assumed.ranks, "--ranks", True
    gpus = visible_gpus()
    on_gpu = gpus > 0 or described
    if train.nproc_per_node != "auto":
        return train.nproc_per_node * assumed.nodes, "train.nproc_per_node", on_gpu
    return max(1, gpus) * assumed.nodes, f"{gpus} GPUs here" if gpus else "no GPU here", on_gpu


def _plan(pipeline: Pipeline, train: Train, prep: Manifest | None, packs: int | None) -> Plan:
    """The run as training lays it out; without data it has no packs, and its steps only if max_steps says them."""
    if prep is not None:
        check_evaluation(pipeline, train, prep)
        packs = int(prep.facts["packs"])
    known = 0 if packs is None else epoch_packs(packs, train.shuffle, train.global_batch_size)
    steps = total_steps(train, known) if known else train.max_steps
    nothing = Manifest("prep", 0, "", {}, [], {})
    return Plan(pipeline, train, prep or nothing, known, steps, settings={}, seen={})


def _data(plan: Plan, prep: Manifest | None, packs: int | None) -> dict[str, Json]:
    facts = {} if prep is None else prep.facts
    return {
        "from": "prep" if prep else "--packs" if packs else None,
        "packs": plan.packs or None,
        **{key: facts.get(key) for key in ("tokens", "loss_tokens", "samples")},
    }


def _steps(plan: Plan, data: Mapping[str, Json]) -> dict[str, Json]:
    consumed = plan.total_steps * plan.train.global_batch_size
    epochs = consumed / plan.packs if plan.packs else None

    def whole(key: str) -> int | None:
        return round(data[key] * epochs) if epochs and data[key] else None

    return {
        "total": plan.total_steps or None,
        "epochs": epochs,
        "tokens": whole("tokens"),
        "loss_tokens": whole("loss_tokens"),
    }


def _events(plan: Plan) -> dict[str, Json]:
    train, total = plan.train, plan.total_steps
    every = train.checkpoint.save_steps
    saves = (total // every if every else 0) + bool(not every or total % every) if total else None
    evaluations = None
    if train.eval is not None and total:
        evaluations = -(-total // train.eval.steps)
    return {
        "save_steps": every,
        "saves": saves,
        "eval_steps": train.eval.steps if train.eval else None,
        "evaluations": evaluations,
        "learning_rate": _milestones(plan) if total else [],
    }


def _milestones(plan: Plan) -> list[dict[str, Json]]:
    train, total = plan.train, plan.total_steps
    warmup = warmup_steps(train, total)
    named = {0: "first step"}
    if 0 < warmup < total:
        named[warmup] = "peak, after the warm-up"
    if train.scheduler.type == "wsd":
        named[warmup + int((1 - train.scheduler.decay_ratio) * max(1, total - 1 - warmup))] = "begins to fall"
    elif train.scheduler.type != "constant":
        named[(warmup + total) // 2] = "half-way down"
    named[total - 1] = "last step"
    packs = max(1, plan.packs)
    return [
        {"step": step + 1, "lr": learning_rate(train, step, total, packs), "what": what}
        for step, what in sorted(named.items())
        if 0 <= step < total
    ]


def checkpoint_bytes(plan: Plan, trained: int) -> int:
    """What one checkpoint takes on disk, of so many trained parameters."""
    return int((4.0 + (state_bytes(plan.train) if plan.train.checkpoint.save_optimizer else 0.0)) * trained)


def _checkpoint(plan: Plan, trained: int) -> dict[str, Json]:
    table, size = plan.train.checkpoint, checkpoint_bytes(plan, trained)
    kept = table.save_total_limit if table.save_total_limit > 0 else None
    saves = _events(plan)["saves"]
    number = saves if kept is None else kept if saves is None else min(kept, saves)
    return {"bytes": size, "kept": kept, "disk": None if number is None else size * number}


def _sizes(pipeline: Pipeline, prep: Manifest | None, notes: list[str]) -> ModelSizes:
    vocabulary = None if prep is None else int(prep.facts["vocab_size"])
    config = config_of(pipeline, vocabulary=vocabulary)
    if "vocab_size" not in config and pipeline.model.scratch is not None:
        config = {**config, "vocab_size": (counted := _tokens_of(pipeline))}
        notes.append(f"the vocabulary is the tokenizer's own {counted:,} ids; prep may add to it")
    if pipeline.tokenizer.pad_vocab_multiple > 1 or pipeline.tokenizer.add_special_tokens:
        notes.append("rows that the tokenizer's table adds to the embedding are not counted")
    try:
        return model_sizes(config)
    except UnknownModelError as unknown:
        from train.meta_sizes import meta_sizes  # imports torch, which a closed form does without

        notes.append(f"{unknown}: sizes are from Transformers' modules on the meta device")
        try:
            return meta_sizes(config)
        except ConfigError as error:
            key = "model.scratch" if pipeline.model.scratch is not None else "model.name_or_path"
            raise ConfigError(f"{pipeline.cite(key)}: {error}") from error


def _tokens_of(pipeline: Pipeline) -> int:
    """Ids of a tokenizer, from its tokenizer.json."""
    path = pipeline.tokenizer_dir / "tokenizer.json"
    try:
        content = json.loads(path.read_bytes())
        ids = content["model"]["vocab"]
        known = ids.values() if isinstance(ids, dict) else range(len(ids))
        return int(max([*known, *(token["id"] for token in content.get("added_tokens", []))])) + 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{pipeline.cite('model.scratch')}: no vocab_size, and {path} does not say it; give one, or run "
            "`packtrain prep` first"
        ) from error


def _step(plan: Plan, prep: Manifest | None) -> tuple[Step, str]:
    """A step's work, and what was assumed of the lengths of documents."""
    packs, table = plan.train.global_batch_size, plan.pipeline.prep.pack
    share, tokens, loss_share = 1.0, float(packs * table.capacity), 1.0
    longest = table.attention_window or table.capacity
    length, said = float(longest), f"one document of {longest:,} tokens a pack"
    if prep is not None:
        facts = prep.facts
        share = facts["tokens"] / (facts["packs"] * table.capacity)
        loss_share = facts["loss_tokens"] / facts["tokens"]
        if not table.cross_sample_attention:
            length = min(float(longest), facts["tokens"] / facts["samples"])
            said = f"documents of their mean length, {length:,.0f} tokens"
    tokens *= share
    return Step(packs, tokens, tokens * loss_share, tokens * length), said


def _memory(taken: Memory, gpu_memory: int | None) -> dict[str, Json]:
    return {
        "total": taken.total,
        "parts": dict(taken.parts),
        "peak": taken.peak,
        "host": taken.host,
        "gpu_memory": gpu_memory,
        "fits": None if gpu_memory is None else taken.total <= gpu_memory,
        "error": MEMORY_ERROR,
    }


def _time(
    sizes: ModelSizes,
    layout: Layout,
    taken: Memory,
    step: Step,
    rate: Rate,
    plan: Plan,
    assumed: Assumed,
    attended: str,
) -> dict[str, Json]:
    seconds = step_seconds(sizes, layout, step, rate, trained=taken.trained)
    hours = seconds * plan.total_steps / 3600 if plan.total_steps else None
    gpu_hours = None if hours is None else hours * layout.ranks
    return {
        "seconds": seconds,
        "hours": hours,
        "gpu_hours": gpu_hours,
        "tokens_per_gpu_s": step.tokens / seconds / layout.ranks,
        "cost": None if gpu_hours is None or assumed.price is None else gpu_hours * assumed.price,
        "peak_flops": rate.peak_flops,
        "mfu": rate.mfu,
        "mfu_source": "--mfu" if assumed.mfu else MFU_SOURCE,
        "attended": attended,
    }


def _choice(one: Choice, step: Step, gpu_memory: int) -> dict[str, Json]:
    rate: Any = None if one.seconds is None else step.tokens / one.seconds / one.layout.ranks
    return {
        "keys": keys(one.layout),
        "total": one.memory.total,
        "host": one.memory.host,
        "fits": one.fits(gpu_memory),
        "seconds": one.seconds,
        "tokens_per_gpu_s": rate,
    }
