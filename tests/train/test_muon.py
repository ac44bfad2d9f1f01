"""Muon: PyTorch's on whole matrices, and the same where ZeRO cuts them over ranks."""

from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.train.conftest import SETTINGS
from tests.train.ranks import run_in_turn
from tests.train.runs import LLAMA, pipeline, rows, same, share, state
from tests.train.test_run import undo
from train.muon import Muon, hidden_matrices, orthogonal
from train.run import run

SETTINGS_OF_MUON: dict[str, Any] = {
    **SETTINGS,
    "optimizer": {"type": "muon", "lr": Decimal("0.01"), "weight_decay": Decimal("0.1")},
    # ZeRO stages add up micro-batches, and the norm, in different orders: gradients whose last bit differs would be
    # rounded to other bfloat16 numbers. So there is one micro-batch, and no clipping.
    "global_batch_size": 2,
    "max_grad_norm": 0,
}


@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (7, 5)])
def test_matrix_steps_as_pytorchs_muon_bit_for_bit(shape: tuple[int, int], scale: str) -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7 * 300)[: shape[0] * shape[1]].view(shape)) for _ in range(2))
    group = {"params": [ours], "matrices": True, "weight_decay": 0.1}
    pair = [
        (ours, Muon([group], lr=0.01, adjust_lr_fn=scale)),  # type: ignore[arg-type]  # one of the two
        (theirs, torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn=scale)),
    ]
    for step in range(4):
        for weight, optimizer in pair:
            weight.grad = (weight.detach() * 7 + step).sin()
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_other_parameters_step_as_pytorchs_adamw_bit_for_bit() -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 20)) for _ in range(2))
    pair = [
        (ours, Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.01, betas=(0.8, 0.9), eps=1e-6)),
        (theirs, torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)),
    ]
    for step in range(4):
        for weight, optimizer in pair:
            weight.grad = (weight.detach() * 7 + step).sin()
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_orthogonal_is_near_the_nearest_orthogonal_matrix_and_goes_by_matrix_of_a_stack() -> None:
    stack = torch.randn(3, 24, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = orthogonal(stack, 5)
    for matrix, ours in zip(stack, found, strict=True):
        torch.testing.assert_close(ours, orthogonal(matrix, 5))
        u, _, v = torch.linalg.svd(matrix.float(), full_matrices=False)
        # Its polynomial leaves singular values anywhere between 0.7 and 1.2.
        assert 0.7 < float((ours.float() * (u @ v)).sum() / 16) < 1.2
        assert torch.linalg.cond(ours.float()) < 2 < torch.linalg.cond(matrix.float())


def test_matrices_are_those_between_embedding_and_output() -> None:
    def of(**keys: Any) -> set[str]:
        config = AutoConfig.for_model(**{**LLAMA, **keys})
        return hidden_matrices(AutoModelForCausalLM.from_config(config))

    per_layer = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    expected = {f"model.layers.{layer}.{name}.weight" for layer in range(2) for name in per_layer}
    assert of() == of(tie_word_embeddings=False) == expected
    gpt2 = AutoConfig.for_model("gpt2", vocab_size=48, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    assert hidden_matrices(AutoModelForCausalLM.from_config(gpt2)) == {
        f"transformer.h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


@pytest.mark.slow
def test_ranks_that_share_matrices_step_them_as_whole_ones(tmp_path: Path, shards: Path) -> None:
    whole, *cut = (share(shards, tmp_path / str(stage)) for stage in range(4))
    settings = [
        pipeline(folder, deepspeed={"zero_stage": stage}, **SETTINGS_OF_MUON)
        for stage, folder in enumerate([whole, *cut])
    ]
    assert run_in_turn(2, [partial(run, each) for each in settings]) == [0, 0]
    expected = state(whole)
    assert {key.split("/")[0] for key in expected} == {"parameter", "momentum_buffer", "exp_avg", "exp_avg_sq"}
    assert all(same(folder, whole) for folder in cut[:2])
    losses = [row["loss"] for row in rows(whole)]
    # The gradients of ZeRO 3 differ in their last bits, for AdamW as well, and are rounded to bfloat16 here.
    np.testing.assert_allclose([row["loss"] for row in rows(cut[2])], losses, rtol=1e-4)
    # Each continues where another stage stopped, from state that was cut otherwise.
    for folder in cut:
        undo(folder, 2)
    crossed = [settings[stage].model_copy(update={"run": settings[at].run}) for at, stage in ((1, 2), (2, 0), (3, 1))]
    assert run_in_turn(2, [partial(run, each) for each in crossed]) == [0, 0]
    assert all(same(folder, whole) for folder in cut[:2])
    np.testing.assert_allclose([row["loss"] for row in rows(cut[2])], losses, rtol=1e-4)
