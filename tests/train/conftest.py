"""Shards and the reference run that the train tests share."""

import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported; these tests compare with a CPU's numbers

from tests.train.reference import Trained, train_alone
from tests.train.runs import pipeline, share, write_prep

STEPS = 6
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "optimizer": {"lr": Decimal("0.01"), "weight_decay": Decimal("0.1")},
    "scheduler": {"warmup_steps": 2, "min_lr": Decimal("0.001")},
    "checkpoint": {"save_steps": 2, "save_total_limit": -1},
}
"""A short run with everything on: decay groups, warm-up, clipping, an epoch's end inside a step."""


@pytest.fixture(autouse=True)
def _on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on the CPU also where there is a GPU, but in tests that are about one."""
    if "gpu" not in request.keywords:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


@pytest.fixture(autouse=True)
def _linear_as_pytorch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back what DeepSpeed leaves behind: after a ZeRO 3 run `linear` stays its own as long as the process."""
    monkeypatch.setattr("torch.nn.functional.linear", torch._C._nn.linear)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prep directory of 10 packs."""
    folder = tmp_path_factory.mktemp("shards") / "prep"
    write_prep(folder)
    return folder


@pytest.fixture(scope="session")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run of `SETTINGS`, every document by itself in plain PyTorch."""
    return train_alone(pipeline(share(shards, tmp_path_factory.mktemp("alone")), **SETTINGS), STEPS)
