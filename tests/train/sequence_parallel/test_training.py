"""The stage with sequence parallelism: it changes the cost of a step, never its number."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError
from pipelines.schema import Pipeline
from tests.train.conftest import SETTINGS
from tests.train.ranks import run_on_ranks
from tests.train.reference import Trained
from tests.train.runs import pipeline, rows, same, share, write_prep
from tests.train.test_run import GPT2_WITH_DROPOUT, assert_trained_as_alone, undo
from train.plan import Plan
from train.run import run


def train_on(ranks: int, size: int, folder: Path, **how: Any) -> None:
    settings = pipeline(folder, **SETTINGS, parallel={"sequence_parallel_size": size}, **how)
    assert run_on_ranks(ranks, run, settings) == [0] * ranks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "ranks", "size"),
    [
        (0, 2, 2),
        (1, 2, 2),
        (2, 4, 2),  # two groups of two
        (3, 4, 2),
        (0, 3, 3),  # does not divide the 4 heads
        (3, 3, 3),
    ],
)
def test_ranks_that_share_packs_train_as_documents_alone(
    stage: int, ranks: int, size: int, tmp_path: Path, shards: Path, alone: Trained
) -> None:
    folder = share(shards, tmp_path / "work")
    train_on(ranks, size, folder, deepspeed={"zero_stage": stage})
    assert_trained_as_alone(folder, alone)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_bf16_follows_fp32(stage: int, tmp_path: Path, shards: Path, alone: Trained) -> None:
    folder = share(shards, tmp_path / "work")
    train_on(2, 2, folder, precision="bf16", deepspeed={"zero_stage": stage})
    # bf16 keeps 8 bits of a number, so a loss of 3 to about 0.01.
    assert [row["loss"] for row in rows(folder)] == pytest.approx(alone.losses, abs=0.02)


@pytest.mark.slow
def test_metrics_do_not_depend_on_who_shares_packs(tmp_path: Path, shards: Path) -> None:
    one, four = share(shards, tmp_path / "one"), share(shards, tmp_path / "four")
    train_on(1, 1, one)
    train_on(4, 4, four, activation_checkpointing="full")
    for mine, theirs in zip(rows(one), rows(four), strict=True):
        for key in ("step", "epoch", "tokens", "loss_tokens", "lr"):
            assert mine[key] == theirs[key]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    assert json.loads((four / "tiny/train/run.json").read_text())["sequence_parallel_size"] == 4


@pytest.mark.slow
def test_run_resumes_under_another_size(tmp_path: Path, shards: Path, alone: Trained) -> None:
    folder = share(shards, tmp_path / "work")
    train_on(4, 4, folder, deepspeed={"zero_stage": 3})
    undo(folder, 4)
    train_on(2, 1, folder, deepspeed={"zero_stage": 1})
    undo(folder, 2)
    train_on(3, 3, folder, deepspeed={"zero_stage": 2})
    assert_trained_as_alone(folder, alone)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"model": {"scratch": GPT2_WITH_DROPOUT}}], ids=["llama", "dropout"])
def test_resumed_run_is_bitwise_the_uninterrupted_one(how: dict[str, Any], tmp_path: Path, shards: Path) -> None:
    whole, halves = share(shards, tmp_path / "whole"), share(shards, tmp_path / "halves")
    train_on(2, 2, whole, **how)
    train_on(2, 2, halves, **how)
    undo(halves, 2)
    train_on(2, 2, halves, **how)
    assert same(halves, whole)


def test_size_that_does_not_divide_the_ranks_is_an_error(tmp_path: Path) -> None:
    write_prep(tmp_path / "tiny" / "prep")
    settings = pipeline(tmp_path, nproc_per_node=8, parallel={"sequence_parallel_size": 3})
    message = "train.parallel.sequence_parallel_size = 3: does not divide the 8 ranks of this run; use 1, 2, 4 or 8"
    with pytest.raises(ConfigError, match=message):
        run(settings)
    plan = Plan.of(settings)
    with pytest.raises(ConfigError, match="does not divide the 1 ranks of this run; use 1, or another number of ranks"):
        plan.check_ranks(1)
    plan.check_ranks(6)


@pytest.mark.slow
def test_every_rank_of_a_launcher_ends_with_that_error(tmp_path: Path, shards: Path) -> None:
    settings = pipeline(share(shards, tmp_path / "work"), parallel={"sequence_parallel_size": 3})
    assert run_on_ranks(2, run, settings) == [ConfigError.exit_code] * 2


def test_identity_does_not_depend_on_the_size(tmp_path: Path) -> None:
    write_prep(tmp_path / "tiny" / "prep")
    assert (
        Plan.of(pipeline(tmp_path)).identity
        == Plan.of(pipeline(tmp_path, parallel={"sequence_parallel_size": 2})).identity
    )


def _leak(settings: Pipeline) -> None:
    from train.attention import KERNELS, Segments

    exact = KERNELS["sdpa"]
    KERNELS["sdpa"] = lambda q, k, v, segments, scores: exact(
        q, k, v, Segments.of([len(q)], key_lengths=[len(k)]), scores
    )
    run(settings)


@pytest.mark.slow
def test_audit_finds_a_leak_on_ranks_that_share_packs(tmp_path: Path, shards: Path) -> None:
    settings = pipeline(share(shards, tmp_path / "work"), max_steps=1, parallel={"sequence_parallel_size": 2})
    assert run_on_ranks(2, _leak, settings) == [ConfigError.exit_code] * 2
