"""How layers are run changes what is in memory and when, never the loss and the gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.shards import ShardReader
from tests.train.runs import LLAMA, VOCABULARY, pipeline, write_prep
from tests.train.sequence_parallel.architectures import ARCHITECTURES, config_keys
from train.attention import PackedAttention
from train.batches import MicroBatch, micro_batch
from train.layers import arrange_layers
from train.loss import loss_sum
from train.model import build_model

CPU = torch.device("cpu")
PREP = {"vocab_size": VOCABULARY, "max_token_id": VOCABULARY - 1}
LORA = {"r": 4, "lora_dropout": 0.2, "target_modules": ["q_proj", "down_proj"]}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"scratch": LLAMA},
    "lora": {"scratch": LLAMA, "lora": LORA},
    "dropout": {"scratch": {**config_keys("gpt2", ARCHITECTURES["gpt2"].keys), "attn_pdrop": 0.1, "resid_pdrop": 0.1}},
    **{
        name: {"scratch": config_keys(name, ARCHITECTURES[name].keys)}
        for name in ("gemma2", "mixtral", "deepseek_v3", "granitemoe")
    },
}
"""A plain one; an adapter; dropout everywhere; norms after the MLP and caps; experts; MLA; another name of the MLP."""
BITWISE: list[dict[str, Any]] = [
    {"activation_checkpointing": "full"},
    {"activation_checkpointing": "selective"},
    {"activation_checkpointing": "full", "activation_offload": "cpu"},
]
TILED: list[dict[str, Any]] = [
    {"tiled_mlp": True},
    {"tiled_mlp": True, "activation_checkpointing": "selective"},
    {"tiled_mlp": True, "activation_checkpointing": "full", "activation_offload": "cpu"},
]


STRETCH = 9
"""Tokens of a stretch in these tests; the packs have about 40."""


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> MicroBatch:
    folder = tmp_path_factory.mktemp("packs") / "prep"
    write_prep(folder)
    return micro_batch(ShardReader(folder)[0], CPU)


class Trainee:
    """A model whose layers run as `how` says."""

    def __init__(self, folder: Path, model: dict[str, Any], **how: Any) -> None:
        self.pipeline = pipeline(folder, model=model, **how)
        self.attention = PackedAttention("sdpa")
        self.attention.register()
        self.model = build_model(self.pipeline, PREP)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("train.tiled_mlp.stretch", lambda _: STRETCH)
            self.tiled = arrange_layers(self.model, self.pipeline, self.attention, zero_stage=0)
        self.model.train()

    def gradients(self, batch: MicroBatch, mode: Any = None) -> dict[str, Tensor]:
        """The loss of a micro-batch, and the gradient of everything that is trained."""
        torch.manual_seed(0)
        self.model.zero_grad()
        with self.attention.over(batch.segments):
            loss = loss_sum(self.model, batch, keeps_logits=True)
            loss.backward()  # type: ignore[no-untyped-call]
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        return {"loss": loss.detach(), **{name: weight.grad for name, weight in trained.items()}}


@pytest.mark.parametrize("name", MODELS)
def test_layers_that_compute_again_have_the_same_gradients_bit_for_bit(
    name: str, tmp_path: Path, batch: MicroBatch
) -> None:
    expected = Trainee(tmp_path, MODELS[name]).gradients(batch)
    for how in BITWISE:
        found = Trainee(tmp_path, MODELS[name], **how).gradients(batch)
        assert found.keys() == expected.keys()
        assert [key for key in found if not torch.equal(found[key], expected[key])] == [], how


@pytest.mark.parametrize("name", MODELS)
def test_stretches_of_an_mlp_have_the_gradients_of_the_whole(name: str, tmp_path: Path, batch: MicroBatch) -> None:
    whole = Trainee(tmp_path, MODELS[name])
    if name == "dropout":
        draw_in_stretches(whole.model)
    expected = whole.gradients(batch)
    for how in TILED:
        found = Trainee(tmp_path, MODELS[name], **how).gradients(batch)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6 * value.abs().max().item(), msg=key)


def draw_in_stretches(model: Any) -> None:
    """Let the MLPs draw their random numbers stretch by stretch, with autograd keeping everything."""
    for layer in model.transformer.h:
        honest = layer.mlp.forward
        layer.mlp.forward = lambda hidden, honest=honest: torch.cat([honest(p) for p in hidden.split(STRETCH, 1)], 1)
