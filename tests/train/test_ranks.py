"""The stage on several gloo ranks: any layout sees the same packs and computes the same numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.conftest import SETTINGS
from tests.train.ranks import run_on_ranks
from tests.train.reference import Trained
from tests.train.runs import pipeline, rows, same, share
from tests.train.test_run import assert_trained_as_alone, undo
from train.run import run

pytestmark = pytest.mark.slow


def train_on(ranks: int, folder: Path, **how: Any) -> None:
    assert run_on_ranks(ranks, run, pipeline(folder, **SETTINGS, **how)) == [0] * ranks


@pytest.mark.parametrize("ranks", [2, 3])  # 3 do not divide the 4 packs of a step
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_ranks_train_as_documents_alone(stage: int, ranks: int, tmp_path: Path, shards: Path, alone: Trained) -> None:
    folder = share(shards, tmp_path / "work")
    train_on(ranks, folder, deepspeed={"zero_stage": stage})
    assert_trained_as_alone(folder, alone)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_half_precision_adds_up_every_micro_batch_of_every_rank(
    stage: int, precision: str, tmp_path: Path, shards: Path, alone: Trained
) -> None:
    folder = share(shards, tmp_path / "work")
    train_on(2, folder, precision=precision, deepspeed={"zero_stage": stage})
    found = [(row["loss"], row["grad_norm"]) for row in rows(folder) if not row["skipped"]][:1]
    # The first step, from the same weights: bf16 keeps 8 bits of a number.
    np.testing.assert_allclose(found, [(alone.losses[0], alone.grad_norms[0])], rtol=0.01)


def test_more_ranks_than_packs_in_a_step(tmp_path: Path, shards: Path, alone: Trained) -> None:
    folder = share(shards, tmp_path / "work")
    train_on(5, folder, deepspeed={"zero_stage": 2})
    assert_trained_as_alone(folder, alone)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_resumed_ranks_are_bitwise_the_uninterrupted_ones(stage: int, tmp_path: Path, shards: Path) -> None:
    whole, halves = share(shards, tmp_path / "whole"), share(shards, tmp_path / "halves")
    how = {"deepspeed": {"zero_stage": stage}}
    train_on(2, whole, **how)
    train_on(2, halves, **how)
    undo(halves, 2)
    train_on(2, halves, **how)
    assert same(halves, whole)
