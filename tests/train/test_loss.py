"""The loss of a micro-batch."""

from pathlib import Path

import pytest
import torch

from pipelines.shards import ShardReader
from tests.train.runs import VOCABULARY, pipeline, write_prep
from train.attention import PackedAttention
from train.batches import MicroBatch, empty, micro_batch
from train.loss import computes_chosen_logits, loss_sum
from train.model import build_model

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path: Path) -> torch.nn.Module:
    built: torch.nn.Module = build_model(pipeline(tmp_path), {"vocab_size": VOCABULARY, "max_token_id": VOCABULARY - 1})
    return built


def gradients(model: torch.nn.Module, batch: MicroBatch, *, keeps_logits: bool) -> tuple[float, list[torch.Tensor]]:
    attention = PackedAttention("sdpa")
    attention.register()
    with attention.over(batch.segments):
        loss = loss_sum(model, batch, keeps_logits=keeps_logits)
        return float(loss.detach()), list(torch.autograd.grad(loss, list(model.parameters())))


def test_chosen_logits_give_the_loss_of_all(model: torch.nn.Module, tmp_path: Path) -> None:
    write_prep(tmp_path / "prep")
    batch = micro_batch(ShardReader(tmp_path / "prep")[0], CPU)
    assert computes_chosen_logits(model)
    loss, chosen = gradients(model, batch, keeps_logits=True)
    expected, every = gradients(model, batch, keeps_logits=False)
    assert loss == pytest.approx(expected, rel=1e-6)
    for gradient, right in zip(chosen, every, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keeps_logits", [True, False])
def test_micro_batch_without_targets_has_zero_loss_and_gradients(model: torch.nn.Module, keeps_logits: bool) -> None:
    loss, found = gradients(model, empty(CPU), keeps_logits=keeps_logits)
    assert loss == 0
    assert all(not gradient.any() for gradient in found)
