"""`packtrain verify A B` of two trainings names what was set otherwise, the first step that shows it, and a tensor."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipelines.divergence import compare
from tests.train.conftest import SETTINGS
from tests.train.runs import pipeline, share
from train.run import run

TWO_STEPS: dict[str, Any] = {**SETTINGS, "max_steps": 2}


@pytest.mark.slow
def test_the_first_difference_of_two_trainings_is_named(tmp_path: Path, shards: Path) -> None:
    homes = {name: share(shards, tmp_path / name) for name in ("a", "same", "rate", "seed")}
    for name, home in homes.items():
        made = pipeline(home, **TWO_STEPS)
        if name == "rate":
            made = pipeline(home, **{**TWO_STEPS, "optimizer": {"lr": Decimal("0.02")}})
        if name == "seed":
            made = made.model_copy(update={"run": made.run.model_copy(update={"seed": 8})})
        run(made)
    found = {name: compare(homes["a"] / "tiny", home / "tiny").divergences for name, home in homes.items()}
    assert found["a"] == found["same"] == []
    first = {name: {one.what: one.where for one in differences} for name, differences in found.items()}
    assert first["rate"]["setting"] == "train.optimizer.lr"
    assert first["rate"]["step"] == "1 lr"
    assert first["rate"]["tensor"].startswith("model.embed_tokens.weight element ")
    assert first["seed"]["setting"].endswith("seed")
    assert first["seed"]["step"] == "1 loss"
