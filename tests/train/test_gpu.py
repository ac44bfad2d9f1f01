"""The stage on a GPU, through the command: what a CPU cannot show."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.conftest import SETTINGS, STEPS
from tests.train.reference import Trained
from tests.train.runs import rows, share, write_toml

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("precision", "attention"), [("bf16", "varlen"), ("bf16", "sdpa"), ("fp32", "sdpa")])
def test_gpu_trains_as_documents_alone_on_the_cpu(
    stage: int, precision: str, attention: str, tmp_path: Path, shards: Path, alone: Trained
) -> None:
    share(shards, tmp_path / "work")
    write_toml(tmp_path, [f"max_steps = {STEPS}", "nproc_per_node = 1", f'precision = "{precision}"'])
    options = [
        f"train.deepspeed.zero_stage={stage}",
        f'model.attn_implementation="{attention}"',
        *(f"train.scheduler.{key}={value}" for key, value in SETTINGS["scheduler"].items()),
        f"train.optimizer.weight_decay={SETTINGS['optimizer']['weight_decay']}",
    ]
    command: list[str | Path] = [Path(sys.executable).with_name("packtrain"), "train", "tiny.toml"]
    for option in options:
        command += ["--set", option]
    environment = {key: value for key, value in os.environ.items() if key != "DS_ACCELERATOR"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    found = json.loads((tmp_path / "work/tiny/train/run.json").read_text())
    assert (found["precision"], found["attention"]) == (precision, attention)
    # bf16 keeps 8 bits of a number; float32 on a GPU sums in another order.
    tolerance = 0.02 if precision == "bf16" else 1e-4
    np.testing.assert_allclose([row["loss"] for row in rows(tmp_path / "work")], alone.losses, atol=tolerance)
