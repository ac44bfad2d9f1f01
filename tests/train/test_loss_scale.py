"""fp16's loss scale, fixed or found: what it makes of a step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.errors import ConfigError, PacktrainError
from tests.train.conftest import SETTINGS
from tests.train.reference import Trained
from tests.train.runs import checkpoints, pipeline, rows, same, share
from tests.train.test_run import undo
from train.run import run

FP16: dict[str, Any] = {**SETTINGS, "precision": "fp16"}
HOPELESS = 2**60
"""No gradient stays below fp16's largest number, 65,504, under it."""


@pytest.mark.parametrize("stage", [2, 3])
def test_fixed_scale_trains_every_step_and_resumes(stage: int, tmp_path: Path, shards: Path, alone: Trained) -> None:
    whole, halves = share(shards, tmp_path / "whole"), share(shards, tmp_path / "halves")
    how = {**FP16, "loss_scale": 512, "deepspeed": {"zero_stage": stage}}
    run(pipeline(whole, **how))
    assert [row["skipped"] for row in rows(whole)] == [False] * len(rows(whole))
    # fp16 keeps 11 bits of a number; the scale is taken out of the gradient again.
    np.testing.assert_allclose([row["loss"] for row in rows(whole)], alone.losses, atol=0.005)
    np.testing.assert_allclose([row["grad_norm"] for row in rows(whole)], alone.grad_norms, rtol=0.02)
    run(pipeline(halves, **how))
    undo(halves, 2)
    run(pipeline(halves, **how))
    assert same(halves, whole)


def test_fixed_scale_that_no_gradient_bears_stops_the_run(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    with pytest.raises(PacktrainError, match=r"step 5: .* for 5 steps in a row; lower train.loss_scale, "):
        run(pipeline(folder, **FP16, loss_scale=HOPELESS))
    assert [row["skipped_steps"] for row in rows(folder)] == [1, 2, 3, 4]
    assert not checkpoints(folder)[:0]


def test_scale_of_another_precision_is_an_error(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(ValidationError, match='is for precision = "fp16", not "bf16"; remove it'):
        pipeline(tmp_path, precision="bf16", loss_scale=512)
    folder = share(shards, tmp_path / "work")
    with pytest.raises(ConfigError, match=r'train.loss_scale.*: is for fp16, and precision = "auto" is fp32 here'):
        run(pipeline(folder, loss_scale=512))
