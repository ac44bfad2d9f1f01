"""Attention over packed documents for any Transformers model, without a mask and without patching.

`PackedAttention` is registered in Transformers' `AttentionInterface` under our own name. No mask function has that
name, so Transformers passes `attention_mask=None` and never builds an N x N mask. The boundaries of the documents
come with the batch: `with attention.over(segments): ...` around forward and backward (activation checkpointing calls
attention again in the backward pass, on a thread of autograd's own, so a context variable would not reach it).
"""

import importlib.util
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.errors import ConfigError, MachineError

log = logging.getLogger(__name__)

NAME = "packtrain"
"""What the attention is called in Transformers' interface and, while training, in the model's config."""

Backend = Literal["flash_attention_2", "varlen", "sdpa"]

# What models hand to attention besides tensors and scores, and what varlen attention derives from the segments.
HARMLESS = {
    "position_ids", "cache_position", "use_cache", "past_key_values", "output_attentions", "output_hidden_states",
    "return_dict", "is_causal", "position_embeddings", "num_items_in_batch", "logits_to_keep", "labels",
    "output_router_logits", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "layer_idx",
}  # fmt: skip


@dataclass(frozen=True)
class Segments:
    """Documents end to end: those of one micro-batch, or the stretch of them whose queries a kernel computes.

    A stretch may begin inside a document. Its queries see the keys before them all the same, so that document has more
    keys than queries here; its last query is at its last key.
    """

    lengths: list[int]
    """[docs] queries of each document, on the host."""
    cu_seqlens: Tensor
    """int32[docs + 1] on the device, strictly rising from 0."""
    key_lengths: list[int]
    """[docs] keys of each document: as many as queries, or more."""
    cu_seqlens_k: Tensor
    """int32[docs + 1] on the device, strictly rising from 0."""

    @classmethod
    def of(
        cls, lengths: list[int], device: torch.device | str = "cpu", *, key_lengths: list[int] | None = None
    ) -> "Segments":
        assert min(lengths) > 0, "kernels read outside of their arrays with anything else"
        ends = _ends(lengths, device)
        if key_lengths is None or key_lengths == lengths:
            return cls(lengths, ends, lengths, ends)
        return cls(lengths, ends, key_lengths, _ends(key_lengths, device))

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def longest_k(self) -> int:
        return max(self.key_lengths)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def padded(self, multiple: int) -> "Segments":
        """With padding up to a multiple of so many tokens as a document of its own, which no other attends to."""
        padding = -self.tokens % multiple
        return Segments.of([*self.lengths, padding], self.cu_seqlens.device) if padding else self

    def stretch(self, start: int, stop: int) -> tuple["Segments", slice]:
        """The queries start..stop of these documents, and where the keys that they see lie among all keys."""
        queries, keys, first = [], [], stop
        end = 0
        for length in self.lengths:
            begin, end = end, end + length
            if begin < stop and end > start:
                queries.append(min(end, stop) - max(begin, start))
                keys.append(min(end, stop) - begin)
                first = min(first, begin)
        return Segments.of(queries, self.cu_seqlens.device, key_lengths=keys), slice(first, stop)


def _ends(lengths: list[int], device: torch.device | str) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(torch.int32).to(device, non_blocking=True)


@dataclass(frozen=True)
class Scores:
    """How a layer turns queries and keys into weights."""

    scale: float
    window: int | None = None
    """Keys a query sees, itself included; None sees the whole past."""
    softcap: float | None = None
    """Scores pass through `softcap * tanh(score / softcap)`."""
    sinks: Tensor | None = None
    """[heads] a score per head that takes part in the softmax and carries no value."""
    dropout: float = 0.0

    def features(self) -> set[str]:
        """What not every kernel can compute."""
        used = {"softcap": self.softcap is not None, "sinks": self.sinks is not None, "dropout": self.dropout > 0}
        return {name for name, is_used in used.items() if is_used}


Kernel = Callable[[Tensor, Tensor, Tensor, Segments, Scores], Tensor]
"""(query [queries, heads, dim], key and value [keys, kv heads, dim]) to [queries, heads, dim]."""


