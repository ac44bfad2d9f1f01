"""The order of packs over a run's epochs."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.elsewhere import StaticBatchSampler, default_sampler
from tests.train.runs import pipeline, rows, share, write_prep
from train.batches import Batches
from train.order import PackOrder, epoch_packs
from train.plan import Plan
from train.run import run

PACKS = 10


def test_each_epoch_has_every_pack_once_in_its_own_order() -> None:
    order = PackOrder(PACKS, shuffle="hash", seed=3)
    epochs = [[order[epoch * PACKS + at] for at in range(PACKS)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(PACKS)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [order[at] for at in range(PACKS)] == epochs[0], "seeking back gives the same order"
    assert [PackOrder(PACKS, shuffle="none", seed=3)[at] for at in (0, 9, 10, 25)] == [0, 9, 0, 5]


def test_order_never_changes() -> None:
    # A change would make every run under way resume into another order.
    order = PackOrder(PACKS, shuffle="hash", seed=1024)
    assert [order[at] for at in range(2 * PACKS)] == PINNED


PINNED = [7, 8, 4, 3, 1, 6, 9, 0, 2, 5, 7, 9, 1, 0, 8, 5, 2, 3, 6, 4]


@given(packs=st.integers(1, 30), ranks=st.integers(1, 6), epochs=st.integers(1, 3), seed=st.integers(0, 99))
def test_ranks_take_what_the_sampler_of_xtuner_gives_them(packs: int, ranks: int, epochs: int, seed: int) -> None:
    order = PackOrder(packs, shuffle="xtuner", seed=seed, global_batch_size=ranks)
    length = epoch_packs(packs, "xtuner", ranks)
    found = [order[position] for position in range(epochs * length)]
    for rank in range(ranks):
        theirs = [default_sampler(packs, seed=seed, epoch=epoch, rank=rank, ranks=ranks) for epoch in range(epochs)]
        assert found[rank::ranks] == [pack for epoch in theirs for pack in epoch]


@given(ranks=st.integers(1, 4), accumulation=st.integers(1, 4), steps=st.integers(1, 5), epoch=st.integers(0, 2))
def test_accumulated_steps_are_those_of_xtuner_where_they_fill_its_epoch(
    ranks: int, accumulation: int, steps: int, epoch: int
) -> None:
    size = ranks * accumulation
    packs = steps * size
    order = PackOrder(packs, shuffle="xtuner", seed=5, global_batch_size=size)
    for rank in range(ranks):
        theirs = default_sampler(packs, seed=5, epoch=epoch, rank=rank, ranks=ranks)
        for step in range(steps):
            first = epoch * packs + step * size
            mine = [order[position] for position in range(first, first + size)][rank::ranks]
            assert mine == theirs[step * accumulation :][:accumulation]


def test_epoch_of_xtuner_ends_with_a_whole_step_that_repeats_its_first_packs() -> None:
    order = PackOrder(PACKS, shuffle="xtuner", seed=0, global_batch_size=8)
    first = [order[position] for position in range(16)]
    assert first[10:] == first[:6]
    assert sorted(order[position] for position in range(16, 26)) == list(range(PACKS))
    assert [order[position] for position in range(16)] == first, "seeking back gives the same order"


@given(
    ranks=st.integers(1, 4), micro_num=st.integers(1, 4), steps=st.integers(1, 4), rest=st.integers(0, 3),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_steps_have_the_packs_that_internevo_and_the_intern_repo_sampler_give_them(
    ranks: int, micro_num: int, steps: int, rest: int, seed: int
) -> None:
    size = ranks * micro_num
    packs = steps * size + min(rest, size - 1)
    for shuffle in ("internevo", "internrepo"):
        order = PackOrder(packs, shuffle=shuffle, seed=seed, global_batch_size=size)
        length = epoch_packs(packs, shuffle, size)
        assert length == steps * size
        sampler = StaticBatchSampler(packs, seed, micro_num, ranks)
        for epoch in range(3):
            if shuffle == "internrepo":  # its stream begins anew in each epoch
                sampler = StaticBatchSampler(packs, seed + epoch, micro_num, ranks)
            theirs = sampler.epoch()
            for step in range(steps):
                mine = [order[epoch * length + step * size + at] for at in range(size)]
                assert [mine[rank::ranks] for rank in range(ranks)] == [theirs[step][rank] for rank in range(ranks)]


def test_the_order_has_a_seed_of_its_own_where_one_is_given() -> None:
    packs = [*range(12)]

    def steps(seed: int, shuffle_seed: int | None) -> list[int]:
        batches = Batches(
            packs,  # type: ignore[arg-type]  # only their number counts
            global_batch_size=4, shuffle="internevo", seed=seed, shuffle_seed=shuffle_seed,
        )  # fmt: skip
        return [batches.index(position) for position in range(12)]

    assert steps(1024, 7) == steps(7, None) != steps(1024, None)
    assert steps(2**32 + 7, None) == steps(7, None), "as far as NumPy takes seeds"


def test_the_seed_of_the_order_is_a_setting_of_the_run_only_where_one_is_given(tmp_path: Path) -> None:
    write_prep(tmp_path / "tiny" / "prep")
    without = Plan.of(pipeline(tmp_path, shuffle="xtuner"))
    seeded = Plan.of(pipeline(tmp_path, shuffle="xtuner", shuffle_seed=7))
    assert "shuffle_seed" not in without.settings["train"], "runs begun before there was such a key go on"
    assert seeded.settings["train"]["shuffle_seed"] == 7
    assert seeded.identity != without.identity


@pytest.mark.slow
def test_steps_are_trained_in_the_order_of_its_seed(tmp_path: Path) -> None:
    write_prep(tmp_path / "prep")

    def losses(name: str, **keys: Any) -> list[float]:
        share(tmp_path / "prep", tmp_path / name)
        run(pipeline(tmp_path / name, shuffle="xtuner", max_steps=2, **keys))
        return [row["loss"] for row in rows(tmp_path / name) if row["kind"] == "train"]

    default, seeded = losses("a"), losses("b", shuffle_seed=1024)
    assert seeded != default
    assert losses("c", shuffle_seed=7) == default, "as run.seed is 7"
