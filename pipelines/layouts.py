"""Which layouts of a training run fit a GPU's memory, and how fast each may be: a table without a GPU.

Times are estimates for comparing layouts: operations over peak and MFU, the exchange that computing does not hide, and
what is moved to and from the machine's own memory. The rates below are assumptions, said where they are shown.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.errors import ConfigError
from pipelines.gpus import training_flops
from pipelines.memory import GIB, Checkpointing, Layout, Memory, layout_of, memory, mlp_share
from pipelines.model_sizes import ModelSizes, UnknownModelError, model_sizes
from pipelines.schema import Pipeline

RANKS_OF_A_NODE = 8
WITHIN_NODE = 200e9
"""Bytes a second that a GPU exchanges inside a machine, over NVLink."""
BETWEEN_NODES = 25e9
"""Between machines: one link of 200 Gbit/s for each GPU."""
TO_HOST = 12e9
"""To and from the machine's own memory, by several GPUs at once."""
HOST_ADAM = 2.5e-9
"""Seconds in which a rank's cores step one element."""
SELECTIVE_SHARE = 0.05
"""What computing norms and activations again adds to the operations of a step, in time."""
ROOM = 0.9
"""Share of a GPU's memory up to which a layout surely fits; above it is tight."""
MOST_ADVICE = 3


@dataclass(frozen=True)
class Step:
    """What one optimizer step computes."""

    packs: int
    tokens: float
    loss_tokens: float
    attended: float
    """Sum of squared document lengths."""


@dataclass(frozen=True)
class Rate:
    """How fast the GPUs are."""

    peak_flops: float
    mfu: float
    """Of a step that computes nothing again and moves nothing."""


@dataclass(frozen=True)
class Choice:
    """A layout with what it takes."""

    layout: Layout
    memory: Memory
    seconds: float | None
    """A step; None where no rate is given."""

    def fits(self, gpu_memory: int) -> bool:
        return self.memory.total <= gpu_memory


def frontier(found: Sequence[Choice]) -> list[bool]:
    """Which of layouts, best first, take less memory than all before them: the others are slower and larger."""
    least, kept = None, []
    for one in found:
        kept.append(least is None or one.memory.total < 0.99 * least)
        least = one.memory.total if kept[-1] else least
    return kept


def keys(layout: Layout) -> dict[str, str | int | bool]:
    """The keys of the TOML that make a layout, by name."""
    return {
        "train.deepspeed.zero_stage": layout.zero_stage,
        "train.deepspeed.offload_optimizer": "cpu" if layout.offload_optimizer else "none",
        "train.deepspeed.offload_param": "cpu" if layout.offload_param else "none",
        "train.parallel.sequence_parallel_size": layout.sequence_parallel_size,
        "train.activation_checkpointing": layout.checkpointing,
        "train.activation_offload": "cpu" if layout.activation_offload else "none",
        "train.tiled_mlp": layout.tiled_mlp,
    }


def choices(
    sizes: ModelSizes, base: Layout, gpu_memory: int, *, step: Step | None = None, rate: Rate | None = None
) -> list[Choice]:
    """Layouts of the same run, best first: those that fit by time, simple ones before; then the others by memory.

    Args:
        gpu_memory: bytes of one GPU.
    """
    found = []
    for layout in variants(base):
        taken = memory(sizes, layout)
        seconds = step_seconds(sizes, layout, step, rate, trained=taken.trained) if step and rate else None
        found.append(Choice(layout, taken, seconds))
    fitting = [one for one in found if one.fits(gpu_memory)]
    others = [one for one in found if not one.fits(gpu_memory)]
    return sorted(fitting, key=lambda one: one.seconds or 0.0) + sorted(others, key=lambda one: one.memory.total)


