"""What a step of the trainer costs beside the same work in a bare loop of PyTorch, in processor time of one thread.

python -m bench.stepping [--json]
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

from bench.small import LR, batch_of, engine_of, one_rank, pack_of, pipeline_in, plain_model
from bench.table import Figure, command
from train.batches import StepBatch
from train.engine import Engine, StepStats

TOKENS = 1024
ROUNDS = 9
VARIANTS: dict[str, dict[str, Any]] = {
    "ZeRO 0": {"fused_loss": False},
    "ZeRO 0, chunked loss": {},
    "ZeRO 1": {"deepspeed": {"zero_stage": 1}, "fused_loss": False},
    "ZeRO 2": {"deepspeed": {"zero_stage": 2}, "fused_loss": False},
}


def figures(folder: Path) -> Iterator[Figure]:
    """A step of one micro-batch, and one of four, under each ZeRO stage that one rank can tell apart."""
    torch.set_num_threads(1)
    with one_rank():
        for micro_batches in (1, 4):
            batch = batch_of([pack_of([TOKENS], seed=seed) for seed in range(micro_batches)])
            steps = {"bare": bare(batch)}
            for name, keys in VARIANTS.items():
                engine = engine_of(pipeline_in(folder, global_batch_size=micro_batches, **keys))
                steps[name] = partial(step_of, engine, batch)
            taken = in_turns(steps)
            for name in VARIANTS:
                yield Figure(
                    f"step of {micro_batches} x {TOKENS:,} tokens, {name}",
                    1e3 * taken[name],
                    "ms",
                    "the same in a bare loop",
                    1e3 * taken["bare"],
                    "<= 1.03 x" if name == "ZeRO 0" else "",
                )


def step_of(engine: Engine, batch: StepBatch) -> StepStats:
    """A step of one of several engines in this process: Transformers knows one attention of ours at a time."""
    engine.attention.register()
    return engine.step(batch, LR)


def bare(batch: StepBatch) -> Callable[[], object]:
    """Forward, backward, clipping and AdamW in plain PyTorch, over documents without packing."""
    model = plain_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)

    def step() -> float:
        total = torch.zeros(())
        for micro in batch.micro_batches:
            logits = model(input_ids=micro.input_ids, use_cache=False).logits[0, :-1]
            loss = F.cross_entropy(logits.float(), micro.input_ids[0, 1:], reduction="sum") / batch.loss_tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.item()

    return step


def in_turns(work: dict[str, Callable[[], object]], *, rounds: int = ROUNDS) -> dict[str, float]:
    """Median processor seconds of each, run one after the other, so that all meet the same machine; the first round,
    which fills caches, does not count."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, one in work.items():
            began = time.process_time()
            one()
            taken[name].append(time.process_time() - began)
    return {name: median(seconds[1:]) for name, seconds in taken.items()}


if __name__ == "__main__":
    command(figures, __doc__)
