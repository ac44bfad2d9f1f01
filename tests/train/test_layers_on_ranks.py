"""Layers that compute again or in stretches take the same steps, under ZeRO and sequence parallelism."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.schema import Pipeline
from pipelines.shards import ShardReader
from tests.train.ranks import run_on_ranks
from tests.train.runs import LLAMA, pipeline, share
from tests.train.sequence_parallel.architectures import ARCHITECTURES, config_keys
from train.batches import Batches
from train.engine import Engine
from train.fragments import pieces
from train.launch import process_group
from train.launchers import Ranks, launch_of
from train.model import build_model
from train.sequence_parallel import SequenceParallelAttention, init_sequence_parallel

STEPS = 2
STRETCH = 9
GATHERED = {"zero_stage": 3, "extra": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}
"""Small parameters as well are gathered for each use, as large ones are."""
SHARED = {"sequence_parallel_size": 2}
LORA = {"scratch": LLAMA, "lora": {"r": 4, "target_modules": ["down_proj"]}}
EXPERTS = {"scratch": config_keys("mixtral", ARCHITECTURES["mixtral"].keys)}
LONGEST: dict[str, Any] = {"activation_checkpointing": "full", "activation_offload": "cpu", "tiled_mlp": True}
LAYOUTS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"deepspeed": {"zero_stage": 2}}, [LONGEST]),
    ({"deepspeed": {"zero_stage": 2}, "precision": "bf16"}, [LONGEST]),
    ({"deepspeed": GATHERED}, [{"activation_checkpointing": "selective"}, {"tiled_mlp": True}, LONGEST]),
    ({"deepspeed": GATHERED, "precision": "bf16"}, [LONGEST]),
    ({"deepspeed": GATHERED, "parallel": SHARED}, [{"activation_checkpointing": "selective"}, LONGEST]),
    ({"deepspeed": GATHERED, "model": LORA}, [LONGEST]),
    ({"deepspeed": GATHERED, "model": EXPERTS}, [LONGEST]),
]
"""A layout, and ways to run layers in it."""


def stepped(pipeline: Pipeline) -> list[Tensor]:
    """Losses, gradient norms and this rank's weights after a few steps."""
    train = pipeline.train
    assert train is not None
    packs = ShardReader(pipeline.home / "prep")
    parallel = init_sequence_parallel(train.parallel.sequence_parallel_size)
    attention = SequenceParallelAttention(parallel, "sdpa")
    attention.register()
    engine = Engine(build_model(pipeline, packs.manifest.facts), train, pipeline, attention)
    batches = Batches(
        packs, global_batch_size=train.global_batch_size, shuffle="hash", seed=0, rank=parallel.data.rank,
        ranks=parallel.data.size, part=parallel.rank, parts=parallel.size,
    )  # fmt: skip
    found = [engine.step(batches[step], 0.5) for step in range(STEPS)]
    weights = [piece.tensors["parameter"].clone() for piece in pieces(engine)]
    return [torch.tensor([[stats.loss, stats.grad_norm] for stats in found]), *weights]


def compare(folder: Path) -> None:
    """Each way to run layers with none, in the same layout, by plain gradient descent: weights show gradients."""
    plain: dict[str, Any] = {"optimizer": {"type": "sgd", "lr": 1}, "max_grad_norm": 0}
    ranks = launch_of(os.environ)
    assert isinstance(ranks, Ranks)
    with process_group(ranks), pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.tiled_mlp.stretch", lambda _: STRETCH)
        for layout, ways in LAYOUTS:
            expected = stepped(pipeline(folder, **layout, **plain))
            for way in ways:
                close = 2e-2 if "precision" in layout else 2e-6 if "tiled_mlp" in way else 0
                found = stepped(pipeline(folder, **layout, **plain, **way))
                pairs = zip(found, expected, strict=True)
                apart = [float((one - other).abs().max() / other.abs().max()) for one, other in pairs]
                assert max(apart) <= close, (layout, way, apart)


@pytest.mark.slow
def test_layers_take_the_same_steps_on_every_layout(tmp_path: Path, shards: Path) -> None:
    assert run_on_ranks(2, compare, share(shards, tmp_path / "work")) == [0, 0]
