"""The numbers of a run in trackers."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import MachineError
from tests.train.runs import pipeline, rows, share
from train.run import run

LOG = {"log": {"trackers": ["tensorboard"]}}


class Writer:
    """Stands in for PyTorch's writer, which only an optional package makes work."""

    scalars: dict[tuple[str, int], float]
    opened: tuple[str, int]

    def __init__(self, folder: str, purge_step: int) -> None:
        type(self).opened, type(self).scalars = (folder, purge_step), {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name, step] = value

    def close(self) -> None:
        self.scalars["closed", 0] = 1.0


def test_tensorboard_gets_the_numbers_of_every_row(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, module.__name__, module)
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, max_steps=2, **LOG))
    assert Writer.opened == (str(folder / "tiny" / "train" / "tensorboard"), 1)
    for row in rows(folder):
        assert Writer.scalars["train/loss", row["step"]] == row["loss"]
        assert Writer.scalars["train/lr", row["step"]] == row["lr"]
    assert ("train/step", 1) not in Writer.scalars
    assert ("closed", 0) in Writer.scalars


def test_tensorboard_without_its_package_is_refused(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MachineError, match="run `pip install tensorboard`"):
        run(pipeline(share(shards, tmp_path / "work"), max_steps=2, **LOG))
