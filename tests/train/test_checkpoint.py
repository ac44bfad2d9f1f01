"""What a checkpoint's files hold, and what a run does with them."""

import logging
import os
import shutil
import signal
from dataclasses import replace
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from pipelines.artifacts import FileRecord, Manifest, digest_file, identity
from pipelines.checkpoints import FORMAT_VERSION, Checkpoint, fragment_key
from pipelines.errors import CheckError, ConfigError, DataError
from pipelines.schema import Pipeline
from tests.train.conftest import SETTINGS
from tests.train.ranks import run_on_ranks
from tests.train.runs import LLAMA, checkpoints, pipeline, rows, same, share, write_prep
from tests.train.test_run import undo
from train.checkpoint import write_safetensors
from train.loop import is_due, row
from train.plan import Plan
from train.run import run


def test_file_reads_back_with_safetensors_and_has_the_digest_said(tmp_path: Path) -> None:
    tensors = {
        "parameter/w/0": torch.arange(6.0)[1:4],
        "exp_avg/w/3": torch.zeros(0),
        "buffer/n/0": torch.tensor([[1, 2], [3, 4]]),
    }
    last = {key: tensors[key] for key in list(tensors)[-1:]}
    first = {key: tensor for key, tensor in tensors.items() if key not in last}
    path = tmp_path / "x.safetensors"
    record, beginning = write_safetensors(path, first, last)
    assert record == FileRecord.of(tmp_path, path)
    assert beginning == FileRecord(path.name, record.size - 4 * 8, digest_file(path, first=record.size - 4 * 8))
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert all(torch.equal(file.get_tensor(key), tensor) for key, tensor in tensors.items())


def checkpoint(folder: Path, cuts: list[int]) -> Checkpoint:
    """A checkpoint of one parameter of 12 elements, cut at these places."""
    values = torch.arange(12.0)
    pieces = zip([0, *cuts], [*cuts, 12], strict=True)
    records = [
        write_safetensors(
            folder / f"state-{rank:05d}-of-{len(cuts) + 1:05d}.safetensors",
            {fragment_key("parameter", "w", start): values[start:stop]},
        )[0]
        for rank, (start, stop) in enumerate(pieces)
    ]
    facts = {"parameters": {"w": [3, 4]}, "buffers": {}}
    Manifest("checkpoint", FORMAT_VERSION, identity(cuts), {}, records, facts).write(folder)
    return Checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"kind": "hf"}, "not a finished checkpoint"),
        ({"format_version": 2}, "checkpoint of format 2, this version reads"),
    ],
)
def test_another_artefact_and_another_format_are_no_checkpoint(
    tmp_path: Path, change: dict[str, Any], finding: str
) -> None:
    replace(checkpoint(tmp_path, []).manifest, **change).write(tmp_path)
    with pytest.raises(DataError, match=finding):
        Checkpoint(tmp_path)


def test_numbers_of_another_format_are_no_fragment(tmp_path: Path) -> None:
    name = "state-00000-of-00001.safetensors"
    record, _ = write_safetensors(tmp_path / name, {fragment_key("parameter", "w", 0): torch.arange(12)})
    facts = {"parameters": {"w": [12]}, "buffers": {}}
    Manifest("checkpoint", FORMAT_VERSION, "1", {}, [record], facts).write(tmp_path)
    with pytest.raises(CheckError, match=rf"{name}: parameter/w/0 as I64 is no fragment"):
        Checkpoint(tmp_path)


