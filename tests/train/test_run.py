"""The whole stage on one CPU rank, in this process."""

import errno
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.artifacts import exclusive
from pipelines.checkpoints import Checkpoint
from pipelines.errors import BusyError, CheckError, ConfigError, DataError, InterruptedRun, MachineError, PacktrainError
from tests.train.conftest import SETTINGS, STEPS
from tests.train.reference import Trained
from tests.train.runs import LLAMA, checkpoints, pipeline, rows, same, share, write_prep
from tests.train.test_audit import TRAINED
from train.loop import row
from train.metrics import Row
from train.model import build_model
from train.plan import Plan
from train.run import run

GPT2_WITH_DROPOUT = {"model_type": "gpt2", "vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


def assert_trained_as_alone(folder: Path, alone: Trained) -> None:
    """Loss, gradient and weights of every step are those of documents alone, but for the order of float32 sums."""
    found = rows(folder)
    np.testing.assert_allclose([row["loss"] for row in found], alone.losses, rtol=1e-5)
    np.testing.assert_allclose([row["grad_norm"] for row in found], alone.grad_norms, rtol=1e-4)
    weights = dict(Checkpoint(checkpoints(folder)[-1]).tensors())
    assert weights.keys() == alone.weights.keys()
    for name, values in weights.items():
        # Adam's first steps divide small gradients by their own size, which amplifies rounding.
        np.testing.assert_allclose(values, alone.weights[name].numpy(), rtol=2e-4, atol=2e-6, err_msg=name)


def undo(folder: Path, step: int) -> None:
    """Take the checkpoints after `step` back, as a kill would have prevented them."""
    for later in checkpoints(folder):
        if int(later.name.removeprefix("step-")) > step:
            (later / "manifest.json").unlink()


def written(folder: Path) -> list[tuple[str, int]]:
    """When each file of a run was written."""
    return [(path.name, path.stat().st_mtime_ns) for path in sorted((folder / "tiny" / "train").rglob("*"))]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_trains_as_documents_alone(stage: int, tmp_path: Path, shards: Path, alone: Trained) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, deepspeed={"zero_stage": stage}, **SETTINGS))
    assert_trained_as_alone(folder, alone)


def test_activation_checkpointing_changes_no_number(tmp_path: Path, shards: Path, alone: Trained) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, activation_checkpointing="full", **SETTINGS))
    assert_trained_as_alone(folder, alone)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_follows_fp32(stage: int, tmp_path: Path, shards: Path, alone: Trained) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, precision="bf16", deepspeed={"zero_stage": stage}, **SETTINGS))
    # bf16 keeps 8 bits of a number, so a loss of 3 to about 0.01.
    np.testing.assert_allclose([row["loss"] for row in rows(folder)], alone.losses, atol=0.02)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bf16_starts_from_every_bit_of_the_weights(stage: int, tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    settings = pipeline(
        folder,
        precision="bf16",
        deepspeed={"zero_stage": stage},
        max_steps=1,
        scheduler={"warmup_steps": 1, "warmup_start_factor": 0},  # so that the step changes nothing
    )
    run(settings)
    initial = build_model(settings, {"vocab_size": 48, "max_token_id": 47})
    saved = dict(Checkpoint(checkpoints(folder)[-1]).tensors())
    assert all(np.array_equal(saved[name], weight.detach().numpy()) for name, weight in initial.named_parameters())


@pytest.mark.parametrize(
    "how",
    [
        {"deepspeed": {"zero_stage": 0}},
        {"deepspeed": {"zero_stage": 1}},
        {"deepspeed": {"zero_stage": 2}},
        {"deepspeed": {"zero_stage": 3}},
        {"deepspeed": {"zero_stage": 1}, "precision": "bf16"},
        {"deepspeed": {"zero_stage": 2}, "precision": "bf16"},
        {"deepspeed": {"zero_stage": 3}, "precision": "bf16"},
        {"deepspeed": {"zero_stage": 2}, "precision": "fp16"},  # the loss scale goes on, too
        {"deepspeed": {"zero_stage": 3}, "model": {"scratch": {**LLAMA, "tie_word_embeddings": False}}},
        {"model": {"scratch": GPT2_WITH_DROPOUT}},
    ],
    ids=str,
)
def test_resumed_run_is_bitwise_the_uninterrupted_one(how: dict[str, Any], tmp_path: Path, shards: Path) -> None:
    whole, halves = share(shards, tmp_path / "whole"), share(shards, tmp_path / "halves")
    run(pipeline(whole, **SETTINGS, **how))
    run(pipeline(halves, **SETTINGS, **how))
    undo(halves, 2)
    run(pipeline(halves, **SETTINGS, **how))
    assert same(halves, whole)
    assert [row["step"] for row in rows(halves)] == list(range(1, STEPS + 1))


def test_run_resumes_under_another_zero_stage(tmp_path: Path, shards: Path, alone: Trained) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, deepspeed={"zero_stage": 3}, **SETTINGS))
    for step, stage in ((2, 0), (4, 2), (2, 3), (4, 1)):
        undo(folder, step)
        run(pipeline(folder, deepspeed={"zero_stage": stage}, **SETTINGS))
        assert_trained_as_alone(folder, alone)


