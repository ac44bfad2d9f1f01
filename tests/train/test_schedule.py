"""The learning rate of every step."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipelines.schema import Train
from tests.train.runs import pipeline
from train.schedule import learning_rate, warmup_steps


def table(**scheduler: Any) -> Train:
    train = pipeline(Path(), optimizer={"lr": 1}, scheduler=scheduler).train
    assert train is not None
    return train


def test_warm_up_rises_from_its_start_to_the_peak() -> None:
    train = table(warmup_steps=4, warmup_start_factor=Decimal("0.2"))
    assert [learning_rate(train, step, 100) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(("shape", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_shape_ends_at_min_lr_on_the_last_step(shape: str, middle: float) -> None:
    train = table(type=shape, warmup_steps=0, min_lr=Decimal("0.1"))
    assert learning_rate(train, 0, 101) == 1.0
    assert learning_rate(train, 50, 101) == pytest.approx(middle)
    assert learning_rate(train, 100, 101) == pytest.approx(1.0 if shape == "constant" else 0.1)


def test_warmup_ratio_counts_of_all_steps() -> None:
    assert warmup_steps(table(warmup_ratio=Decimal("0.03")), 50) == 2
    assert warmup_steps(table(warmup_ratio=0), 50) == 0


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_shortest_runs_have_a_rate_for_every_step(total: int, warmup: int) -> None:
    rates = [learning_rate(table(warmup_steps=warmup), step, total) for step in range(total)]
    assert all(0 <= rate <= 1 for rate in rates)
