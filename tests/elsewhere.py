"""What XTuner 0.1 and InternEvo make of data, by their rules, in plain loops: packs, and which of them a step takes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch

from pipelines.shards import IGNORE

Record = Sequence[int]
"""Token ids, negated where no loss is taken."""
Files = Mapping[str, Sequence[Record]]
Steps = list[list[list[int]]]
"""[steps, data-parallel ranks, packs in turn]: the packs' numbers."""


@dataclass(frozen=True)
class Expected:
    """One pack as the other project's data set gives it."""

    ids: list[int]
    """Signed, as in the file."""
    ends: list[int]
    """0, then the end of each sample or fragment; an empty sample repeats the end of the one before."""


def packs_of_xtuner(files: Files, *, seed: int, packed_length: int, min_length: int = 0) -> list[Expected]:
    """XTuner 0.1's packs, and InternEvo's: file by file, all records permuted, end to end, cut, the rest left out."""
    packs = []
    for records in files.values():
        records = [record for record in records if len(record) >= min_length]
        order = np.arange(len(records))
        np.random.RandomState(seed).shuffle(order)
        packs += stream_of(records, [int(record) for record in order], packed_length=packed_length)
    return packs


def stream_of(records: Sequence[Record], order: Sequence[int], *, packed_length: int) -> list[Expected]:
    """Records in this order end to end, cut every so many tokens, the rest left out."""
    packs = []
    stream = [(turn, id_) for turn, record in enumerate(order) for id_ in records[record]]
    empty = [turn for turn, record in enumerate(order) if not records[record]]
    for begin in range(0, len(stream) - packed_length + 1, packed_length):
        inside = stream[begin : begin + packed_length]
        first_turn, last_turn = inside[0][0], inside[-1][0]
        turns = sorted({turn for turn, _ in inside} | {turn for turn in empty if first_turn < turn < last_turn})
        lengths = [sum(of == turn for of, _ in inside) for turn in turns]
        packs.append(Expected([id_ for _, id_ in inside], [0, *accumulate(lengths)]))
    return packs


def labels_of(pack: Expected) -> list[int]:
    """The other project's labels, but for the first of each fragment, which nothing in its fragment predicts."""
    begins = set(pack.ends[:-1])
    return [id_ if id_ > 0 and place not in begins else IGNORE for place, id_ in enumerate(pack.ids)]


def documents_of_internevo(pack: Expected, *, into_one: bool, seq_len: int) -> list[int]:
    """Its cu_seqlens: both forms cut attention every seq_len tokens, of the pack or of each fragment."""
    ends = [0]
    for begin, end in [(0, len(pack.ids))] if into_one else list(pairwise(pack.ends)):
        ends += [*range(begin + seq_len, end, seq_len), end]
    return ends


def default_sampler(packs: int, *, seed: int, epoch: int, rank: int, ranks: int) -> list[int]:
    """What DefaultSampler and SequenceParallelSampler of XTuner give one data-parallel rank in an epoch."""
    order = torch.randperm(packs, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    total = -(-packs // ranks) * ranks
    return (order * (total // packs + 1))[:total][rank::ranks]


def intern_repo_sampler(packs: int, *, epoch: int, rank: int, ranks: int) -> list[int]:
    """What XTuner's InternRepoSampler gives it: always by seed 1024, the last packs left out."""
    order = np.arange(packs)
    np.random.RandomState(1024 + epoch).shuffle(order)
    return [int(pack) for pack in order[rank : packs // ranks * ranks : ranks]]


def steps_of_xtuner(epochs: Iterator[list[list[int]]], *, batch_size: int, accumulative_counts: int) -> Steps:
    """Its optimizer steps: each rank loads batches of its own, and accumulates so many of them, also across epochs.

    Args:
        epochs: [data-parallel ranks, packs] of its sampler, epoch by epoch.
    """
    batches: list[list[list[int]]] = []  # [iterations, ranks, batch_size]
    for ranks in epochs:
        starts = range(0, len(ranks[0]), batch_size)
        batches += [[mine[at : at + batch_size] for mine in ranks] for at in starts]
    whole = len(batches) - len(batches) % accumulative_counts
    steps = [batches[at : at + accumulative_counts] for at in range(0, whole, accumulative_counts)]
    return [[[pack for batch in step for pack in batch[rank]] for rank in range(len(batches[0]))] for step in steps]


class StaticBatchSampler:
    """What InternEvo's sampler of this name gives each data-parallel rank."""

    def __init__(self, packs: int, seed: int, micro_num: int, ranks: int) -> None:
        self.packs, self.micro_num, self.ranks = packs, micro_num, ranks
        self.stream = np.random.RandomState(seed)

    def epoch(self) -> Steps:
        """The next epoch's steps."""
        indices = np.arange(0, self.packs)
        self.stream.shuffle(indices)
        whole = self.packs // (self.micro_num * self.ranks) * self.micro_num * self.ranks
        mine = [indices[:whole][rank :: self.ranks].tolist() for rank in range(self.ranks)]
        return [[one[at : at + self.micro_num] for one in mine] for at in range(0, whole // self.ranks, self.micro_num)]


def write_ftdp(path: Path, records: Sequence[Record]) -> None:
    """A .bin file and its .meta."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with path.open("wb") as file:
        for record in records:
            rows.append((file.tell(), len(record)))
            file.write(json.dumps({"tokens": list(record)}).encode() + b"\n")
    with path.with_name(f"{path.name}.meta").open("wb") as file:
        np.save(file, np.array(rows, np.int64))
