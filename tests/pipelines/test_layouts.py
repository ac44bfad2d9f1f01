"""Layouts that fit: found without a GPU, best first, and as advice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.gpus import training_flops
from pipelines.layouts import (
    BETWEEN_NODES,
    TO_HOST,
    WITHIN_NODE,
    Rate,
    Step,
    choices,
    frontier,
    keys,
    step_seconds,
    variants,
    what_fits,
)
from pipelines.memory import GIB, Layout
from pipelines.model_sizes import model_sizes
from tests.train.runs import pipeline

SEVENTY_B: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
PACK = 262_144
STEP = Step(packs=16, tokens=16 * PACK, loss_tokens=16 * PACK, attended=16 * float(PACK) ** 2)


def test_70b_at_256k_on_64_gpus_of_80_gb() -> None:
    base = Layout(ranks=64, capacity=PACK, zero_stage=3)
    found = choices(model_sizes(SEVENTY_B), base, 80 * GIB, step=STEP, rate=Rate(989e12, 0.4))
    fitting = [one for one in found if one.fits(80 * GIB)]
    assert 0 < len(fitting) < len(found)
    assert found[: len(fitting)] == fitting
    assert [one.seconds for one in fitting] == sorted(one.seconds or 0 for one in fitting)
    assert all(one.layout.zero_stage == 3 for one in fitting)  # 141 GB of weights
    assert all(one.layout.checkpointing != "none" or one.layout.tiled_mlp for one in fitting)
    kept = [one for one, is_kept in zip(found, frontier(found), strict=True) if is_kept]
    totals = [one.memory.total for one in kept]
    assert kept[0] is found[0]
    assert totals == sorted(totals, reverse=True)


def seconds(layout: Layout, *, peak: float = 1e30, packs: int = 4) -> float:
    """A step of the 70B over packs of one document; with that peak, only what is moved."""
    of_all = float(packs * layout.capacity)
    step = Step(packs, of_all, of_all, of_all * layout.capacity)
    sizes = model_sizes(SEVENTY_B)
    return step_seconds(sizes, layout, step, Rate(peak, 0.5), trained=sizes.parameters)


def test_a_step_on_one_rank_is_its_operations_at_the_rate_asked_for() -> None:
    tokens = 4 * 1024.0
    work = training_flops(model_sizes(SEVENTY_B), tokens=tokens, loss_tokens=tokens, attended=tokens * 1024)
    alone = Layout(ranks=1, capacity=1024, checkpointing="none")
    assert seconds(alone, peak=1e12) == pytest.approx(work / 1e12 / 0.5)
    assert seconds(replace(alone, checkpointing="full"), peak=1e12) == pytest.approx(work / 1e12 / 0.5 * 4 / 3)


def test_what_ranks_exchange_is_added_by_the_links_between_them() -> None:
    parameters = model_sizes(SEVENTY_B).parameters
    two = Layout(ranks=2, capacity=1024, zero_stage=2, checkpointing="none")
    # 2 micro-batches reduce gradients of 2 bytes, then the step gathers what was stepped.
    assert seconds(two) == pytest.approx(3 * 2 * parameters / WITHIN_NODE)
    many = replace(two, ranks=16)
    assert seconds(many) == pytest.approx(2 * 2 * parameters / BETWEEN_NODES)
    third = replace(many, zero_stage=3)
    assert seconds(third) == pytest.approx(3 * 2 * parameters / BETWEEN_NODES)
    offloaded = replace(third, offload_param=True)
    assert seconds(offloaded) - seconds(third) == pytest.approx(2 * 2 * parameters / 16 / TO_HOST)


def test_sharing_a_pack_costs_an_exchange_of_its_heads() -> None:
    shared = Layout(ranks=2, capacity=1024, zero_stage=2, checkpointing="none", sequence_parallel_size=2)
    parameters = model_sizes(SEVENTY_B).parameters
    widths = 80 * (2 * 8192 + 1024 + 1024)  # queries there, results back, keys, values
    a_pack = 2 * 512 * widths * 2 / 2 / WITHIN_NODE + 2 * parameters / WITHIN_NODE
    assert seconds(shared) == pytest.approx(4 * a_pack + 2 * parameters / WITHIN_NODE)


def test_layouts_that_deepspeed_does_not_have_are_not_looked_at() -> None:
    for precision in ("fp32", "bf16"):
        found = list(variants(Layout(ranks=4, capacity=8, precision=precision)))
        stages = {(one.zero_stage, one.offload_optimizer, one.offload_param) for one in found}
        lowest = {(0, False, False), (1, False, False), (1, True, False)} if precision == "fp32" else set()
        higher = {(2, False, False), (2, True, False), (3, False, False), (3, True, False), (3, True, True)}
        assert stages == lowest | higher
        assert {one.sequence_parallel_size for one in found} == {1, 2, 4}
        assert len({str(one) for one in found}) == len(found)


def test_nothing_fits_a_small_gpu_and_the_smallest_come_first() -> None:
    found = choices(model_sizes(SEVENTY_B), Layout(ranks=8, capacity=PACK, zero_stage=3), 8 * GIB)
    assert not any(one.fits(8 * GIB) for one in found)
    assert found[0].memory.total == min(one.memory.total for one in found)


def test_layouts_are_written_as_keys() -> None:
    written = keys(Layout(ranks=2, capacity=8, sequence_parallel_size=2, zero_stage=3, tiled_mlp=True))
    assert written["train.parallel.sequence_parallel_size"] == 2
    assert written["train.tiled_mlp"] is True


def test_advice_names_keys_that_take_less(tmp_path: Path) -> None:
    seven = {**SEVENTY_B, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    asked = pipeline(tmp_path, model={"scratch": seven}, precision="bf16", deepspeed={"zero_stage": 2})
    asked = asked.model_copy(
        update={"prep": asked.prep.model_copy(update={"pack": asked.prep.pack.model_copy(update={"capacity": 16384})})}
    )
    advice = what_fits(asked, 8, 80 * GIB)
    assert advice.startswith("by estimate this takes ")
    assert "train.activation_checkpointing = " in advice
    assert advice.count("; or ") <= 2
    assert "no layout on 8 ranks takes less" in what_fits(asked, 8, GIB)


def test_no_advice_where_the_model_is_unknown(tmp_path: Path) -> None:
    assert what_fits(pipeline(tmp_path, model={"scratch": {"model_type": "bloom"}}), 8, GIB) == ""
