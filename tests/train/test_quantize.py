"""An adapter on a model in 4 bits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.checkpoints import Checkpoint
from pipelines.errors import ConfigError, MachineError
from tests.train.conftest import SETTINGS
from tests.train.ranks import run_on_ranks
from tests.train.runs import LLAMA, checkpoints, pipeline, rows, same, share
from tests.train.test_run import undo
from train.run import run

LORA = {"r": 4, "lora_alpha": 8}
SIZES = {**LLAMA, "hidden_size": 64, "intermediate_size": 64}
"""Whole blocks in every row, as in published models."""
MODEL: dict[str, Any] = {"scratch": SIZES, "lora": LORA, "quantization": {}}


def packed(folder: Path, **how: Any) -> Path:
    pytest.importorskip("bitsandbytes")
    run(pipeline(folder, **{"model": MODEL, **how, **SETTINGS}))
    return folder


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_trains_close_to_the_unpacked_model(stage: int, tmp_path: Path, shards: Path) -> None:
    whole = share(shards, tmp_path / "whole")
    run(pipeline(whole, model={"scratch": SIZES, "lora": LORA}, **SETTINGS))
    folder = packed(share(shards, tmp_path / "work"), deepspeed={"zero_stage": stage})
    losses, expected = ([row["loss"] for row in rows(one)] for one in (folder, whole))
    np.testing.assert_allclose(losses, expected, rtol=0.02)
    assert losses != expected


@pytest.mark.parametrize(
    "how", [{"deepspeed": {"zero_stage": 3}}, {"deepspeed": {"zero_stage": 2}, "precision": "bf16"}], ids=str
)
def test_resumed_run_on_four_bits_is_bitwise_the_uninterrupted_one(
    how: dict[str, Any], tmp_path: Path, shards: Path
) -> None:
    whole = packed(share(shards, tmp_path / "whole"), **how)
    halves = packed(share(shards, tmp_path / "halves"), **how)
    undo(halves, 2)
    packed(halves, **how)
    assert same(halves, whole)


def test_checkpoint_is_of_the_adapter_and_says_nothing_of_four_bits_to_its_user(tmp_path: Path, shards: Path) -> None:
    folder = packed(share(shards, tmp_path / "work"))
    checkpoint = Checkpoint(checkpoints(folder)[-1])
    assert all("lora_" in name for name in checkpoint.shapes)
    assert "quantization_config" not in json.loads((checkpoint.folder / "model/config.json").read_text())


def test_four_bits_without_an_adapter_are_refused(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    with pytest.raises(
        ConfigError, match=r"model.quantization: weights of 4 bits cannot be trained; add \[model.lora\]"
    ):
        run(pipeline(folder, model={"scratch": LLAMA, "quantization": {}}))


def test_quantization_that_is_off_is_refused(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    with pytest.raises(ConfigError, match="load_in_4bit = false: has no effect; remove the table"):
        run(pipeline(folder, model={**MODEL, "quantization": {"load_in_4bit": False}}))


def test_products_that_are_wrong_on_this_processor_are_refused(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    right = functional.dequantize_4bit
    monkeypatch.setattr(functional, "dequantize_4bit", lambda *given: right(*given) + 1)
    folder = share(shards, tmp_path / "work")
    with pytest.raises(MachineError, match=r"down_proj.weight: bitsandbytes unpacks a matrix with 72 columns wrongly"):
        run(pipeline(folder, model={**MODEL, "scratch": {**SIZES, "intermediate_size": 72}}))


def test_missing_library_is_named(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.quantize.importlib.util.find_spec", lambda name: None)
    folder = share(shards, tmp_path / "work")
    with pytest.raises(MachineError, match=r"model.quantization needs bitsandbytes, which is not installed here"):
        run(pipeline(folder, model=MODEL))


@pytest.mark.slow
def test_ranks_that_share_out_the_four_bits_compute_the_same(tmp_path: Path, shards: Path) -> None:
    whole, shared = packed(share(shards, tmp_path / "whole")), share(shards, tmp_path / "shared")
    settings = pipeline(shared, model=MODEL, deepspeed={"zero_stage": 3}, **SETTINGS)
    assert run_on_ranks(2, run, settings) == [0, 0]
    losses, expected = ([row["loss"] for row in rows(one)] for one in (shared, whole))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