def variants(base: Layout) -> Iterator[Layout]:
    """Every layout of the same run on the same ranks, simple ones first."""
    sizes = [size for size in range(1, base.ranks + 1) if base.ranks % size == 0]
    activations: list[tuple[Checkpointing, bool, bool]] = [
        (checkpointing, tiled, offload)
        for offload in (False, True)
        for checkpointing in ("none", "selective", "full")
        for tiled in (False, True)
        if checkpointing == "full" or not offload
    ]
    for stage in (0, 1, 2, 3) if base.precision == "fp32" else (2, 3):
        for offload in ((False, False), (True, False), (True, True)):
            if (offload[0] and stage == 0) or (offload[1] and stage != 3):
                continue
            for size in sizes:
                for checkpointing, tiled, away in activations:
                    yield replace(
                        base,
                        zero_stage=stage,
                        offload_optimizer=offload[0],
                        offload_param=offload[1],
                        sequence_parallel_size=size,
                        checkpointing=checkpointing,
                        tiled_mlp=tiled,
                        activation_offload=away,
                    )


def step_seconds(sizes: ModelSizes, layout: Layout, step: Step, rate: Rate, *, trained: int) -> float:
    """How long an optimizer step may take.

    Args:
        trained: elements that are trained.
    """
    groups = layout.ranks // layout.sequence_parallel_size
    micro_batches = -(-step.packs // groups)
    adapter = trained if layout.lora is not None else None
    flops = training_flops(
        sizes, tokens=step.tokens, loss_tokens=step.loss_tokens, attended=step.attended, trained=adapter
    )
    each = flops / step.packs / layout.sequence_parallel_size  # of a pack, on one of its ranks
    computing = each * (1 + again(sizes, layout)) / (rate.peak_flops * rate.mfu)
    hidden_by_it = _gathering(sizes, layout, trained) + _waiting_inputs(sizes, layout)
    micro_batch = max(computing, hidden_by_it) + _sharing_a_pack(sizes, layout)
    return micro_batches * micro_batch + _stepping(layout, trained)


def again(sizes: ModelSizes, layout: Layout) -> float:
    """What is computed again, over what is computed once: a forward pass is a third."""
    if layout.checkpointing == "full":
        return 1 / 3  # a tile's second time is then its only one
    return (SELECTIVE_SHARE if layout.checkpointing == "selective" else 0.0) + (
        mlp_share(sizes) / 3 if layout.tiled_mlp else 0.0
    )


def _link(ranks: int) -> float:
    return WITHIN_NODE if ranks <= RANKS_OF_A_NODE else BETWEEN_NODES


def _gathering(sizes: ModelSizes, layout: Layout, trained: int) -> float:
    """Seconds a micro-batch to gather parameters and reduce gradients, while it is computed."""
    if layout.ranks == 1:
        return 0.0
    size, parameters = layout.element_bytes, sizes.parameters
    if layout.effective_stage == 3:
        moved = size * (2.0 * parameters + trained)  # parameters forward and backward, then gradients
        from_host = 2.0 * size * parameters / layout.ranks / TO_HOST if layout.offload_param else 0.0
        return moved / _link(layout.ranks) + from_host
    return size * float(trained) / _link(layout.ranks)


def _waiting_inputs(sizes: ModelSizes, layout: Layout) -> float:
    """Seconds a micro-batch to move layers' inputs out and back."""
    if not layout.activation_offload:
        return 0.0
    return 2.0 * layout.tokens * sizes.hidden * sizes.depth * layout.element_bytes / TO_HOST


def _sharing_a_pack(sizes: ModelSizes, layout: Layout) -> float:
    """Seconds a micro-batch in which ranks that share a pack exchange tokens for heads, forward, again and backward."""
    ranks = layout.sequence_parallel_size
    if ranks == 1:
        return 0.0
    widths = sum((2 * layer.query_width + layer.key_width + layer.value_width) * layer.count for layer in sizes.layers)
    passes = 2 if layout.checkpointing == "none" else 3
    return passes * layout.tokens * widths * layout.element_bytes * (ranks - 1) / ranks / _link(ranks)


def _stepping(layout: Layout, trained: int) -> float:
    """Seconds a step beyond computing it: stepping on the host, or gathering what was stepped."""
    share = trained / layout.shards
    if layout.offload_optimizer:
        return share * (HOST_ADAM + (4 + layout.element_bytes) / TO_HOST)
    gathered = layout.element_bytes * float(trained) / _link(layout.ranks)
    return gathered if layout.effective_stage in (1, 2) and layout.ranks > 1 else 0.0


def sizes_of(pipeline: Pipeline, *, vocabulary: int | None = None) -> ModelSizes:
    """The sizes of a pipeline's model, without torch.

    Args:
        vocabulary: the tokenizer's, for a model from scratch that names none.
    Raises:
        UnknownModelError: if there is no closed form for it, or its config.json is not here.
        ConfigError: if its config.json cannot be read.
    """
    return model_sizes(config_of(pipeline, vocabulary=vocabulary))


def config_of(pipeline: Pipeline, *, vocabulary: int | None = None) -> Mapping[str, Any]:
    """The model's config.json, or [model.scratch] as one."""
    if pipeline.model.scratch is not None:
        known = {} if vocabulary is None else {"vocab_size": vocabulary}
        return {**known, **pipeline.model.scratch}
    folder = pipeline.model.name_or_path
    assert folder is not None  # the schema wants one of the two
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{pipeline.cite('model.name_or_path')}: {path} cannot be read ({error}); name a Hugging Face model "
            "directory, or fetch the model first"
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(f"{pipeline.cite('model.name_or_path')}: {path} is no JSON object; use another directory")
    return config


def what_fits(pipeline: Pipeline, ranks: int, gpu_memory_bytes: int, *, vocabulary: int | None = None) -> str:
    """Advice for a run that a GPU was too small for: settings that take less, by estimate, fastest first.

    Args:
        vocabulary: of the tokenizer, for a model from scratch that names none.
    Returns:
        A text without an end mark; empty where the model's sizes are not known.
    """
    try:
        sizes = sizes_of(pipeline, vocabulary=vocabulary)
    except (UnknownModelError, ConfigError):
        return ""
    now = layout_of(pipeline, ranks)
    taken = memory(sizes, now).total
    # It was too much already, whatever the estimate says: only what clearly takes less is advice.
    limit = int(ROOM * min(gpu_memory_bytes, taken))
    step = Step(now.ranks, now.capacity * now.ranks, now.capacity * now.ranks, float(now.capacity) ** 2 * now.ranks)
    found = [one for one in choices(sizes, now, limit, step=step, rate=Rate(400e12, 0.4)) if one.fits(limit)]
    here = f"by estimate this takes {gb(taken)} of {gb(gpu_memory_bytes)}"
    if not found:
        least = choices(sizes, now, 0)[0].memory.total
        return f"{here}, and no layout on {ranks} ranks takes less than {gb(least)}: use more GPUs or shorter packs"
    options = [
        f"{changed(one.layout, now)} ({gb(one.memory.total)})" for one in _fewest_changes(found, now)[:MOST_ADVICE]
    ]
    return f"{here}; try {'; or '.join(options)}"


def _fewest_changes(found: list[Choice], now: Layout) -> list[Choice]:
    """Of layouts by time, those that no faster one has with a part of the same changes."""
    before = keys(now)
    kept: list[tuple[set[str], Choice]] = []
    for one in found:
        changes = {key for key, value in keys(one.layout).items() if value != before[key]}
        if changes and not any(earlier <= changes for earlier, _ in kept):
            kept.append((changes, one))
    return [one for _, one in kept]


def changed(layout: Layout, now: Layout) -> str:
    """The keys in which a layout differs from another, as TOML."""
    before = keys(now)
    return ", ".join(f"{key} = {_toml(value)}" for key, value in keys(layout).items() if value != before[key])


def _toml(value: str | int | bool) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def gb(size: float) -> str:
    """Bytes for a person, in units of 2^30."""
    return f"{size / GIB:.1f} GB" if size >= GIB else f"{size / 2**20:.1f} MB"