def test_weights_are_known_to_be_whole_without_the_optimizers_state(tmp_path: Path) -> None:
    name = "state-00000-of-00001.safetensors"
    values, state = torch.arange(12.0), {fragment_key("exp_avg", "w", 0): torch.ones(12)}
    record, beginning = write_safetensors(tmp_path / name, {fragment_key("parameter", "w", 0): values}, state)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    records = [FileRecord.of(tmp_path, tmp_path / "model" / "config.json"), record]
    facts = {"parameters": {"w": [12]}, "buffers": {}, "weights": [vars(beginning)]}
    sound = Manifest("checkpoint", FORMAT_VERSION, "1", {}, records, facts)
    former = Manifest("checkpoint", FORMAT_VERSION, "1", {}, records, {**facts, "weights": []})
    content = (tmp_path / name).read_bytes()
    for at, is_found in ((9, True), (beginning.size - 1, True), (beginning.size, False), (record.size - 1, False)):
        damaged = bytearray(content)
        damaged[at] ^= 1
        (tmp_path / name).write_bytes(damaged)
        for manifest, finds in ((sound, is_found), (former, True)):
            manifest.write(tmp_path)
            (tmp_path / name).write_bytes(content)
            checkpoint = Checkpoint(tmp_path)
            checkpoint.verify()
            (tmp_path / name).write_bytes(damaged)
            if finds:
                with pytest.raises(CheckError, match=rf"{name}: SHA-256 differs"):
                    checkpoint.verify()
            else:
                checkpoint.verify()
                assert checkpoint.read("parameter", "w").tolist() == values.tolist()
    sound.write(tmp_path)
    (tmp_path / name).write_bytes(content)
    checkpoint = Checkpoint(tmp_path)
    (tmp_path / name).write_bytes(content[:-1])
    with pytest.raises(CheckError, match=rf"{name}: .* bytes, manifest\.json says"):
        checkpoint.verify()
    (tmp_path / name).write_bytes(content)
    (tmp_path / "model" / "config.json").write_text("[]")
    with pytest.raises(CheckError, match=r"config\.json: SHA-256 differs"):
        checkpoint.verify()
    with pytest.raises(CheckError, match=r"config\.json: SHA-256 differs"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("cuts", [[], [6], [1, 11], [4, 5, 6]])
def test_any_stretch_reads_the_same_however_it_was_cut(cuts: list[int], tmp_path: Path) -> None:
    found = checkpoint(tmp_path, cuts)
    for start in range(12):
        for stop in range(start, 13):
            assert found.read("parameter", "w", start, stop).tolist() == list(range(start, stop))
    ((name, whole),) = found.tensors()
    assert (name, whole.shape) == ("w", (3, 4))


def test_hole_in_a_tensor_is_an_error(tmp_path: Path) -> None:
    checkpoint(tmp_path, [4, 8])
    (tmp_path / "state-00001-of-00003.safetensors").unlink()
    write_safetensors(tmp_path / "state-00001-of-00003.safetensors", {})
    with pytest.raises(CheckError, match="parameter of w holds 4 of 12 elements in one piece"):
        Checkpoint(tmp_path).read("parameter", "w")


KILLED: dict[str, tuple[str, str, int, list[int]]] = {
    "while training": ("train.loop", "row", 5, [2, 4]),
    "before the manifest": ("train.checkpoint", "_manifest", 2, [2]),
    "before the rename": ("train.checkpoint", "commit_directory", 2, [2]),
    "before the cleanup": ("train.checkpoint", "_remove_old", 2, [2, 4]),
}
"""Where: the module and its function, at which of whose calls the process is killed, and what is saved by then."""


def run_until_killed(each: Pipeline, module: str, name: str, call: int) -> None:
    place, calls = import_module(module), []
    step = getattr(place, name)

    def stop(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return os.kill(os.getpid(), signal.SIGKILL) if len(calls) == call else step(*given, **named)

    setattr(place, name, stop)
    run(each)


@pytest.mark.slow
@pytest.mark.parametrize("where", KILLED)
def test_killed_run_continues_as_if_it_had_not_been(where: str, tmp_path: Path, shards: Path) -> None:
    whole, killed = share(shards, tmp_path / "whole"), share(shards, tmp_path / "killed")
    module, name, call, saved = KILLED[where]
    assert run_on_ranks(1, run_until_killed, pipeline(killed, **SETTINGS), module, name, call) == [-signal.SIGKILL]
    assert [Checkpoint(path).step for path in checkpoints(killed)] == saved
    run(pipeline(whole, **SETTINGS))
    run(pipeline(killed, **SETTINGS))
    assert same(killed, whole)
    assert not list((killed / "tiny/train/checkpoints").glob(".*")), "what was half written is gone"


def test_run_resumes_from_the_checkpoint_that_is_named(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, folder = share(shards, tmp_path / "whole"), share(shards, tmp_path / "work")
    run(pipeline(whole, **SETTINGS))
    run(pipeline(folder, **SETTINGS))
    moved = shutil.copytree(checkpoints(folder)[0], tmp_path / "elsewhere")
    with caplog.at_level(logging.INFO, "train"):
        run(pipeline(folder, resume=moved, **SETTINGS))
    assert "removing" in caplog.text
    assert "step-00000006" in caplog.text
    assert "resuming after step 2 of 6" in caplog.text
    assert same(folder, whole)
    with caplog.at_level(logging.INFO, "train"):
        run(pipeline(folder, resume=moved, **SETTINGS))  # as when a scheduler starts it again
    assert "nothing to do" in caplog.text
    assert len(checkpoints(folder)) == 3
    with pytest.raises(ConfigError, match=r'train.resume = ".*tiny": not a finished checkpoint; name a step-'):
        run(pipeline(folder, resume=folder / "tiny", **SETTINGS))
    with pytest.raises(ConfigError, match=r"from a run with other settings \(train.max_grad_norm: 1.0 there, 0.5 here"):
        run(pipeline(folder, resume=moved, max_grad_norm=Decimal("0.5"), **SETTINGS))


def test_command_that_names_a_checkpoint_goes_on_when_that_one_was_too_old_to_keep(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, **SETTINGS))
    start = checkpoints(folder)[0]
    one = {**SETTINGS, "checkpoint": {"save_steps": 2, "save_total_limit": 1}}
    run(pipeline(folder, resume=start, **one))
    assert [Checkpoint(path).step for path in checkpoints(folder)] == [6]
    with caplog.at_level(logging.INFO, "train"):
        run(pipeline(folder, resume=start, **one))
    assert "nothing to do" in caplog.text
    with pytest.raises(ConfigError, match="not a finished checkpoint"):
        run(pipeline(folder, resume=start.with_name("step-00000004"), **one))


def test_no_checkpoint_of_another_run_is_removed_or_started_from_where_it_lies(tmp_path: Path, shards: Path) -> None:
    folder, other = share(shards, tmp_path / "work"), share(shards, tmp_path / "other")
    run(pipeline(folder, **SETTINGS))
    start, kept = checkpoints(folder)[0], checkpoints(folder)
    changed = {**SETTINGS, "max_grad_norm": Decimal("0.5")}
    with pytest.raises(ConfigError, match=r"train.load_from = .*: in the directory of this very run.*another run.name"):
        run(pipeline(folder, load_from=start, **changed), resume=False)
    run(pipeline(other, **changed))
    with pytest.raises(ConfigError, match=r"step-00000002: from a run with other settings \(train.max_grad_norm"):
        run(pipeline(folder, resume=checkpoints(other)[0], **changed))
    assert checkpoints(folder) == kept


def test_cut_last_checkpoint_is_trained_again_and_costs_no_sound_one(tmp_path: Path, shards: Path) -> None:
    whole, folder = share(shards, tmp_path / "whole"), share(shards, tmp_path / "work")
    run(pipeline(whole, **SETTINGS))
    run(pipeline(folder, **SETTINGS))
    cut = checkpoints(folder)[-1] / "state-00000-of-00001.safetensors"
    cut.write_bytes(cut.read_bytes()[:100])
    sound: list[list[int]] = []

    def row_and_look(*given: Any, **named: Any) -> Any:
        sound.append([Checkpoint(path).step for path in checkpoints(folder)[:-1]])
        return row(*given, **named)

    often = {**SETTINGS, "checkpoint": {"save_steps": 1, "save_total_limit": 1}}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("train.loop.row", row_and_look)
        run(pipeline(folder, **often))
    assert sound == [[2, 4], [5]]
    assert same(folder, whole)


def test_checkpoints_of_weights_alone_are_not_resumed_but_started_from(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, folder, other = (share(shards, tmp_path / name) for name in ("whole", "work", "other"))
    alone = {**SETTINGS, "checkpoint": {**SETTINGS["checkpoint"], "save_optimizer": False}}
    run(pipeline(whole, **SETTINGS))
    with caplog.at_level(logging.WARNING, "train"):
        run(pipeline(folder, **alone))
    assert "checkpoints hold weights alone, no run can resume" in caplog.text
    saved, full = Checkpoint(checkpoints(folder)[-1]), Checkpoint(checkpoints(whole)[-1])
    assert (saved.kinds(), saved.is_resumable, full.is_resumable) == (["parameter"], False, True)
    size = [sum(record.size for record in each.manifest.files) for each in (saved, full)]
    assert size[0] < size[1] / 2
    expected = dict(full.tensors())
    assert all(np.array_equal(values, expected[name]) for name, values in saved.tensors())
    undo(folder, 4)
    message = r"step-00000004: holds weights alone .*--no-resume to start over, or start another run .*train.load_from"
    with pytest.raises(ConfigError, match=message):
        run(pipeline(folder, **alone))
    with pytest.raises(ConfigError, match=message):
        run(pipeline(folder, resume=checkpoints(folder)[-1], **alone))
    start = checkpoints(folder)[-1]
    expected = dict(Checkpoint(start).tensors())
    for how in ({"zero_stage": 3}, {"zero_stage": 2}):
        run(pipeline(other, load_from=start, deepspeed=how, **FIRST_STEP_CHANGES_NOTHING), resume=False)
        found = dict(Checkpoint(checkpoints(other)[-1]).tensors())
        assert all(np.array_equal(values, expected[name]) for name, values in found.items())
    assert [row["step"] for row in rows(other)] == [1]


FIRST_STEP_CHANGES_NOTHING: dict[str, Any] = {
    "precision": "bf16",
    "max_steps": 1,
    "scheduler": {"warmup_steps": 1, "warmup_start_factor": 0},
}


def test_weights_to_start_from_are_part_of_the_run_wherever_they_lie(tmp_path: Path, shards: Path) -> None:
    folder, other = share(shards, tmp_path / "work"), share(shards, tmp_path / "other")
    run(pipeline(folder, **SETTINGS))
    moved = shutil.copytree(checkpoints(folder)[0], tmp_path / "elsewhere")

    def of(start: Path | None) -> str:
        return Plan.of(pipeline(other, load_from=start, **SETTINGS)).identity

    assert of(checkpoints(folder)[0]) == of(moved)
    assert len({of(None), of(moved), of(checkpoints(folder)[1])}) == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {**LLAMA, "vocab_size": 64},
            r"another vocabulary: model.embed_tokens.\S+ is \(48, 32\) there, \(64, 32\) h",
        ),
        (
            {**LLAMA, "hidden_size": 64},
            r"another model: model.embed_tokens.\S+ is \(48, 32\) there, \(48, 64\) here",
        ),
        ({**LLAMA, "num_hidden_layers": 3}, r"another model: model.layers.2.\S+ is None there"),
    ],
    ids=["vocabulary", "width", "depth"],
)
def test_weights_of_another_model_are_an_error(
    model: dict[str, Any], message: str, tmp_path: Path, shards: Path
) -> None:
    folder, other = share(shards, tmp_path / "work"), share(shards, tmp_path / "other")
    run(pipeline(folder, **FIRST_STEP_CHANGES_NOTHING))
    with pytest.raises(CheckError, match=message):
        run(pipeline(other, model={"scratch": model}, load_from=checkpoints(folder)[0]))


