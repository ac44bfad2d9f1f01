"""The loss of each source: that of its targets alone, on every layout, without changing any other number."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.shards import Pack, ShardReader
from tests.train.ranks import run_on_ranks
from tests.train.runs import SOURCES, pipeline, rows, same, share, state, write_prep
from train.batches import Batches, micro_batch
from train.chunked_loss import cross_entropy_sum
from train.run import run
from train.sources import Sources

SETTINGS: dict[str, Any] = {"max_steps": 3, "optimizer": {"lr": 0.01}, "eval": {"steps": 2}}
OFF = {"log": {"per_source_loss": False}}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prep directory of 10 packs that mix sources, and 5 held out."""
    folder = tmp_path_factory.mktemp("divided") / "prep"
    write_prep(folder, held_out=5)
    return folder


def test_target_is_of_the_source_of_its_segment() -> None:
    pack = Pack(
        tokens=np.arange(10, 18, dtype=np.uint16),
        loss=np.array([False, True, True, False, True, False, False, True]),
        cu_seqlens=np.array([0, 8], np.int32),  # samples that attend to each other stay samples
        segments=np.array([0, 3, 5, 6, 8], np.int32),
        file=np.array([2, 0, 0, 1], np.uint32),
        record=np.zeros(4, np.uint32),
        start=np.zeros(4, np.uint32),
    )
    sources = Sources.of({"sources": [{"name": name} for name in "abc"], "files": [{"source": name} for name in "baa"]})
    whole = micro_batch(pack, CPU, sources=sources)
    assert (whole.targets.tolist(), whole.sources.tolist()) == ([11, 12, 14, 17], [0, 0, 1, 0])  # type: ignore[union-attr]
    parts = [micro_batch(pack, CPU, part=part, parts=3, sources=sources).sources for part in range(3)]
    assert torch.cat(parts).tolist() == [0, 0, 1, 0]  # type: ignore[arg-type]
    assert sources.count_targets(pack).tolist() == [3, 1, 0]


def test_global_batch_counts_its_targets_by_source(divided: Path) -> None:
    packs = ShardReader(divided)
    sources = Sources.of(packs.manifest.facts)
    batch = Batches(packs, global_batch_size=4, shuffle="hash", seed=3, rank=1, ranks=2, sources=sources)[0]
    assert sum(batch.targets_by_source.values()) == batch.loss_tokens
    assert list(batch.targets_by_source) == list(SOURCES)


@pytest.mark.parametrize("targets", [0, 7])
def test_loss_of_each_target_leaves_sum_and_gradient_bitwise_as_they_are(targets: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(targets, 48, generator=generator)).requires_grad_()
    wanted = torch.randint(0, 48, (targets,), generator=generator)
    each = torch.empty(targets)
    found = cross_entropy_sum(logits, wanted, each)
    expected = F.cross_entropy(logits, wanted, reduction="sum")
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)))
    assert torch.equal(each, F.cross_entropy(logits.detach(), wanted, reduction="none"))


@pytest.mark.parametrize("fused", [True, False])
def test_losses_of_sources_make_up_the_loss_and_change_no_number(fused: bool, tmp_path: Path, divided: Path) -> None:
    with_, without = share(divided, tmp_path / "with"), share(divided, tmp_path / "without")
    run(pipeline(with_, **SETTINGS, fused_loss=fused))
    run(pipeline(without, **SETTINGS, fused_loss=fused, **OFF))
    assert same(with_, without)
    assert all(row["loss_by_source"] == {} for row in rows(without))
    check(with_)


@pytest.mark.slow
def test_ranks_that_share_packs_find_the_losses_of_one(
    tmp_path: Path, divided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, shared, off = (share(divided, tmp_path / name) for name in ("alone", "shared", "off"))
    how: dict[str, Any] = {"parallel": {"sequence_parallel_size": 2}, "deepspeed": {"zero_stage": 2}}
    run(pipeline(alone, **SETTINGS))
    assert run_on_ranks(2, run, pipeline(shared, **SETTINGS, **how)) == [0, 0]
    assert run_on_ranks(2, run, pipeline(off, **SETTINGS, **how, **OFF)) == [0, 0]
    assert same(shared, off)
    check(shared)
    assert [row["kind"] for row in rows(shared)] == [row["kind"] for row in rows(alone)]
    for one, other in zip(rows(shared), rows(alone), strict=True):
        assert one["loss_by_source"] == pytest.approx(other["loss_by_source"], rel=1e-4)  # as exact as `loss`


def check(folder: Path) -> None:
    """Every row's losses by source make up its loss; those of the first step are what the packs say."""
    packs = {kind: ShardReader(folder / "tiny/prep", kind) for kind in ("train", "eval")}
    sources = Sources.of(packs["train"].manifest.facts)
    plan = pipeline(folder, **SETTINGS)
    steps = Batches(packs["train"], global_batch_size=4, shuffle="hash", seed=plan.run.seed, sources=sources)
    held_out = sum(map(sources.count_targets, packs["eval"]))
    for row in rows(folder):
        counts = (
            dict(zip(SOURCES, held_out.tolist(), strict=True))  # type: ignore[union-attr]
            if row["kind"] == "eval"
            else steps[row["step"] - 1].targets_by_source
        )
        assert row["loss_by_source"].keys() == {name for name, count in counts.items() if count}
        total = sum(loss * counts[name] for name, loss in row["loss_by_source"].items())
        assert total / row["loss_tokens"] == pytest.approx(row["loss"], rel=1e-6)
        assert len(set(row["loss_by_source"].values())) == len(SOURCES)
    assert state(folder)
