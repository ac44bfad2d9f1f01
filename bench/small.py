"""A small model and made-up batches for it: what training is measured with where there is no GPU."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.schema import Pipeline
from pipelines.shards import Pack
from train.batches import StepBatch, micro_batch
from train.engine import Engine
from train.launch import process_group
from train.launchers import Ranks
from train.model import build_model
from train.sequence_parallel import SequenceParallelAttention, init_sequence_parallel

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
"""5.5 million parameters."""
LR = 1e-4


def alpaca_like(samples: int) -> npt.NDArray[np.int64]:
    """Lengths like those of Alpaca's samples in their template: log-normal, median 100 tokens, few above 400."""
    return np.random.default_rng(0).lognormal(np.log(100), 0.6, samples).clip(30, 1024).astype(np.int64)


def pack_of(lengths: Sequence[int], *, seed: int = 0) -> Pack:
    """Documents of these lengths with random tokens; all are targets but the first of each document."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = np.random.default_rng(seed).integers(0, LLAMA["vocab_size"], int(ends[-1])).astype(np.uint16)
    loss = np.ones(tokens.size, np.bool_)
    loss[ends[:-1]] = False
    trace = np.zeros(len(lengths), np.uint32)
    return Pack(tokens, loss, ends, ends, trace, trace, trace)


def batch_of(packs: Sequence[Pack], *, part: int = 0, parts: int = 1) -> StepBatch:
    """One optimizer step of one rank, or of the one that has this part of each pack."""
    return StepBatch(
        [micro_batch(pack, torch.device("cpu"), part=part, parts=parts) for pack in packs],
        loss_tokens=sum(int(np.count_nonzero(pack.loss)) for pack in packs),
        tokens=sum(pack.tokens.size for pack in packs),
        documents=np.concatenate([np.diff(pack.cu_seqlens) for pack in packs]).astype(np.int64),
    )


def pipeline_in(folder: Path, **train: Any) -> Pipeline:
    """A pipeline of the small model; keyword arguments are keys of its [train] table."""
    table = {
        "schema_version": 1,
        "run": {"name": "bench", "work_dir": str(folder)},
        "model": {"scratch": LLAMA},
        "tokenizer": {"name_or_path": "tokenizer"},
        "prep": {"source": [{"name": "s", "path": "s.jsonl"}], "pack": {"capacity": 8192}},
        "train": {"global_batch_size": 1, "precision": "fp32", "optimizer": {"lr": Decimal(str(LR))}, **train},
    }
    return Pipeline.model_validate(table, context={"base": folder})


@contextmanager
def one_rank() -> Iterator[None]:
    """This process as the only rank."""
    with process_group(Ranks.alone()):
        yield


def engine_of(pipeline: Pipeline) -> Engine:
    """The trainer's engine, as its loop makes it."""
    assert pipeline.train is not None
    attention = SequenceParallelAttention(init_sequence_parallel(1), "sdpa")
    attention.register()
    vocabulary = LLAMA["vocab_size"]
    model = build_model(pipeline, {"vocab_size": vocabulary, "max_token_id": vocabulary - 1})
    return Engine(model, pipeline.train, pipeline, attention)


def plain_model() -> Any:
    """The same model as Transformers makes it, with its own attention."""
    keys = {key: value for key, value in LLAMA.items() if key != "model_type"}
    config = AutoConfig.for_model(LLAMA["model_type"], **keys)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").train()
