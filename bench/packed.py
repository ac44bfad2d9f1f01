"""Tokens per second of training on packs, beside the same samples one by one and padded in batches.

    python -m bench.packed [--json]

Lengths are like Alpaca's, packs hold 8,192 tokens: the setting in which XTuner reports 8.76 times the speed of samples
one by one for a model of 7 billion parameters on a GPU. What a packed step saves is the cost of small matrix products,
of padding, and of stepping the optimizer more often; how much that is depends on the device. Processor time of one
thread.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

from bench.small import LR, alpaca_like, batch_of, engine_of, one_rank, pack_of, pipeline_in, plain_model
from bench.stepping import in_turns, step_of
from bench.table import Figure, command
from pipelines.schema import PackTable
from prep.packing import pack

CAPACITY = 8192
SAMPLES = 16
"""Of a step that does not pack, as with XTuner's accumulation."""
CONTEXT = 2048
"""What samples are padded to by those who want all batches alike."""


def figures(folder: Path) -> Iterator[Figure]:
    """Packed; one by one; padded to the longest of a batch of 16; and padded to the context."""
    torch.set_num_threads(1)
    packed = packed_like_alpaca()
    some = alpaca_like(SAMPLES).tolist()
    with one_rank():
        whole = engine_of(pipeline_in(folder))
        single = engine_of(pipeline_in(folder, global_batch_size=SAMPLES))
        work: dict[str, Callable[[], object]] = {
            "packed": partial(step_of, whole, batch_of([pack_of(packed)])),
            "samples one by one": partial(step_of, single, batch_of([pack_of([length]) for length in some])),
            f"batches of {SAMPLES} padded to their longest": padded(some, max(some)),
            f"batches of 2 padded to {CONTEXT:,}": padded(some[:2], CONTEXT),
        }
        taken = in_turns(work, rounds=3)
    tokens = dict.fromkeys(work, sum(some)) | {"packed": sum(packed), [*work][-1]: sum(some[:2])}
    speed = {name: tokens[name] / seconds for name, seconds in taken.items()}
    for name in [*work][1:]:
        yield Figure("packed", speed["packed"], "tok/s", name, speed[name])


def packed_like_alpaca() -> list[int]:
    """Lengths of the samples in the first of many packs."""
    table = PackTable(capacity=CAPACITY, strategy="best_fit", scope="global")
    bins = pack(alpaca_like(20_000).astype(np.int32), table)
    found: list[int] = bins.length[: bins.segments_per_pack[0]].tolist()
    return found


def padded(lengths: Sequence[int], width: int) -> Callable[[], object]:
    """A step over samples padded to a common width, in plain PyTorch."""
    model = plain_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    tokens = torch.zeros(len(lengths), width, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    labels = torch.full_like(tokens, -100)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.from_numpy(pack_of([length], seed=row).tokens.astype(np.int64))
        mask[row, :length] = 1
        labels[row, 1:length] = tokens[row, 1:length]

    def step() -> float:
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


if __name__ == "__main__":
    command(figures, __doc__)
