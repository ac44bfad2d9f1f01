"""Whether a training fits: what is computed of a pipeline, and what is found where it does not."""

import json
import shutil
import struct
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Manifest
from pipelines.checkpoints import FORMAT_VERSION
from pipelines.config import load
from pipelines.findings import Report
from tests.least import least
from tests.train.runs import LLAMA, write_prep
from train.fit import fit, weight_problems
from train.forecast import Assumed

TEXT = f"""{least(40)}
[model]
name_or_path = "model"
[train]
global_batch_size = 4
nproc_per_node = 2
optimizer.lr = 1e-3
"""


def write_weights(path: Path, size: int = 4) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA))
    write_weights(tmp_path / "model" / "model.safetensors")
    prep = tmp_path / "work" / "tiny" / "prep"
    write_prep(prep)
    manifest = Manifest.read(prep)
    assert manifest is not None
    counts = {"tokens": 380, "loss_tokens": 200, "samples": 50}
    replace(manifest, facts={**manifest.facts, **counts}).write(prep)
    return tmp_path


def fitted(folder: Path, *overrides: str, assumed: Assumed | None = None, input_bytes: int = 0) -> Report:
    (folder / "r.toml").write_text(TEXT)
    return fit(load(folder / "r.toml", overrides), assumed or Assumed(), input_bytes=input_bytes)


def test_what_fits_is_told_in_words(folder: Path) -> None:
    report = fitted(folder)
    assert report.findings == []
    assert report.facts["batch"] == (
        "4 packs a step, at most 160 tokens: 2 ranks (train.nproc_per_node), 2 micro-batches each"
    )
    assert report.facts["steps"] == "2"
    assert report.facts["disk"].startswith("about 0.")
    shutil.rmtree(folder / "work")
    without_prep = fitted(folder, input_bytes=1 << 30)
    assert "shards, and tokens while they are prepared 2.0 GB" in without_prep.facts["disk"]


@pytest.mark.parametrize(
    ("overrides", "assumed", "kind", "words"),
    [
        (["train.global_batch_size=3"], {}, "batch-uneven", "1 of them wait in the last micro-batch"),
        (["train.global_batch_size=1"], {}, "ranks-idle", "2 groups of ranks share 1 packs, so 1 of them"),
        (["train.parallel.sequence_parallel_size=4"], {}, "config", "does not divide the 2 ranks"),
        (["train.global_batch_size=99"], {}, "config", "do not fill one optimizer step"),
        ([], {"gpu_memory": 1000}, "memory", "do not fit the 0.0 MB of its GPU"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_found(
    folder: Path, overrides: list[str], assumed: dict[str, Any], kind: str, words: str
) -> None:
    [found] = fitted(folder, *overrides, assumed=Assumed(**assumed)).findings
    assert (found.kind, words in found.text) == (kind, True), found


def test_a_disk_that_is_too_small_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 0, 10))
    [found] = fitted(folder).findings
    assert (found.kind, found.exit_code) == ("disk", 5)
    assert "checkpoints, one more while saving" in found.text


def test_weights_that_are_not_whole_are_found(folder: Path) -> None:
    model = folder / "model"
    assert [*weight_problems(model)] == []
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-1])
    assert "header says" in next(weight_problems(model))
    assert [one.kind for one in fitted(folder).findings] == ["weights"]
    (model / "model.safetensors").write_bytes(b"no")
    assert [*weight_problems(model)] == ["model.safetensors is no safetensors file, or cut off; fetch it again"]
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"{{{{....")
    assert [*weight_problems(model)] == ["model.safetensors has a damaged header; fetch it again"]
    (model / "model.safetensors").unlink()
    assert [*weight_problems(model)] == ["no weights in it (*.safetensors); is the download complete?"]
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    write_weights(model / "model-1.safetensors")
    assert [*weight_problems(model)] == ["model-2.safetensors is missing, which model.safetensors.index.json names"]
    (model / "model.safetensors.index.json").write_text("{")
    assert next(weight_problems(model)).startswith("its model.safetensors.index.json is damaged (Expecting")


def test_without_a_gpu_here_the_ranks_are_as_few_as_can_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.fit.visible_gpus", lambda: 0)
    monkeypatch.setattr("train.forecast.visible_gpus", lambda: 0)
    auto = ['train.nproc_per_node="auto"', "train.parallel.sequence_parallel_size=4"]
    report = fitted(folder, *auto)
    assert report.findings == []
    assert "4 ranks (no GPU here; --ranks says how many there will be), 4 to a pack" in report.facts["batch"]
    [found] = fitted(folder, *auto, assumed=Assumed(ranks=6)).findings
    assert "does not divide the 6 ranks" in found.text


def test_a_checkpoint_that_training_would_refuse_is_found(folder: Path) -> None:
    [found] = fitted(folder, 'train.load_from="model"').findings
    assert "not a finished checkpoint; name a model directory in model.name_or_path" in found.text
    step = folder / "work" / "tiny" / "train" / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    Manifest("checkpoint", FORMAT_VERSION, "x", {"prep": "other"}, [], {"step": 1, "run": "other"}).write(step)
    [found] = fitted(folder).findings
    assert "from a run with other settings (other data" in found.text
    assert fitted(folder, 'train.resume="none"').findings == []
