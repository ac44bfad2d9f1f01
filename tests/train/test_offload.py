"""State that waits on the host: where it is changes no number."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.schema import Deepspeed
from tests.train.conftest import SETTINGS
from tests.train.ranks import run_on_ranks
from tests.train.reference import Trained
from tests.train.runs import pipeline, rows, same, share
from tests.train.test_run import assert_trained_as_alone, undo
from train.run import run

OFFLOADS: list[dict[str, Any]] = [
    {"zero_stage": 1, "offload_optimizer": "cpu"},
    {"preset": "deepspeed_zero2_offload"},
    {"zero_stage": 3, "offload_param": "cpu"},
    {"preset": "deepspeed_zero3_offload"},
]


@pytest.mark.parametrize("deepspeed", OFFLOADS, ids=str)
def test_offload_trains_as_documents_alone(
    deepspeed: dict[str, Any], tmp_path: Path, shards: Path, alone: Trained
) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, deepspeed=deepspeed, **SETTINGS))
    assert_trained_as_alone(folder, alone)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("deepspeed", OFFLOADS, ids=str)
def test_offload_on_ranks_computes_the_same_and_resumes_exactly(
    deepspeed: dict[str, Any], precision: str, tmp_path: Path, shards: Path
) -> None:
    here, whole, halves = (share(shards, tmp_path / name) for name in ("here", "whole", "halves"))
    how = {**SETTINGS, "precision": precision}
    stage = Deepspeed.model_validate(deepspeed).zero_stage
    assert run_on_ranks(2, run, pipeline(here, deepspeed={"zero_stage": stage}, **how)) == [0, 0]
    assert run_on_ranks(2, run, pipeline(whole, deepspeed=deepspeed, **how)) == [0, 0]
    assert run_on_ranks(2, run, pipeline(halves, deepspeed=deepspeed, **how)) == [0, 0]
    undo(halves, 2)
    assert run_on_ranks(2, run, pipeline(halves, deepspeed=deepspeed, **how)) == [0, 0]
    assert same(halves, whole)
    for key in ("loss", "grad_norm"):  # but for the order of float32 sums
        np.testing.assert_allclose([row[key] for row in rows(whole)], [row[key] for row in rows(here)], rtol=1e-5)


@pytest.mark.parametrize("overlap_comm", [True, False])
@pytest.mark.parametrize("contiguous_gradients", [True, False])
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.slow
def test_buffers_of_gradients_change_no_number(
    stage: int, contiguous_gradients: bool, overlap_comm: bool, tmp_path: Path, shards: Path, alone: Trained
) -> None:
    folder = share(shards, tmp_path / "work")
    how = {"zero_stage": stage, "overlap_comm": overlap_comm, "contiguous_gradients": contiguous_gradients}
    assert run_on_ranks(2, run, pipeline(folder, deepspeed=how, **SETTINGS)) == [0, 0]
    assert_trained_as_alone(folder, alone)


def test_preset_gives_way_to_the_key_beside_it() -> None:
    table = Deepspeed.model_validate({"preset": "deepspeed_zero3_offload", "offload_param": "none"})
    assert (table.zero_stage, table.offload_optimizer, table.offload_param) == (3, "cpu", "none")
    assert Deepspeed.model_validate(table.model_dump()) == table


@pytest.mark.parametrize(
    ("deepspeed", "message"),
    [
        ({"offload_optimizer": "cpu"}, "needs a zero_stage of 1, 2 or 3"),
        ({"zero_stage": 2, "offload_param": "cpu"}, "needs zero_stage = 3"),
    ],
    ids=str,
)
def test_offload_of_what_is_not_sharded_is_an_error(deepspeed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Deepspeed.model_validate(deepspeed)
