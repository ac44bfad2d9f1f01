"""The whole stage on one CPU rank, in this process."""

import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.artifacts import Manifest
from pipelines.checkpoints import Checkpoint, finished, step_folder
from pipelines.errors import CheckError, ConfigError, DataError, MachineError
from tests.train.reference import Trained, train_alone
from tests.train.runs import LLAMA, pipeline, write_prep
from train.run import run

STEPS = 6
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "optimizer": {"lr": Decimal("0.01"), "weight_decay": Decimal("0.1")},
    "scheduler": {"warmup_steps": 2, "min_lr": Decimal("0.001")},
    "checkpoint": {"save_steps": 2, "save_total_limit": -1},
}
CLOSE = {"rtol": 2e-4, "atol": 2e-6}
"""Weights after 6 steps of Adam, whose first steps divide small gradients by their own size: rounding is amplified."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_prep(folder / "prep")
    return folder / "prep"


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = work(tmp_path_factory.mktemp("alone"), shards)
    return train_alone(pipeline(folder, **SETTINGS), STEPS)


def work(folder: Path, shards: Path) -> Path:
    """A work directory whose prep output is `shards`."""
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny" / "prep").symlink_to(shards)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "tiny" / "train" / "metrics.jsonl").read_text().splitlines()]


def last(folder: Path) -> Checkpoint:
    return Checkpoint(finished(folder / "tiny" / "train" / "checkpoints")[-1])


def state(checkpoint: Checkpoint) -> dict[str, np.ndarray[Any, Any]]:
    """The whole training state of a checkpoint."""
    return {f"{kind}/{name}": values for kind in checkpoint.kinds() for name, values in checkpoint.tensors(kind)}


def assert_equals_documents_alone(folder: Path, alone: Trained) -> None:
    found = rows(folder)
    np.testing.assert_allclose([row["loss"] for row in found], alone.losses, rtol=1e-5)
    np.testing.assert_allclose([row["grad_norm"] for row in found], alone.grad_norms, rtol=1e-4)
    weights = dict(last(folder).tensors())
    assert weights.keys() == alone.weights.keys()
    for name, values in weights.items():
        np.testing.assert_allclose(values, alone.weights[name].numpy(), **CLOSE, err_msg=name)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_trains_as_documents_alone(stage: int, tmp_path: Path, shards: Path, alone: Trained) -> None:
    folder = work(tmp_path / "work", shards)
    run(pipeline(folder, deepspeed={"zero_stage": stage}, **SETTINGS))
    assert_equals_documents_alone(folder, alone)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resumed_run_is_bitwise_the_uninterrupted_one(stage: int, tmp_path: Path, shards: Path) -> None:
    whole, halves = work(tmp_path / "whole", shards), work(tmp_path / "halves", shards)
    settings = {**SETTINGS, "deepspeed": {"zero_stage": stage}}
    run(pipeline(whole, **settings))
    run(pipeline(halves, **settings))
    for step in (4, 6):  # as a kill after step 3 would have left it, but for the rows of metrics.jsonl
        Manifest_of(halves, step).unlink()
    run(pipeline(halves, **settings))
    expected, found = state(last(whole)), state(last(halves))
    assert expected.keys() == found.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert [row["step"] for row in rows(halves)] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in rows(halves)] == [row["loss"] for row in rows(whole)]


def Manifest_of(folder: Path, step: int) -> Path:
    return step_folder(folder / "tiny" / "train" / "checkpoints", step) / "manifest.json"
