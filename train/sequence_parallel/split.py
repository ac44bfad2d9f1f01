"""From a whole sequence to this rank's part of it, and back."""

import torch.nn.functional as F
from torch import Tensor

from train.sequence_parallel.collectives import all_gather
from train.sequence_parallel.groups import SequenceParallel


def pad_for_sequence_parallel(tensor: Tensor, parallel: SequenceParallel, *, value: float = 0, dim: int = -1) -> Tensor:
    """Lengthen a dimension to the next multiple of the ranks that share it.

    Args:
        value: what is added: any token for ids, and for labels what the loss ignores.
    """
    padding = -tensor.shape[dim] % parallel.size
    after = -1 - dim if dim < 0 else tensor.ndim - 1 - dim
    return F.pad(tensor, (0, 0) * after + (0, padding), value=value) if padding else tensor


def split_for_sequence_parallel(tensor: Tensor, parallel: SequenceParallel, *, dim: int = -1) -> Tensor:
    """This rank's part of a dimension; part i is rank i's.

    Labels have to be shifted before: the next token of a part's last one belongs to another rank.

    Raises:
        ValueError: if the ranks do not divide it.
    """
    length = tensor.shape[dim]
    if length % parallel.size:
        raise ValueError(f"{length} tokens are not divided by {parallel.size} ranks; pad_for_sequence_parallel first")
    part = length // parallel.size
    return tensor.narrow(dim, parallel.rank * part, part)


def gather_for_sequence_parallel(tensor: Tensor, parallel: SequenceParallel, *, dim: int = -1) -> Tensor:
    """The parts of all ranks that share a sequence, end to end; the gradient of a part is what all ranks give it."""
    return all_gather(tensor.movedim(dim, 0), parallel.sequence).movedim(0, dim)
