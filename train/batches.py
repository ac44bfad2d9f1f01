"""Packs to micro-batches: which packs an optimizer step trains on, and what this rank computes of them.

The packs of a step are a function of the step and the global batch size alone. All epochs form one endless sequence
of packs, so a step may reach from one epoch into the next, and the position in the data is one integer: how many
packs of that sequence have been consumed.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.shards import Pack, ShardReader
from train.attention import Segments
from train.order import PackOrder, Shuffle
from train.sources import Int64, Sources


@dataclass(frozen=True)
class MicroBatch:
    """One pack, or nothing, as the model takes it; of a pack that several ranks share, this rank's part of it."""

    input_ids: Tensor
    """int64[1, tokens]"""
    position_ids: Tensor
    """int64[1, tokens], from 0 in each document."""
    predictors: Tensor
    """int64[targets]: positions whose next token is trained."""
    targets: Tensor
    """int64[targets]: that next token."""
    segments: Segments
    """The documents of the whole pack."""
    seed: int
    """Of everything random in this micro-batch (dropout): a function of the position in the data, not of the rank. Of
    the parts of a pack, each draws its own."""
    sources: Tensor | None = None
    """int64[targets]: the source of each, where the loss of each source is asked for."""


@dataclass(frozen=True)
class StepBatch:
    """What one rank computes in one optimizer step, and the sums over all ranks."""

    micro_batches: list[MicroBatch]
    """As many on every rank; ranks that got fewer packs end with an empty one."""
    loss_tokens: int
    """Targets of the global batch."""
    tokens: int
    """Tokens of the global batch."""
    documents: Int64
    """int64[documents]: lengths of the global batch's documents, which attention's cost depends on."""
    targets_by_source: Mapping[str, int] = field(default_factory=dict)
    """Targets of the global batch by source, in the order of `Sources.names`; empty where that is not asked for."""


class Batches:
    """The global batches of a run, as one rank sees them.

    Args:
        seed: of dropout, and without `shuffle_seed` also of the order of packs.
        rank, ranks: this one among those, or among the groups of ranks, that train on packs of their own.
        part, parts: which part of its packs' tokens this rank gets.
        sources: with them, targets are told apart by source.
    """

    def __init__(
        self,
        packs: ShardReader,
        *,
        global_batch_size: int,
        shuffle: Shuffle,
        seed: int,
        shuffle_seed: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        part: int = 0,
        parts: int = 1,
        device: torch.device | str = "cpu",
        sources: Sources | None = None,
    ) -> None:
        self.packs = packs
        self.global_batch_size = global_batch_size
        self.accumulation = -(-global_batch_size // ranks)
        """Micro-batches per rank and step."""
        order_seed = seed if shuffle_seed is None else shuffle_seed
        self._order = PackOrder(len(packs), shuffle=shuffle, seed=order_seed, global_batch_size=global_batch_size)
        self._seed = seed
        self._rank, self._ranks = rank, ranks
        self._part, self._parts = part, parts
        self._device = torch.device(device)
        self._sources = sources

    def __getitem__(self, step: int) -> StepBatch:
        """The batch of optimizer step `step`, counted from 0."""
        first = step * self.global_batch_size
        positions = range(first, first + self.global_batch_size)
        packs = [self.packs[self._order[position]] for position in positions]
        mine = list(zip(positions, packs, strict=True))[self._rank :: self._ranks]
        micro_batches = [
            micro_batch(
                pack,
                self._device,
                seed=_seed_at(at, self._seed, self._part),
                part=self._part,
                parts=self._parts,
                sources=self._sources,
            )
            for at, pack in mine
        ]
        micro_batches += [empty(self._device)] * (self.accumulation - len(micro_batches))
        return StepBatch(
            micro_batches,
            loss_tokens=sum(int(np.count_nonzero(pack.loss)) for pack in packs),
            tokens=sum(pack.tokens.size for pack in packs),
            documents=np.concatenate([np.diff(pack.cu_seqlens) for pack in packs]).astype(np.int64),
            targets_by_source=targets_by_source(packs, self._sources) if self._sources else {},
        )

    def index(self, position: int) -> int:
        """Which pack is at a position of the endless sequence."""
        return self._order[position]

    def from_step(self, first: int, last: int) -> Iterator[tuple[int, StepBatch]]:
        """Steps first..last - 1 with their batches."""
        return ((step, self[step]) for step in range(first, last))


def targets_by_source(packs: Iterable[Pack], sources: Sources) -> dict[str, int]:
    """How many targets of packs are of each source, those without one included."""
    counts = sum(map(sources.count_targets, packs), np.zeros(len(sources.names), np.int64))
    return dict(zip(sources.names, counts.tolist(), strict=True))


def micro_batch(
    pack: Pack,
    device: torch.device,
    *,
    seed: int = 0,
    part: int = 0,
    parts: int = 1,
    sources: Sources | None = None,
) -> MicroBatch:
    """A pack, or one of equal parts of it, as tensors on a device.

    What a pack lacks to a multiple of the parts is padding at its end, without targets: a document of its own.
    """
    padding = np.arange(-pack.tokens.size % parts)
    length = (pack.tokens.size + padding.size) // parts
    here = slice(part * length, (part + 1) * length)
    # Shifted before the pack is parted: the token after a part's last one is in the next part. A target is never a
    # sample's first token, so the one before it is of the same sample.
    targets = np.flatnonzero(pack.loss)
    targets = targets[(here.start < targets) & (targets <= here.stop)]

    def tensor(values: npt.NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(device, non_blocking=True)

    return MicroBatch(
        input_ids=tensor(np.concatenate([pack.tokens, 0 * padding])[here])[None],
        position_ids=tensor(np.concatenate([pack.positions, padding])[here])[None],
        predictors=tensor(targets - 1 - here.start),
        targets=tensor(pack.tokens[targets]),
        segments=Segments.of(np.diff(pack.cu_seqlens).tolist(), device),
        seed=seed,
        sources=tensor(sources.of_tokens(pack, targets)) if sources else None,
    )


def empty(device: torch.device) -> MicroBatch:
    """One token without a target: a rank without a pack still takes part in every collective, and adds nothing."""
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    return MicroBatch(token, token, nothing, nothing, Segments.of([1], device), seed=0)


def _seed_at(position: int, seed: int, part: int) -> int:
    key = f"dropout {seed} {position}" + (f" {part}" if part else "")
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # as a signed 64-bit integer holds it
