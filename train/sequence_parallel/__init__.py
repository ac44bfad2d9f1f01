"""Sequence parallelism for any Transformers model: ranks that share one sequence, and compute what one rank would.

Usable on its own, in a plain PyTorch loop, in five pieces: `init_sequence_parallel`, a `SequenceParallelSampler`,
`pad_for_sequence_parallel` and `split_for_sequence_parallel`, `SequenceParallelAttention`, and
`reduce_sequence_parallel_loss`. docs/sequence_parallel.md has them in an example.
"""

from train.attention import Segments
from train.sequence_parallel.attention import SequenceParallelAttention
from train.sequence_parallel.groups import SequenceParallel, init_sequence_parallel
from train.sequence_parallel.loss import reduce_sequence_parallel_loss
from train.sequence_parallel.sampler import SequenceParallelSampler
from train.sequence_parallel.split import (
    gather_for_sequence_parallel,
    pad_for_sequence_parallel,
    split_for_sequence_parallel,
)

__all__ = [
    "Segments",
    "SequenceParallel",
    "SequenceParallelAttention",
    "SequenceParallelSampler",
    "gather_for_sequence_parallel",
    "init_sequence_parallel",
    "pad_for_sequence_parallel",
    "reduce_sequence_parallel_loss",
    "split_for_sequence_parallel",
]