class PackedAttention:
    """The function behind `attn_implementation="packtrain"`, and the documents it runs over.

    Args:
        backend: the kernel.
        strict: refuse a layer that the kernel cannot compute, instead of taking "sdpa" for it.
    """

    def __init__(self, backend: Backend, *, strict: bool = True) -> None:
        self.backend = backend
        self.calls = 0
        """The audit counts them against the model's layers."""
        self.windowed_calls = 0
        """Those with a sliding window."""
        self._strict = strict
        self._segments: Segments | None = None

    def register(self) -> None:
        """Make Transformers find this object under `NAME`."""
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, self)

    @contextmanager
    def over(self, segments: Segments) -> Iterator[None]:
        """Run attention over these documents, in forward and backward passes inside the block."""
        self._segments = segments
        try:
            yield
        finally:
            self._segments = None

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **rest: Any,
    ) -> tuple[Tensor, None]:
        """Attention as Transformers calls it.

        Args:
            query: [1, heads, tokens, dim]; key and value have their own number of heads.
        Returns:
            [1, tokens, heads, dim], and no weights.
        Raises:
            ConfigError: if the model hands over something that this attention would have to ignore.
        """
        segments = self._segments
        assert segments is not None, "attention outside `over`"
        unknown = sorted(name for name, given in rest.items() if given is not None and name not in HARMLESS)
        if attention_mask is not None:
            unknown.insert(0, "attention_mask")
        tokens = self._tokens(segments)
        if unknown or query.shape[0] != 1 or not query.shape[2] == key.shape[2] == tokens:
            sizes = f"{query.shape[0]} x {query.shape[2]} queries and {key.shape[2]} keys"
            what = (
                f"attention with {', '.join(unknown)}" if unknown else f"{sizes}, where documents have {tokens} tokens,"
            )
            raise ConfigError(f"{type(module).__name__}: {what} is not supported by packed training; use another model")
        self.calls += 1
        self.windowed_calls += bool(sliding_window)
        scores = Scores(
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            window=sliding_window if sliding_window and sliding_window < segments.longest_k else None,
            softcap=softcap,
            sinks=s_aux,
            dropout=dropout,
        )
        packed = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        out = self._attend(packed[0], packed[1], packed[2], segments, scores)
        return out[None].contiguous(), None  # as Transformers' own; some models view it in another shape

    def _tokens(self, segments: Segments) -> int:
        """How many tokens of the documents are here."""
        return segments.tokens

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, segments: Segments, scores: Scores) -> Tensor:
        return self._kernel(scores)(query, key, value, segments, scores)

    def _kernel(self, scores: Scores) -> Kernel:
        lacking = sorted(scores.features() - OFFERED[self.backend])
        if not lacking:
            return KERNELS[self.backend]
        if self._strict:
            raise ConfigError(
                f'model.attn_implementation = "{self.backend}": cannot compute attention with {" and ".join(lacking)}, '
                'which this model uses; set it to "auto" or "sdpa"'
            )
        if self.backend != "sdpa":
            log.info("attention with %s: sdpa instead of %s", " and ".join(lacking), self.backend)
            self.backend = "sdpa"
        return by_document


def choose_backend(
    asked: Literal["auto", "flash_attention_2", "varlen", "sdpa"], device: torch.device, *, half: bool
) -> Backend:
    """The attention kernel for a device.

    Args:
        half: whether queries, keys and values come in bf16 or fp16, which the CUDA kernels want.
    Raises:
        ConfigError: if the one asked for does not go together with float32.
        MachineError: if the one asked for cannot run here.
    """
    has_flash = importlib.util.find_spec("flash_attn") is not None
    if asked == "auto":
        if device.type != "cuda" or not half:
            return "sdpa"
        return "flash_attention_2" if has_flash else "varlen"
    if asked != "sdpa" and not half:
        raise ConfigError(f'model.attn_implementation = "{asked}": computes in bf16 and fp16 only; use "sdpa" for fp32')
    if asked != "sdpa" and device.type != "cuda":
        raise MachineError(f'model.attn_implementation = "{asked}": needs a CUDA device; use "auto" here')
    if asked == "flash_attention_2" and not has_flash:
        raise MachineError('model.attn_implementation = "flash_attention_2": flash-attn is not installed; use "varlen"')
    return asked


