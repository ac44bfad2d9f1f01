"""The loss on held-out packs, on every layout, and that training does not notice."""

import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.checkpoints import Checkpoint
from pipelines.errors import CheckError, ConfigError
from pipelines.shards import ShardReader, read_shard
from tests.train.ranks import run_on_ranks
from tests.train.runs import LLAMA, checkpoints, pipeline, rows, share, state, write_prep
from train.run import run
from train.schedule import learning_rate

HELD_OUT = 5
SETTINGS: dict[str, Any] = {"max_steps": 3, "optimizer": {"lr": Decimal("0.01")}}
EVAL = {"eval": {"steps": 2}}


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prep directory of 10 packs, and 5 held out."""
    folder = tmp_path_factory.mktemp("divided") / "prep"
    write_prep(folder, held_out=HELD_OUT)
    return folder


def losses(folder: Path, kind: str) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in rows(folder) if row["kind"] == kind]


def alone(folder: Path) -> tuple[float, int]:
    """Mean loss of the last checkpoint over every held-out document by itself, and how many targets that is of."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA), attn_implementation="eager").eval()
    weights = {name: torch.from_numpy(values) for name, values in Checkpoint(checkpoints(folder)[-1]).tensors()}
    model.load_state_dict(weights, strict=False)
    total, count = 0.0, 0
    for pack in ShardReader(folder / "tiny" / "prep", "eval"):
        for start, end in zip(pack.cu_seqlens[:-1], pack.cu_seqlens[1:], strict=True):
            ids = torch.from_numpy(pack.tokens[start:end].astype(np.int64))[None]
            labels = torch.from_numpy(pack.labels[start:end])
            with torch.no_grad():
                logits = model(ids).logits[0]
            total += float(F.cross_entropy(logits[:-1], labels[1:], reduction="sum")) if len(labels) > 1 else 0.0
            count += int((labels[1:] >= 0).sum())
    return total / count, count


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_training_is_bitwise_the_same_with_and_without_evaluation(stage: int, tmp_path: Path, divided: Path) -> None:
    without, with_ = share(divided, tmp_path / "without"), share(divided, tmp_path / "with")
    how = {"deepspeed": {"zero_stage": stage}, **SETTINGS}
    run(pipeline(without, **how))
    run(pipeline(with_, **how, **EVAL))
    assert losses(with_, "train") == losses(without, "train")
    one, other = state(with_), state(without)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)
    assert [step for step, _ in losses(with_, "eval")] == [2, 3]
    expected, count = alone(with_)
    found = rows(with_)[-1]
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
    assert found["loss_tokens"] == count


@pytest.mark.slow
def test_held_out_packs_that_change_give_no_loss(
    tmp_path: Path, divided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prep = tmp_path / "tiny" / "prep"
    shutil.copytree(divided, prep, symlinks=False)
    shard = prep / "eval" / "shards" / "shard-00000.arrow"
    content = shard.read_bytes()
    first = content.index(read_shard(shard).tokens.tobytes())

    def changing(train: Any, step: int, *given: Any) -> float:
        if step == 2:
            with shard.open("r+b") as file:
                file.seek(first)
                file.write(bytes([content[first] ^ 1]))
        return learning_rate(train, step, *given)

    monkeypatch.setattr("train.loop.learning_rate", changing)
    with pytest.raises(CheckError, match=r"eval/shards/shard-00000\.arrow: SHA-256 differs"):
        run(pipeline(tmp_path, **SETTINGS, **EVAL))
    assert [step for step, _ in losses(tmp_path, "eval")] == [2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "how"),
    [
        (2, {"deepspeed": {"zero_stage": 0}}),
        (3, {"deepspeed": {"zero_stage": 3}}),  # 5 packs on 3 ranks: one has a call with nothing
        (4, {"deepspeed": {"zero_stage": 2}, "parallel": {"sequence_parallel_size": 2}}),
    ],
    ids=str,
)
def test_every_layout_finds_the_loss_of_documents_alone(
    ranks: int, how: dict[str, Any], tmp_path: Path, divided: Path
) -> None:
    folder = share(divided, tmp_path / "work")
    assert run_on_ranks(ranks, run, pipeline(folder, **SETTINGS, **EVAL, **how)) == [0] * ranks
    expected, count = alone(folder)
    found = rows(folder)[-1]
    assert (found["kind"], found["loss_tokens"]) == ("eval", count)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)


def test_resumed_run_has_each_evaluation_once(tmp_path: Path, divided: Path) -> None:
    folder = share(divided, tmp_path / "work")
    settings = pipeline(folder, **SETTINGS, **EVAL, checkpoint={"save_steps": 2, "save_total_limit": -1})
    run(settings)
    whole = losses(folder, "eval")
    (checkpoints(folder)[-1] / "manifest.json").unlink()
    run(settings)
    assert losses(folder, "eval") == whole


def test_evaluation_of_nothing_held_out_is_refused(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    with pytest.raises(ConfigError, match=r"train.eval.*: prep held nothing out to evaluate on; set prep\.eval"):
        run(pipeline(folder, **SETTINGS, **EVAL))