def test_what_is_no_checkpoint_cannot_be_started_from(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    with pytest.raises(ConfigError, match=r'train.load_from = ".*tiny": not a finished checkpoint; name a step-\* dir'):
        run(pipeline(folder, load_from=folder / "tiny"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"not a finished checkpoint; name a model directory in model\.name_or_path"):
        run(pipeline(folder, load_from=tmp_path))


def test_run_of_which_no_manifest_can_be_read_stops(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, **SETTINGS))
    for checkpoint in checkpoints(folder):
        (checkpoint / "manifest.json").write_text("{")
    with pytest.raises(CheckError, match="every checkpoint is damaged; train with --no-resume"):
        run(pipeline(folder, **SETTINGS))


def test_checkpoints_of_other_data_are_named_as_such(tmp_path: Path) -> None:
    write_prep(tmp_path / "tiny" / "prep")
    run(pipeline(tmp_path, **FIRST_STEP_CHANGES_NOTHING))
    shutil.rmtree(tmp_path / "tiny" / "prep")
    write_prep(tmp_path / "tiny" / "prep", seed=1)
    with pytest.raises(ConfigError, match=r"other settings \(other data: prep output \w{12} there, \w{12} here\)"):
        run(pipeline(tmp_path, **FIRST_STEP_CHANGES_NOTHING))


def test_epochs_end_with_a_checkpoint(tmp_path: Path, shards: Path) -> None:
    table = {"save_steps": 0, "save_epochs": 1}
    plan = Plan.of(pipeline(share(shards, tmp_path), max_steps=9, checkpoint=table))
    # 10 packs, 4 a step: an epoch ends within steps 3, 5 and 8.
    assert [step for step in range(1, 10) if is_due(plan, step)] == [3, 5, 8, 9]
    plan = Plan.of(pipeline(tmp_path, max_steps=9, checkpoint={**table, "save_epochs": 2, "save_steps": 4}))
    assert [step for step in range(1, 10) if is_due(plan, step)] == [4, 5, 8, 9]
