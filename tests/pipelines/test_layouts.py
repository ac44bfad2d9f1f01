"""Layouts that fit: found without a GPU, best first, and as advice."""

from pathlib import Path
from typing import Any

from pipelines.layouts import Rate, Step, choices, frontier, keys, what_fits
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
