"""The loss on the packs that prep held out, between two steps."""

import time

import torch
import torch.distributed as dist

from pipelines.shards import ShardReader
from train.batches import empty, micro_batch
from train.engine import Engine
from train.metrics import EvalRow


class HeldOut:
    """The held-out packs, as one rank evaluates its share of them."""

    def __init__(self, packs: ShardReader, engine: Engine) -> None:
        self._packs, self._engine = packs, engine

    def row(self, step: int) -> EvalRow:
        """The mean loss over all held-out targets, the same on every rank; `step` steps are done. All ranks call this.

        Weights stay as they are, and so do the numbers of later steps: every micro-batch of a step seeds what is random
        in it, and a step puts the model into training mode itself.
        """
        began = time.perf_counter()
        engine = self._engine
        data, sequence = engine.parallel.data, engine.parallel
        found = torch.zeros(2, dtype=torch.float64, device=engine.device)
        for first in range(0, len(self._packs), data.size):
            # Groups without a pack left take part with nothing: ZeRO 3 gathers weights from all ranks.
            mine = first + data.rank
            batch = (
                micro_batch(self._packs[mine], engine.device, part=sequence.rank, parts=sequence.size)
                if mine < len(self._packs)
                else empty(engine.device)
            )
            found[0] += engine.held_out_loss(batch)
            found[1] += batch.targets.numel()
        if engine.ranks > 1:
            dist.all_reduce(found)
        loss, targets = found.tolist()
        return EvalRow(
            step=step,
            loss=loss / max(1, targets),
            loss_tokens=int(targets),
            seconds=time.perf_counter() - began,
        )
