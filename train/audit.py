"""The audit before step 1: packed training must compute what each document alone would, or the model is refused."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.errors import ConfigError
from pipelines.shards import Pack
from train.attention import NAME, Segments
from train.engine import Engine
from train.sequence_parallel import (
    gather_for_sequence_parallel,
    pad_for_sequence_parallel,
    split_for_sequence_parallel,
)

PROBE_LENGTHS = (5, 1, 12, 7)
"""Documents of the probe, in tokens: one of a single token, and longer ones before and after it."""
ATTENDING = {"full_attention", "sliding_attention"}
"""Kinds of layers that do nothing between tokens but attend in a way that attention is told of."""
SPARSE = ("attention_chunk_size", "index_topk", "sparse_topk_blocks")
"""Keys of configs that let tokens see some of the tokens before them, which only the mask says."""
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.02}
"""Accepted difference over the spread of the logits. What leaks between documents shifts them by about that spread."""


def audit(engine: Engine, pack: Pack) -> None:
    """Compare a packed probe with its documents run alone through Transformers' own attention.

    Ranks that share packs share the probe as well.

    Args:
        pack: any pack of the data; its tokens serve as the probe's.
    Raises:
        ConfigError: naming the model and what is wrong with it, on every rank.
    """
    text = engine.model.config.get_text_config()  # type: ignore[union-attr,operator]  # a PreTrainedModel has a config
    if finding := beyond_the_probe(text):
        raise _refusal(engine, finding)
    tokens = torch.from_numpy(np.resize(pack.tokens, sum(PROBE_LENGTHS)).astype(np.int64)).to(engine.device)
    with _in_evaluation(engine.model), torch.no_grad():
        packed = _packed_logits(engine, tokens)
        _check_calls(engine, text)
        alone = _logits_alone(engine, tokens)
    whole = gather_for_sequence_parallel(packed, engine.parallel, dim=0)[: len(alone)]
    found = (whole - alone).abs().max() / alone.std().clamp(min=1e-6)
    dist.all_reduce(found, dist.ReduceOp.MAX)  # so that all ranks agree
    if not found.item() <= TOLERANCE[engine.precision]:
        raise _refusal(
            engine, f"their logits differ from those of each document alone by {found.item():.2g} of their spread"
        )


def beyond_the_probe(text: Any) -> str | None:
    """What a model's config says about documents longer than the probe's that packed training would get wrong."""
    for kind in getattr(text, "layer_types", None) or ():
        if kind not in ATTENDING:
            return f"they have layers of the kind {kind}"
    for key in SPARSE:
        if getattr(text, key, None):
            return f"{key} = {getattr(text, key)} chooses which tokens see each other"
    return None


def _check_calls(engine: Engine, text: Any) -> None:
    """Refuse a model of which a layer attends elsewhere, or does not say that its window slides."""
    layers = text.num_hidden_layers
    calls, windowed = engine.attention.calls, engine.attention.windowed_calls
    if calls != layers:
        raise _refusal(engine, f"{calls} of {layers} layers attend through the attention that keeps documents apart")
    if windowed != (sliding := _sliding(text)):
        raise _refusal(
            engine, f"{windowed} of {sliding} layers with a sliding window say so where attention is computed"
        )


def _sliding(text: Any) -> int:
    """Layers that let a token see less than its whole past, by the model's config."""
    if kinds := getattr(text, "layer_types", None):
        return int(kinds.count("sliding_attention"))
    window, positions = getattr(text, "sliding_window", None), getattr(text, "max_position_embeddings", None)
    return text.num_hidden_layers if window and not (positions and window >= positions) else 0


def _refusal(engine: Engine, finding: str) -> ConfigError:
    name = engine.model.config.model_type  # type: ignore[union-attr]
    return ConfigError(f"{name} models cannot be trained on packed documents: {finding}; use another model")


def _packed_logits(engine: Engine, tokens: Tensor) -> Tensor:
    positions = torch.cat([torch.arange(length) for length in PROBE_LENGTHS]).to(engine.device)
    here = [
        split_for_sequence_parallel(pad_for_sequence_parallel(whole, engine.parallel), engine.parallel)
        for whole in (tokens, positions)
    ]
    engine.attention.calls = engine.attention.windowed_calls = 0
    with engine.attention.over(Segments.of(list(PROBE_LENGTHS), engine.device)):
        try:
            return _logits(engine, *here)
        except (TypeError, AttributeError, IndexError) as error:
            # Of a model that takes the mask apart. Its documents alone would not fail, but they have one.
            raise _refusal(engine, f"they fail without an attention mask ({error})") from error


def _logits_alone(engine: Engine, tokens: Tensor) -> Tensor:
    ends = np.cumsum((0, *PROBE_LENGTHS)).tolist()
    with _transformers_attention(engine.model):
        parts = [
            _logits(engine, tokens[start:end], torch.arange(end - start, device=engine.device))
            for start, end in pairwise(ends)
        ]
    return torch.cat(parts)


def _logits(engine: Engine, tokens: Tensor, positions: Tensor) -> Tensor:
    output = engine.model(input_ids=tokens[None], position_ids=positions[None], use_cache=False)
    logits: Tensor = output.logits[0].float()
    return logits


@contextmanager
def _in_evaluation(model: torch.nn.Module) -> Iterator[None]:
    model.eval()
    try:
        yield
    finally:
        model.train()


@contextmanager
def _transformers_attention(model: torch.nn.Module) -> Iterator[None]:
    """Let the model attend as Transformers ships it."""
    _select(model, ("eager", "sdpa"))
    try:
        yield
    finally:
        _select(model, (NAME,))


def _select(model: torch.nn.Module, implementations: Sequence[str]) -> None:
    for implementation in implementations:
        try:
            model.set_attn_implementation(implementation)  # type: ignore[operator]
        except (ValueError, ImportError):
            continue
        return
    raise AssertionError(f"no attention among {implementations}")
