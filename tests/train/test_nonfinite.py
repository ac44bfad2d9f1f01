"""Steps whose gradient is no number: skipped on every rank, and counted."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.checkpoints import Checkpoint
from pipelines.schema import Pipeline
from tests.train.conftest import SETTINGS
from tests.train.ranks import run_on_ranks
from tests.train.runs import checkpoints, pipeline, rows, same, share
from tests.train.test_run import undo
from train.batches import StepBatch
from train.engine import Engine, StepStats
from train.fragments import pieces
from train.loss import loss_sum
from train.run import run

SPOILT = 3
"""The step, from 1, at which a rank's gradient is infinite."""


class _Spoil(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


def train_with_a_spoilt_step(pipeline: Pipeline, spoilt_rank: int) -> None:
    """Train, with an infinite gradient in the last micro-batch of a step of one rank; its loss is as it was."""
    honest, step = loss_sum, Engine.step
    calls = 0

    def spoilt_loss_sum(*arguments: Any, **keywords: Any) -> Tensor:
        nonlocal calls
        calls += 1
        loss = honest(*arguments, **keywords)
        mine = dist.get_rank() == spoilt_rank and calls == SPOILT * 4 // dist.get_world_size()
        return _Spoil.apply(loss) if mine else loss  # type: ignore[no-untyped-call]

    def checked_step(self: Engine, batch: StepBatch, learning_rate: float) -> StepStats:
        def held() -> list[Tensor]:
            return [tensor.clone() for piece in pieces(self) for tensor in piece.tensors.values()]

        before = held()
        stats = step(self, batch, learning_rate)
        after = held()
        unchanged = len(before) == len(after) and all(map(torch.equal, before, after))
        assert unchanged == stats.skipped
        return stats

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.engine.loss_sum", spoilt_loss_sum)
        patch.setattr(Engine, "step", checked_step)
        run(pipeline)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_infinite_gradient_of_one_rank_changes_nothing_on_any(
    stage: int, precision: str, tmp_path: Path, shards: Path
) -> None:
    folder = share(shards, tmp_path / "work")
    how = {"precision": precision, "deepspeed": {"zero_stage": stage}, "max_steps": 4}
    assert run_on_ranks(2, train_with_a_spoilt_step, pipeline(folder, **{**SETTINGS, **how}), 1) == [0, 0]
    found = rows(folder)
    assert [row["skipped"] for row in found][SPOILT - 1 :] == [True, False]
    assert found[SPOILT - 1]["grad_norm"] is None
    assert found[SPOILT - 1]["loss"] is not None
    assert Checkpoint(checkpoints(folder)[-1]).manifest.facts["skipped_steps"] == found[-1]["skipped_steps"]


@pytest.mark.parametrize("stage", [0, 2])
def test_skipped_steps_are_counted_across_a_resume(stage: int, tmp_path: Path, shards: Path) -> None:
    whole, halves = share(shards, tmp_path / "whole"), share(shards, tmp_path / "halves")
    how = {**SETTINGS, "deepspeed": {"zero_stage": stage}}
    train_with_a_spoilt_step(pipeline(whole, **how), 0)
    train_with_a_spoilt_step(pipeline(halves, **how), 0)
    undo(halves, 4)
    run(pipeline(halves, **how))
    assert same(halves, whole)
    assert [row["skipped_steps"] for row in rows(halves)] == [0, 0, 1, 1, 1, 1]
    assert [row["skipped"] for row in rows(halves)] == [False, False, True, False, False, False]


def test_infinite_gradient_stops_the_run_if_asked_to(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    with pytest.raises(Exception, match=rf"step {SPOILT}: the gradient's norm is (inf|nan); lower"):
        train_with_a_spoilt_step(pipeline(folder, **SETTINGS, on_nonfinite="stop"), 0)
