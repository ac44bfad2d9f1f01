"""Attention over a sequence that several ranks share: no attention is computed twice, whatever the number of heads.

Between layers each rank has its part of the tokens with all heads. Of the `sp` ranks that share a sequence, the
U = gcd(heads, sp) in a row exchange tokens for heads, so that each has U parts of the sequence and 1/U of the heads.
The R = sp / U rows keep their queries and get the keys and values of all rows, of which the kernel takes those up to
the last query. U = sp is DeepSpeed's Ulysses; U = 1 gathers keys and values alone.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from train.attention import Backend, PackedAttention, Scores, Segments
from train.sequence_parallel.collectives import all_gather, all_to_all
from train.sequence_parallel.groups import Axis, SequenceParallel


class SequenceParallelAttention(PackedAttention):
    """`PackedAttention` where each rank has its part of the tokens; on one rank it is the same.

    `over` takes the documents of the whole sequence. What they lack to a multiple of the ranks is padding at the end.

    Args:
        parallel: the ranks that share the sequence.
        backend: the kernel.
        strict: refuse a layer that the kernel cannot compute, instead of taking "sdpa" for it.
    """

    def __init__(self, parallel: SequenceParallel, backend: Backend, *, strict: bool = True) -> None:
        super().__init__(backend, strict=strict)
        self.parallel = parallel
        self._stretches: dict[int, tuple[Segments, slice]] = {}

    @contextmanager
    def over(self, segments: Segments) -> Iterator[None]:
        """Run attention over these documents, in forward and backward passes inside the block."""
        self._stretches = {}
        with super().over(segments.padded(self.parallel.size)):
            yield

    def _tokens(self, segments: Segments) -> int:
        return segments.tokens // self.parallel.size

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, segments: Segments, scores: Scores) -> Tensor:
        split = self.parallel.splits[math.gcd(query.shape[1], self.parallel.size)]
        row, column = split.heads, split.queries
        query, key, value = _tokens_for_heads(query, key, value, row)
        key, value = _gather(key, value, column)
        mine, seen = self._stretch(segments, column)
        if scores.sinks is not None:
            scores = replace(scores, sinks=scores.sinks.chunk(row.size)[row.rank])
        out = self._kernel(scores)(query, key[seen], value[seen], mine, scores)
        return _heads_for_tokens(out, row)

    def _stretch(self, segments: Segments, column: Axis) -> tuple[Segments, slice]:
        # The same in every layer with this many heads.
        if column.size not in self._stretches:
            length = segments.tokens // column.size
            self._stretches[column.size] = segments.stretch(column.rank * length, (column.rank + 1) * length)
        return self._stretches[column.size]


def _tokens_for_heads(query: Tensor, key: Tensor, value: Tensor, row: Axis) -> tuple[Tensor, Tensor, Tensor]:
    """From a part of the tokens with all heads to the tokens of the row with a share of the heads.

    Args:
        query: [tokens, heads, dim]; key and value have their own number of heads, and value its own size.
    Returns:
        query [ranks * tokens, heads / ranks, dim]; key and value with their heads / ranks, or as many as the query at
        most: only heads that do not divide evenly are repeated before they are sent.
    """
    if row.size == 1:
        return query, key, value
    repeats = math.lcm(key.shape[1], row.size) // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    # One exchange for all three: [tokens, heads, dim] as [ranks, tokens, heads / ranks * dim], side by side.
    tokens = query.shape[0]
    widths = [tensor.shape[1] // row.size * tensor.shape[2] for tensor in (query, key, value)]
    parts = [
        tensor.reshape(tokens, row.size, width).transpose(0, 1)
        for tensor, width in zip((query, key, value), widths, strict=True)
    ]
    mine = torch.split(all_to_all(torch.cat(parts, dim=2), row).flatten(0, 1), widths, dim=1)
    sizes = (query.shape[2], key.shape[2], value.shape[2])
    query, key, value = (part.view(len(part), -1, size) for part, size in zip(mine, sizes, strict=True))
    return query, key, value


def _heads_for_tokens(out: Tensor, row: Axis) -> Tensor:
    """The way back: from [ranks * tokens, heads / ranks, dim] to [tokens, heads, dim]."""
    if row.size == 1:
        return out
    return all_to_all(out.reshape(row.size, -1, *out.shape[1:]), row).transpose(0, 1).flatten(1, 2)


def _gather(key: Tensor, value: Tensor, column: Axis) -> tuple[Tensor, Tensor]:
    """Keys and values of all ranks of the column, in the order of the sequence, in one exchange."""
    if column.size == 1:
        return key, value
    both = all_gather(torch.cat([key.flatten(1), value.flatten(1)], dim=1), column)
    of_key, of_value = torch.split(both, [key[0].numel(), value[0].numel()], dim=1)
    return of_key.view(-1, *key.shape[1:]), of_value.view(-1, *value.shape[1:])
