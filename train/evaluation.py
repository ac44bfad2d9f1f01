"""The loss on the packs that prep held out, between two steps."""

import time

import torch
import torch.distributed as dist

from pipelines.progress import progress_bar
from pipelines.shards import ShardReader
from train.agreement import on_rank_0
from train.batches import empty, micro_batch
from train.engine import Engine
from train.metrics import EvalRow
from train.sources import Sources, means


class HeldOut:
    """The held-out packs, as one rank evaluates its share of them.

    Args:
        sources: with them, the loss of each source is found as well.
    """

    def __init__(self, packs: ShardReader, engine: Engine, sources: Sources | None = None) -> None:
        self._packs, self._engine, self._sources = packs, engine, sources

    def row(self, step: int) -> EvalRow:
        """The mean loss over all held-out targets, the same on every rank; `step` steps are done. All ranks call this.

        Weights stay as they are, and so do the numbers of later steps: every micro-batch of a step seeds what is random
        in it, and a step puts the model into training mode itself.
        """
        began = time.perf_counter()
        engine = self._engine
        data, sequence = engine.parallel.data, engine.parallel
        names = self._sources.names if self._sources else []
        # The loss, then that of each source; and of how many targets.
        found = torch.zeros(2, 1 + len(names), dtype=torch.float64, device=engine.device)
        with progress_bar("evaluating", len(self._packs), "pack") as progress:
            for first in range(0, len(self._packs), data.size):
                # Groups without a pack left take part with nothing: ZeRO 3 gathers weights from all ranks.
                mine = first + data.rank
                batch = (
                    micro_batch(
                        self._packs[mine], engine.device, part=sequence.rank, parts=sequence.size, sources=self._sources
                    )
                    if mine < len(self._packs)
                    else empty(engine.device)
                )
                found[0, 0] += engine.held_out_loss(batch, found[0, 1:])
                found[1, 0] += batch.targets.numel()
                if batch.sources is not None:
                    found[1, 1:].index_add_(0, batch.sources, torch.ones_like(batch.sources, dtype=torch.float64))
                progress(min(data.size, len(self._packs) - first))
        on_rank_0(self._packs.refuse_changed)
        if engine.ranks > 1:
            dist.all_reduce(found)
        (loss, *losses), (targets, *counts) = found.tolist()
        return EvalRow(
            step=step,
            loss=loss / max(1, targets),
            loss_tokens=int(targets),
            seconds=time.perf_counter() - began,
            loss_by_source=means(losses, dict(zip(names, map(int, counts), strict=True))),
        )