def by_document(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scores: Scores) -> Tensor:
    """Scaled dot product attention, one document after the other: exact on every device.

    `split` matters: slicing would give each document's gradient the size of the whole pack. Batching documents of
    similar length with padding was measured and is slower: gathering costs more than the calls it saves.
    """
    one = _plain if scores.softcap is None and scores.sinks is None else _explicit
    sides = ((query, segments.lengths), (key, segments.key_lengths), (value, segments.key_lengths))
    parts = (torch.split(tensor.transpose(0, 1)[None], lengths, dim=2) for tensor, lengths in sides)
    outs = [one(q, k, v, scores) for q, k, v in zip(*parts, strict=True)]
    return torch.cat(outs, dim=2)[0].transpose(0, 1)


def _plain(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    windowed = scores.window is not None and scores.window < keys
    causal = not windowed and queries == keys  # PyTorch would align the first query with the first key
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if causal else _visible(queries, keys, scores.window, query.device),
        is_causal=causal,
        dropout_p=scores.dropout,
        scale=scores.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _explicit(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    # Caps and sinks change the scores, which the fused kernels of PyTorch do not offer.
    queries, keys, groups = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = (query @ key.transpose(2, 3)).float() * scores.scale
    if scores.softcap is not None:
        logits = scores.softcap * torch.tanh(logits / scores.softcap)
    logits = logits.masked_fill(~_visible(queries, keys, scores.window, query.device), float("-inf"))
    if scores.sinks is not None:
        logits = torch.cat([logits, scores.sinks.float().view(1, -1, 1, 1).expand(1, -1, queries, 1)], dim=-1)
    weights = logits.softmax(-1)[..., :keys]
    return F.dropout(weights.to(value.dtype), scores.dropout) @ value


def _visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """bool[queries, keys]: whether a query (row) sees a key (column) of its own document, whose ends are aligned."""
    before = keys - queries
    past = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(before)
    return past if window is None else past.triu(before + 1 - window)


def torch_varlen(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scores: Scores) -> Tensor:
    """PyTorch's own variable-length kernel: CUDA, half precision."""
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {}
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # torch 2.12
            grouped["enable_gqa"] = True
        else:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        _as_wide_as(query, value).contiguous(),
        segments.cu_seqlens,
        segments.cu_seqlens_k,
        segments.longest,
        segments.longest_k,
        scale=scores.scale,
        window_size=_window(scores),
        **grouped,
    )
    assert isinstance(out, Tensor)
    return out[..., : value.shape[-1]]


def flash(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scores: Scores) -> Tensor:
    """flash-attn's variable-length kernel."""
    from flash_attn import flash_attn_varlen_func

    out: Tensor = flash_attn_varlen_func(
        query,
        key,
        _as_wide_as(query, value),
        segments.cu_seqlens,
        segments.cu_seqlens_k,
        segments.longest,
        segments.longest_k,
        dropout_p=scores.dropout,
        softmax_scale=scores.scale,
        causal=True,
        window_size=_window(scores),
        softcap=scores.softcap or 0.0,
        deterministic=torch.are_deterministic_algorithms_enabled(),  # backward; kernels of PyTorch ask it themselves
    )
    return out[..., : value.shape[-1]]


def _window(scores: Scores) -> tuple[int, int]:
    # Keys before and after the query that the kernels let it see; -1 is no limit.
    return (-1 if scores.window is None else scores.window - 1, 0)


def _as_wide_as(query: Tensor, value: Tensor) -> Tensor:
    # The kernels want one head size; columns of zeros come out as zeros and are cut off again.
    return F.pad(value, (0, query.shape[-1] - value.shape[-1]))


KERNELS: dict[Backend, Kernel] = {"sdpa": by_document, "varlen": torch_varlen, "flash_attention_2": flash}
OFFERED: dict[Backend, set[str]] = {
    "sdpa": {"softcap", "sinks", "dropout"},
    "varlen": set(),
    "flash_attention_2": {"softcap", "dropout"},
}
"""Features of `Scores` that a kernel computes; all know the scale and the window."""
