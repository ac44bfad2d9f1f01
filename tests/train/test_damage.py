"""What changes on the disk while a training runs is found before a checkpoint says that it was trained on."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Manifest
from pipelines.checkpoints import Checkpoint
from pipelines.errors import CheckError
from pipelines.shards import read_shard
from tests.train.conftest import SETTINGS
from tests.train.runs import checkpoints, pipeline
from train import checkpoint
from train.run import SEEN, run
from train.schedule import learning_rate

SHARD = "shards/shard-00000.arrow"


@pytest.fixture
def home(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work directory with shards of its own, which nothing has looked at."""
    shutil.copytree(shards, tmp_path / "tiny" / "prep", symlinks=False)
    monkeypatch.delenv(SEEN, raising=False)
    return tmp_path


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        [was] = file.read(1)
        file.seek(at)
        file.write(bytes([was ^ 1]))


def first_token(path: Path) -> int:
    return path.read_bytes().index(read_shard(path).tokens.tobytes())


def test_damaged_shards_are_named_before_anything_is_trained(home: Path) -> None:
    shard = home / "tiny" / "prep" / SHARD
    flip(shard, first_token(shard))
    with pytest.raises(CheckError, match=r"shard-00000\.arrow: SHA-256 differs from manifest\.json"):
        run(pipeline(home, **SETTINGS))
    assert not (home / "tiny" / "train" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_shard_that_changes_under_a_training_costs_the_steps_since_the_last_checkpoint(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = home / "tiny" / "prep" / SHARD
    at = first_token(shard)

    def changing(train: Any, step: int, *given: Any) -> float:
        if step == 3:
            flip(shard, at)
        return learning_rate(train, step, *given)

    monkeypatch.setattr("train.loop.learning_rate", changing)
    settings = {**SETTINGS, "checkpoint": {"save_steps": 2}, "max_steps": 6}
    with pytest.raises(CheckError, match=r"shard-00000\.arrow: SHA-256 differs from manifest\.json"):
        run(pipeline(home, **settings))
    assert [path.name for path in checkpoints(home)] == ["step-00000002"]


@pytest.mark.slow
def test_tokenizer_that_changed_since_is_in_no_checkpoint(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prep, manifest = home / "tiny" / "prep", checkpoint._manifest

    def changing(*given: Any) -> Manifest:
        (prep / "tokenizer" / "tokenizer.json").write_text("[]")
        return manifest(*given)

    (prep / "tokenizer" / ".DS_Store").write_text("left beside the tokenizer, and not of it")
    monkeypatch.setattr(checkpoint, "_manifest", changing)
    with pytest.raises(CheckError, match=r"prep/tokenizer/tokenizer\.json: SHA-256 differs from manifest\.json"):
        run(pipeline(home, **{**SETTINGS, "checkpoint": {"save_steps": 1}, "max_steps": 2}))
    assert [path.name for path in checkpoints(home)] == ["step-00000001"]
    assert [path.name for path in (checkpoints(home)[0] / "tokenizer").iterdir()] == ["tokenizer.json"]
    [weights] = Checkpoint(checkpoints(home)[0]).manifest.facts["weights"]
    size = (checkpoints(home)[0] / weights["path"]).stat().st_size
    assert weights["size"] < size / 2, "Adam's two moments are no part of what exports look at"