def test_signal_lets_the_step_finish_and_saves(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped = share(shards, tmp_path / "whole"), share(shards, tmp_path / "stopped")
    run(pipeline(whole, **SETTINGS))

    def row_with_signal(plan: Plan, engine: Any, step: int, *given: Any, **named: Any) -> Row:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return row(plan, engine, step, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr("train.loop.row", row_with_signal)
        with pytest.raises(InterruptedRun, match="stopped by SIGTERM after step 3, saved; the same command continues"):
            run(pipeline(stopped, **SETTINGS))
    assert [path.name for path in checkpoints(stopped)] == ["step-00000002", "step-00000003"]
    run(pipeline(stopped, **SETTINGS))
    assert same(stopped, whole)


def test_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, folder = share(shards, tmp_path / "whole"), share(shards, tmp_path / "work")
    run(pipeline(whole, **SETTINGS))
    run(pipeline(folder, **SETTINGS))
    undo(folder, 4)
    damaged = folder / "tiny/train/checkpoints/step-00000004/state-00000-of-00001.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    with caplog.at_level(logging.INFO, "train"):
        run(pipeline(folder, **SETTINGS))
    assert "SHA-256 differs" in caplog.text
    assert "trying the checkpoint before it" in caplog.text
    assert "resuming after step 2 of 6" in caplog.text
    assert same(folder, whole)


def test_run_with_only_damaged_checkpoints_stops(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, **SETTINGS))
    undo(folder, 4)
    for checkpoint in checkpoints(folder):
        (checkpoint / "state-00000-of-00001.safetensors").unlink()
    with pytest.raises(CheckError, match="every checkpoint is damaged; train with --no-resume"):
        run(pipeline(folder, **SETTINGS))


def test_finished_run_does_nothing(tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, **SETTINGS))
    before = written(folder)
    with caplog.at_level(logging.INFO, "train"):
        run(pipeline(folder, **SETTINGS))
    assert "nothing to do" in caplog.text
    assert written(folder) == before


def test_no_resume_starts_over_even_with_other_settings(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, **SETTINGS))
    other = {**SETTINGS, "max_steps": 2}
    with pytest.raises(ConfigError, match=r"train.max_steps: 6 there, 2 here"):
        run(pipeline(folder, **other))
    run(pipeline(folder, **other), resume=False)
    assert [path.name for path in checkpoints(folder)] == ["step-00000002"]
    assert [row["step"] for row in rows(folder)] == [1, 2]


def test_old_checkpoints_are_removed(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, max_steps=5, checkpoint={"save_steps": 1, "save_total_limit": 2}))
    assert [path.name for path in checkpoints(folder)] == ["step-00000004", "step-00000005"]
    assert len(list((folder / "tiny/train/checkpoints").iterdir())) == 2


def test_checkpoint_has_what_the_exporter_needs(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, **SETTINGS))
    checkpoint = Checkpoint(checkpoints(folder)[-1])
    checkpoint.manifest.verify(checkpoint.folder)
    facts = checkpoint.manifest.facts
    assert facts["tied"] == {"lm_head.weight": "model.embed_tokens.weight"}
    assert facts["kinds"] == ["exp_avg", "exp_avg_sq"]
    assert facts["optimizer"] == {"step": 6.0}
    assert (facts["step"], facts["packs_consumed"], facts["epoch"]) == (6, 24, 2.4)
    assert facts["loss"] == {"first": rows(folder)[0]["loss"], "last": rows(folder)[-1]["loss"]}
    config = json.loads((checkpoint.folder / "model/config.json").read_text())
    assert {key: config[key] for key in LLAMA} == LLAMA
    assert "packtrain" not in json.dumps(config)
    assert (checkpoint.folder / "tokenizer/tokenizer.json").is_file()


def test_buffers_that_are_weights_are_saved(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, model={"scratch": {**TRAINED["deepseek_v3"], "model_type": "deepseek_v3"}}, max_steps=1))
    saved = dict(Checkpoint(checkpoints(folder)[-1]).buffers())
    assert [(name, values.shape) for name, values in saved.items()] == [
        ("model.layers.1.mlp.gate.e_score_correction_bias", (4,))
    ]


