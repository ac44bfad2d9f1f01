"""The learning rate of every step."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.schema import Train
from tests.train.runs import pipeline
from train.schedule import epoch_start, learning_rate, warmup_steps

PACKS = 40


def table(**scheduler: Any) -> Train:
    train = pipeline(Path(), optimizer={"lr": 1}, scheduler=scheduler).train
    assert train is not None
    return train


def rates(train: Train, steps: int) -> list[float]:
    return [learning_rate(train, step, steps, PACKS) for step in range(steps)]


def test_warm_up_rises_from_its_start_to_the_peak() -> None:
    train = table(warmup_steps=4, warmup_start_factor=Decimal("0.2"))
    assert rates(train, 100)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(("shape", "middle"), [("cosine", 0.55), ("linear", 0.55), ("wsd", 1.0)])
def test_shape_ends_at_min_lr_on_the_last_step(shape: str, middle: float) -> None:
    found = rates(table(type=shape, warmup_steps=0, min_lr=Decimal("0.1")), 101)
    assert [found[0], found[50], found[100]] == pytest.approx([1.0, middle, 0.1])


def test_constant_stays_at_the_peak() -> None:
    assert set(rates(table(type="constant", warmup_steps=0), 9)) == {1.0}


def test_wsd_falls_in_a_line_over_the_last_steps() -> None:
    found = rates(table(type="wsd", warmup_steps=0, decay_ratio=Decimal("0.4")), 11)
    assert found == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_rate_by_epoch_is_that_of_the_epochs_first_step() -> None:  # 10 steps of 4 packs are an epoch of 40
    steps = rates(table(warmup_steps=0), 30)
    epochs = rates(table(warmup_steps=0, interval="epoch"), 30)
    assert epochs == [steps[step // 10 * 10] for step in range(30)]


def test_warm_up_goes_by_step_also_by_epoch() -> None:
    steps = rates(table(warmup_steps=12), 30)
    epochs = rates(table(warmup_steps=12, interval="epoch"), 30)
    assert epochs == steps[:12] + [1.0] * 8 + [steps[20]] * 10


@pytest.mark.parametrize("size", [1, 3, 4, 7, 100])
def test_epoch_begins_with_a_step_of_its_own(size: int) -> None:
    for step in range(200):
        start = epoch_start(step, size, PACKS)
        assert start * size // PACKS == step * size // PACKS
        assert start == 0 or (start - 1) * size // PACKS < step * size // PACKS


def test_warmup_ratio_counts_of_all_steps() -> None:
    assert warmup_steps(table(warmup_ratio=Decimal("0.03")), 50) == 2
    assert warmup_steps(table(warmup_ratio=0), 50) == 0


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("shape", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_shortest_runs_have_a_rate_for_every_step(warmup: int, total: int, shape: str, interval: str) -> None:
    assert all(0 <= rate <= 1 for rate in rates(table(type=shape, warmup_steps=warmup, interval=interval), total))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"decay_ratio": Decimal("0.2")}, 'is for type = "wsd", not "cosine"'),
        ({"type": "constant", "interval": "epoch"}, 'has no effect with type = "constant"'),
        ({"type": "constant", "min_lr": 1}, 'has no effect with type = "constant"'),
    ],
    ids=str,
)
def test_key_without_effect_is_an_error(scheduler: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        table(**scheduler)
