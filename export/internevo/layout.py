"""Which rows of an InternEvo checkpoint are which rows of a Hugging Face model, for the InternLM2 and the Llama type.

InternEvo cuts every tensor over its tensor-parallel ranks: along the rows (axis 0), along the columns (axis 1), or not
at all. Put together again, each row of a Hugging Face tensor is one row of such a whole tensor; only the rows of
queries, keys and values are in another order, and only in `wqkv` do several tensors lie in one.

With `adapt_hf` false, rows inside a query or key head alternate between the two halves that rotary positions turn
against each other; Hugging Face has one half after the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["internlm2", "llama"]
"""InternEvo's INTERNLM2_PUBLIC, with one `wqkv`, and LLAMA2, with `wq`, `wk` and `wv`; also how Hugging Face has it."""
Rows = npt.NDArray[np.int64]

SPLIT_HIDDEN = "tok_embeddings.weight"
SPLIT_VOCABULARY = "tok_embeddings.word_embeddings.weight"
OUTPUT = "output.weight"
NORM = "norm.weight"


@dataclass(frozen=True)
class Sizes:
    """The sizes that decide every tensor's shape."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    rows: int
    """Of the embedding: the vocabulary."""
    mlp: int
    """Inner size of the MLP."""
    bias: bool
    """Whether the projections of the attention have biases."""

    @property
    def head(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Whole:
    """An InternEvo tensor before it is cut over the tensor-parallel ranks."""

    shape: tuple[int, ...]
    axis: int | None
    """It is cut along, or None where every rank holds all of it."""

    def shard(self, tp: int) -> tuple[int, ...]:
        """Shape on each of `tp` ranks; each size has to be a multiple."""
        return tuple(size // tp if axis == self.axis else size for axis, size in enumerate(self.shape))


@dataclass(frozen=True)
class Part:
    """Where a Hugging Face tensor is within a whole InternEvo tensor."""

    whole: str
    rows: Rows
    """[rows of the part] its rows' numbers in the whole."""


def wholes(kind: Kind, sizes: Sizes, *, split_hidden: bool) -> dict[str, Whole]:
    """Every tensor of a model by InternEvo's name, with layers counted over all pipeline stages.

    Args:
        split_hidden: whether ranks hold columns of the embedding (`embed_split_hidden`), or rows.
    """
    hidden, query, kv = sizes.hidden, sizes.heads * sizes.head, sizes.kv_heads * sizes.head
    found = {SPLIT_HIDDEN if split_hidden else SPLIT_VOCABULARY: Whole((sizes.rows, hidden), int(split_hidden))}
    projections = {"wqkv": query + 2 * kv} if kind == "internlm2" else {"wq": query, "wk": kv, "wv": kv}
    for layer in range(sizes.layers):
        place = f"layers.{layer}"
        for name, rows in projections.items():
            found[f"{place}.attention.{name}.weight"] = Whole((rows, hidden), 0)
            if sizes.bias:
                found[f"{place}.attention.{name}.bias"] = Whole((rows,), 0)
        found[f"{place}.attention.wo.weight"] = Whole((hidden, query), 1)
        if sizes.bias:
            found[f"{place}.attention.wo.bias"] = Whole((hidden,), None)
        found[f"{place}.attention_norm.weight"] = Whole((hidden,), None)
        found[f"{place}.ffn_norm.weight"] = Whole((hidden,), None)
        found[f"{place}.feed_forward.w1.weight"] = Whole((sizes.mlp, hidden), 0)
        found[f"{place}.feed_forward.w3.weight"] = Whole((sizes.mlp, hidden), 0)
        found[f"{place}.feed_forward.w2.weight"] = Whole((hidden, sizes.mlp), 1)
    found[NORM] = Whole((hidden,), None)
    found[OUTPUT] = Whole((sizes.rows, hidden), 0)
    return found


def parts(kind: Kind, layout: Kind, whole: Mapping[str, Whole], sizes: Sizes, *, adapt_hf: bool) -> dict[str, Part]:
    """Every Hugging Face tensor, with the place of its rows; together they hold each row of `whole` once.

    Args:
        kind: of the InternEvo model.
        layout: names of the Hugging Face model; a Llama type has no others than Llama's.
        whole: what `wholes` gives for `kind`.
    """
    assert kind == "internlm2" or layout == "llama"
    found: dict[str, Part] = {}
    for name, tensor in whole.items():
        if ".attention.wqkv." in name and layout == "llama":
            stem, _, ending = name.rpartition(".attention.wqkv.")
            for letter, rows in zip("qkv", _apart(sizes, adapt_hf=adapt_hf), strict=True):
                found[f"model.{stem}.self_attn.{letter}_proj.{ending}"] = Part(name, rows)
        else:
            found[_hf_name(name, layout)] = Part(name, _rows(name, tensor, sizes, adapt_hf=adapt_hf))
    return found


_LLAMA = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def _hf_name(name: str, layout: Kind) -> str:
    if name in (SPLIT_HIDDEN, SPLIT_VOCABULARY):
        return "model.tok_embeddings.weight" if layout == "internlm2" else "model.embed_tokens.weight"
    if name == OUTPUT:
        return OUTPUT if layout == "internlm2" else "lm_head.weight"
    if name == NORM or layout == "internlm2":
        return f"model.{name}"
    layers, number, rest = name.split(".", 2)
    stem, _, ending = rest.rpartition(".")
    return f"model.{layers}.{number}.{_LLAMA[stem]}.{ending}"


def _rows(name: str, tensor: Whole, sizes: Sizes, *, adapt_hf: bool) -> Rows:
    if ".attention.wqkv." in name:
        return _grouped(sizes, adapt_hf=adapt_hf).reshape(-1)
    rows = np.arange(tensor.shape[0], dtype=np.int64)
    if ".attention.wq." in name or ".attention.wk." in name:
        return rows.reshape(-1, sizes.head)[:, _head(sizes, adapt_hf=adapt_hf)].reshape(-1)
    return rows


def _grouped(sizes: Sizes, *, adapt_hf: bool) -> Rows:
    """[K/V heads, query heads of each + 2, head] row of `wqkv` that is the row of Hugging Face's."""
    rows = np.arange((sizes.heads + 2 * sizes.kv_heads) * sizes.head, dtype=np.int64)
    groups = rows.reshape(sizes.kv_heads, sizes.heads // sizes.kv_heads + 2, sizes.head)
    return np.concatenate([groups[:, :-1, _head(sizes, adapt_hf=adapt_hf)], groups[:, -1:]], axis=1)


def _apart(sizes: Sizes, *, adapt_hf: bool) -> tuple[Rows, Rows, Rows]:
    rows = _grouped(sizes, adapt_hf=adapt_hf)
    return rows[:, :-2].reshape(-1), rows[:, -2].reshape(-1), rows[:, -1].reshape(-1)


def _head(sizes: Sizes, *, adapt_hf: bool) -> Rows:
    rows = np.arange(sizes.head, dtype=np.int64)
    return rows if adapt_hf else np.concatenate([rows[0::2], rows[1::2]])