def test_metrics_have_every_key(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, **SETTINGS))
    row = rows(folder)[1]
    assert row.keys() >= {
        "step", "epoch", "loss", "loss_tokens", "tokens", "grad_norm", "lr", "step_time_s", "tokens_per_s", "mfu",
        "memory_gb", "kind",
    }  # fmt: skip
    assert (row["step"], row["epoch"], row["kind"], row["mfu"]) == (2, 0.8, "train", None)


def test_missing_prep_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no finished prep output"):
        run(pipeline(tmp_path))


def test_changed_shard_is_an_error(tmp_path: Path) -> None:
    write_prep(tmp_path / "tiny" / "prep")
    shard = tmp_path / "tiny/prep/shards/shard-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckError, match=r"shard-00001.arrow: SHA-256 differs"):
        run(pipeline(tmp_path))


def test_shards_of_another_vocabulary_are_an_error(tmp_path: Path) -> None:
    write_prep(tmp_path / "tiny" / "prep", vocabulary=64)
    with pytest.raises(DataError, match=r"token id 63 .*the model embeds 48"):
        run(pipeline(tmp_path))


def test_unwritable_work_directory_is_an_error(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    (folder / "tiny" / "train").touch()
    with pytest.raises(MachineError, match=r"tiny/train: cannot be written .*set run.work_dir elsewhere"):
        run(pipeline(folder))


def test_directory_in_use_is_an_error(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    with exclusive(folder / "tiny" / "train"), pytest.raises(BusyError, match="another packtrain process works here"):
        run(pipeline(folder))


def test_directory_in_use_is_told_before_ranks_start(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("train.run.start_ranks", lambda *_, **__: started.append(_))
    folder = share(shards, tmp_path / "work")
    with exclusive(folder / "tiny" / "train"), pytest.raises(BusyError, match="another packtrain process works here"):
        run(pipeline(folder, nproc_per_node=2), command=["train"])
    assert not started


def test_deepspeed_keys_of_ours_are_an_error(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    extra = {"data_types": {"grad_accum_dtype": "bf16"}}
    with pytest.raises(ConfigError, match=r"data_types.grad_accum_dtype: packtrain sets it; remove it"):
        run(pipeline(folder, deepspeed={"extra": extra}))


def test_keys_that_deepspeed_refuses_are_an_error(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    extra = {"zero_optimization": {"overlap_com": True}}
    with pytest.raises(ConfigError, match=r"deepspeed.extra.*: DeepSpeed refuses it: .*overlap_com"):
        run(pipeline(folder, deepspeed={"extra": extra}))


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a/metrics.jsonl"),
            r"^a/metrics.jsonl: No space left on device \(a checkpoint needs about [\d,]+ bytes in all, [\d,]+ bytes",
        ),
        (
            OSError(errno.EIO, "Input/output error"),
            r"^\S+/tiny/train: Input/output error \([\d,]+ bytes free\); look at",
        ),
        (OSError(errno.EACCES, "Permission denied", "metrics.jsonl"), "^metrics.jsonl: Permission denied"),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    failure: Exception, message: str, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    folder = share(shards, tmp_path / "work")
    monkeypatch.setattr("train.loop.row", fail)
    with pytest.raises(MachineError, match=message):
        run(pipeline(folder, **SETTINGS))


HOPELESS: dict[str, Any] = {
    "max_steps": 9,
    "optimizer": {"lr": 10**30},
    "scheduler": {"warmup_steps": 0},
    "max_grad_norm": 0,
}
"""The first step makes weights that no loss can be computed with."""


@pytest.mark.parametrize("policy", [{"on_nonfinite": "stop"}, {"error_if_nonfinite": True}], ids=str)
def test_loss_that_is_no_number_stops_the_run_if_asked_to(policy: dict[str, Any], tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    with pytest.raises(PacktrainError, match=r"step [23]: the (loss|gradient's norm) is nan; lower"):
        run(pipeline(folder, **HOPELESS, **policy))
    assert not checkpoints(folder)


def test_weights_that_are_no_numbers_stop_the_run(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    with pytest.raises(PacktrainError, match=r"step [67]: .* is nan, and so it was for 5 steps in a row; lower"):
        run(pipeline(folder, **HOPELESS))
    assert not checkpoints(folder)
    assert [(row["grad_norm"], row["skipped_steps"]) for row in rows(folder)][2:5] == [(None, 2), (None, 3), (None, 4)]
