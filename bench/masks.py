"""Attention by document beside one mask over the whole pack: forward and backward, processor time of one thread.

    python -m bench.masks [--json]

The mask is what Transformers builds for packed documents where no variable-length kernel is at hand. Samples are like
Alpaca's; `whole step` is the small model's forward and backward pass, the rest its attention alone.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.small import LLAMA, alpaca_like
from bench.stepping import in_turns
from bench.table import Figure, command
from train.attention import Scores, Segments, by_document


def figures(folder: Path) -> Iterator[Figure]:  # noqa: ARG001 (nothing is written)
    """Packs of three sizes, of short documents and of one."""
    torch.set_num_threads(1)
    for tokens in (2048, 8192):
        for name, lengths in (("documents like Alpaca's", documents(tokens)), ("one document", [tokens])):
            taken = in_turns({"ours": partial(varlen, lengths), "mask": partial(masked, lengths)}, rounds=3)
            yield Figure(
                f"attention of a layer, {tokens:,} tokens, {name}",
                1e3 * taken["ours"],
                "ms",
                "a mask over the pack",
                1e3 * taken["mask"],
            )


def documents(tokens: int) -> list[int]:
    """Lengths like Alpaca's up to so many tokens."""
    lengths: list[int] = []
    for length in alpaca_like(1000).tolist():
        lengths.append(min(length, tokens - sum(lengths)))
        if sum(lengths) == tokens:
            break
    return lengths


def varlen(lengths: list[int]) -> None:
    query, key, value = heads(sum(lengths))
    out = by_document(query, key, value, Segments.of(lengths), Scores(scale=query.shape[-1] ** -0.5))
    out.sum().backward()  # type: ignore[no-untyped-call]


def masked(lengths: list[int]) -> None:
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in heads(sum(lengths)))
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    visible = (document[:, None] == document[None]).tril()
    F.scaled_dot_product_attention(query, key, value, attn_mask=visible).sum().backward()  # type: ignore[no-untyped-call]


def heads(tokens: int) -> list[Tensor]:
    """Query, key and value of a layer of the small model, [tokens, heads, dim] each."""
    count = LLAMA["num_attention_heads"]
    generator = torch.Generator().manual_seed(0)
    size = (tokens, count, LLAMA["hidden_size"] // count)
    return [torch.randn(size, generator=generator, requires_grad=True) for _ in range(3)]


if __name__ == "__main__":
    command(figures, __doc__)
