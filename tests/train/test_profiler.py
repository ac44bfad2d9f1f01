"""The window of steps that are profiled."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import PacktrainError
from tests.train.runs import checkpoints, pipeline, same, share
from train.run import run

SETTINGS: dict[str, Any] = {"max_steps": 4, "checkpoint": {"save_steps": 2}}


def steps_in(trace: Path) -> set[str]:
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return {event["name"] for event in events if event["name"].startswith("optimizer step")}


def traces(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "tiny" / "train" / "profile").glob("*"))


def test_window_is_traced_and_changes_no_number(tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, profiled = share(shards, tmp_path / "plain"), share(shards, tmp_path / "profiled")
    run(pipeline(plain, **SETTINGS))
    window = {"profile": {"first_step": 2, "steps": 2, "memory": True}}
    with caplog.at_level(logging.INFO, "train"):
        run(pipeline(profiled, **SETTINGS, **window))
    assert same(profiled, plain)
    assert traces(profiled) == ["steps-00000002-00000003.json.gz"]
    trace = profiled / "tiny" / "train" / "profile" / "steps-00000002-00000003.json.gz"
    assert steps_in(trace) == {"optimizer step 2", "optimizer step 3"}
    assert "aten::" in caplog.text.split("ms a step")[1]
    assert "no memory snapshot: there is no GPU" in caplog.text

    caplog.clear()
    (checkpoints(profiled)[-1] / "manifest.json").unlink()
    run(pipeline(profiled, **SETTINGS, profile={"first_step": 2, "steps": 2}))  # a window is no other run
    assert "of steps 2..3, 3 are profiled" in caplog.text
    assert same(profiled, plain)
    assert traces(profiled) == ["steps-00000002-00000003.json.gz", "steps-00000003-00000003.json.gz"]


@pytest.mark.parametrize(
    ("first_step", "finding"),
    [(5, "no step is profiled: the run has 4"), (1, "no step is profiled: 2 were done before")],
)
def test_window_outside_the_run_is_told_of(
    first_step: int, finding: str, tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, **SETTINGS))
    (checkpoints(folder)[-1] / "manifest.json").unlink()
    run(pipeline(folder, **SETTINGS, profile={"first_step": first_step, "steps": 1}))
    assert finding in caplog.text
    assert not traces(folder)


def test_run_that_stops_in_the_window_leaves_what_it_saw(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    hopeless: dict[str, Any] = {"optimizer": {"lr": 10**30}, "scheduler": {"warmup_steps": 0}, "max_grad_norm": 0}
    with pytest.raises(PacktrainError, match=r"step [23]"):
        run(pipeline(folder, max_steps=9, **hopeless, on_nonfinite="stop", profile={"first_step": 2, "steps": 8}))
    assert len(traces(folder)) == 1
