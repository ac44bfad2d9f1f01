"""What looking for damage costs: SHA-256 in each stage, beside the stage's own time.

    python -m bench.checking [--json]

A stage runs in a process of its own, twice, and the run that took less processor time counts. prep reads ftdp, which it
does fastest, so what it digests weighs the most; training is held against an assumed rate, as two cores say nothing
about GPUs. Files were just written, and are read from memory where memory holds them.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.starting import environment
from bench.table import Figure, command, fastest
from bench.whole import VOCABULARY, conversations, write_ftdp, write_jsonl
from pipelines.artifacts import FileRecord, Json, Manifest
from pipelines.checkpoints import FORMAT_VERSION, Checkpoint, fragment_key, step_folder
from pipelines.shards import ShardReader
from prep.bpe import train_bpe, write_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

MEGABYTES = 620
"""Of ftdp: 93 million tokens."""
TEXT_MEGABYTES = 40
"""Of jsonl, which takes many times longer a byte."""
TOKENS_PER_S = 200_000
"""Of a training: 8 GPUs with a model of 7 billion parameters, about."""
LIMIT = 3.0
"""Percent of a stage's time that looking for damage may take."""
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""111 million parameters: a checkpoint of 1.3 GB with the optimizer's two moments."""
_STAGES = {"hf": "export hf, bfloat16", "turbomind": "export turbomind, bfloat16"}


def figures(folder: Path) -> Iterator[Figure]:
    """Seconds and shares of each stage."""
    rate = _rate()
    yield Figure("SHA-256 of this processor, one core", rate / 1e9, "GB/s")
    tokenizer = train_bpe((text for pair in islice(conversations(), 500) for text in pair), vocabulary=VOCABULARY)
    write_tokenizer(tokenizer, folder / "tokenizer")
    (folder / "data").mkdir()
    write_ftdp(folder / "data", megabytes=MEGABYTES, vocabulary=tokenizer.get_vocab_size())
    _write_tomls(folder)
    yield from _stage("prep of ftdp, one process", _measure("bench", folder), rate)
    (folder / "text").mkdir()
    write_jsonl(folder / "text", megabytes=TEXT_MEGABYTES)
    yield from _stage("prep of jsonl, one process", _measure("text", folder), rate)
    yield from _training(folder)
    _write_checkpoint(folder)
    for what, name in _STAGES.items():
        yield from _stage(name, _measure(what, folder), rate)


def _stage(name: str, found: dict[str, float], rate: float) -> Iterator[Figure]:
    yield Figure(name, found["seconds"], "s")
    yield Figure("  processor time", found["processor"], "s")
    yield Figure("  digested", found["digested"] / 1e9, "GB", "at this processor's rate, s", found["digested"] / rate)
    share = 100 * found["digesting"] / found["processor"]
    yield Figure("  SHA-256 of processor time", share, "%", target=f"<= {LIMIT:g}")
    yield Figure("  seconds in which any thread digests, of all", 100 * found["while"] / found["seconds"], "%")


def _training(folder: Path) -> Iterator[Figure]:
    """What a run of one epoch looks at: shards at its start, each pack as it is read, checkpoints as they are saved."""
    prep = folder / "work" / "bench" / "prep"
    manifest = Manifest.read(prep)
    assert manifest is not None
    tokens, packs = manifest.facts["tokens"], manifest.facts["packs"]
    epoch = tokens / TOKENS_PER_S
    start = fastest(lambda: manifest.verify(prep), times=2)
    yield Figure(f"digests of the shards of {tokens / 1e6:,.0f} million tokens", start, "s")
    beside = f"an epoch at {TOKENS_PER_S:,} tokens/s, assumed"
    yield Figure("  of the training", 100 * start / (start + epoch), "%", beside + ", s", epoch, f"<= {LIMIT:g}")
    seen = manifest.stamps(prep)

    def read() -> None:
        for _ in ShardReader(prep, seen=seen):
            pass

    each = fastest(read, times=2, seconds=0, clock=time.process_time) / packs
    yield Figure("reading a pack, its bounds and ids checked", each * 1e6, "us")
    yield Figure("  of the training", 100 * each * packs / epoch, "%", target=f"<= {LIMIT:g}")
    saved, plain = (_measure(what, folder) for what in ("save", "unchecked"))
    yield Figure("saving a checkpoint's state, digested", saved["seconds"], "s", "undigested", plain["seconds"])
    yield Figure("  processor time", saved["processor"], "s", "undigested", plain["processor"])


def _measure(what: str, folder: Path) -> dict[str, float]:
    runs: list[dict[str, float]] = []
    for _ in range(2):
        made = {"bench": "bench/prep", "text": "text/prep"}.get(what, "bench/export")
        shutil.rmtree(folder / "work" / made, ignore_errors=True)
        arguments = [sys.executable, "-m", "bench.digesting", what, str(folder)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment())
        if done.returncode:
            raise RuntimeError(f"{what}: {done.stderr.strip()[-300:]}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return min(runs, key=lambda run: run["processor"])


def _rate() -> float:
    """Bytes of SHA-256 in a second of one core."""
    import hashlib

    data = bytes(1 << 24)
    return len(data) / fastest(lambda: hashlib.sha256(data).digest(), clock=time.thread_time)


def _write_tomls(folder: Path) -> None:
    common = {
        "schema_version": 1,
        "tokenizer": {"name_or_path": "tokenizer"},
        "model.scratch": {"model_type": "llama", "vocab_size": VOCABULARY},
        "prep": {"max_length": 4096, "overlength": "truncate_right"},
        "prep.order": {"mode": "scan"},
        "prep.pack": {"capacity": 4096},
    }
    for name in ("bench", "text", *_STAGES):
        source = {"name": "data", "path": "text" if name == "text" else "data"}
        source["map"] = "openai" if name == "text" else "none"
        export: dict[str, Json] = {"targets": [name if name in _STAGES else "hf"]}
        tables = {**common, "export": export, "export.hf": {"dtype": "bfloat16"}, "export.verify": {"greedy_tokens": 0}}
        tables["run"] = {"name": "text" if name == "text" else "bench", "work_dir": "work"}
        tables["export.turbomind"] = {"chat_template": "base"}
        lines = []
        for table, keys in tables.items():
            lines += [f"[{table}]"] * isinstance(keys, dict)
            pairs = keys.items() if isinstance(keys, dict) else [(table, keys)]
            lines += [f"{key} = {json.dumps(value)}" for key, value in pairs]
        lines += ["[[prep.source]]", *(f"{key} = {json.dumps(value)}" for key, value in source.items())]
        (folder / f"{name}.toml").write_text("\n".join(lines) + "\n")


def state() -> "tuple[dict[str, Tensor], dict[str, Tensor]]":
    """What a rank saves of a model of LLAMA's sizes, with random numbers: its weights, and two moments of each."""
    import torch

    random = torch.Generator().manual_seed(0)
    weights = {
        fragment_key("parameter", name, 0): torch.empty(shape).normal_(std=0.02, generator=random)
        for name, shape in shapes().items()
    }
    kinds = ("exp_avg", "exp_avg_sq")
    moments = {key.replace("parameter", kind, 1): tensor for key, tensor in weights.items() for kind in kinds}
    return weights, moments


def shapes() -> dict[str, tuple[int, ...]]:
    """Every parameter of LLAMA."""
    hidden, inner, heads = LLAMA["hidden_size"], LLAMA["intermediate_size"], LLAMA["head_dim"]
    keys = LLAMA["num_key_value_heads"] * heads
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (LLAMA["vocab_size"], hidden)}
    for layer in range(LLAMA["num_hidden_layers"]):
        attention, mlp = (f"model.layers.{layer}.{part}" for part in ("self_attn", "mlp"))
        found |= {f"{attention}.{name}_proj.weight": (hidden, hidden) for name in "qo"}
        found |= {f"{attention}.{name}_proj.weight": (keys, hidden) for name in "kv"}
        found |= {f"{mlp}.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        found[f"{mlp}.down_proj.weight"] = (hidden, inner)
        norms = ("input_layernorm", "post_attention_layernorm")
        found |= {f"model.layers.{layer}.{name}.weight": (hidden,) for name in norms}
    return {**found, "model.norm.weight": (hidden,), "lm_head.weight": (LLAMA["vocab_size"], hidden)}


def _write_checkpoint(folder: Path) -> Checkpoint:
    from train.checkpoint import write_safetensors

    prep = Manifest.read(folder / "work" / "bench" / "prep")
    assert prep is not None
    made = step_folder(folder / "work" / "bench" / "train" / "checkpoints", 10)
    (made / "model").mkdir(parents=True)
    (made / "model" / "config.json").write_text(json.dumps(LLAMA))
    shutil.copytree(folder / "work" / "bench" / "prep" / "tokenizer", made / "tokenizer")
    whole, beginning = write_safetensors(made / "state-00000-of-00001.safetensors", *state())
    small = [path for kind in ("model", "tokenizer") for path in sorted((made / kind).rglob("*")) if path.is_file()]
    facts: dict[str, Json] = {
        "step": 10,
        "packs_consumed": 80,
        "loss": {"first": 5.5, "last": 2.25},
        "tied": {},
        "buffers": {},
        "parameters": {name: list(shape) for name, shape in shapes().items()},
        "weights": [vars(beginning)],
    }
    records = [whole, *(FileRecord.of(made, path) for path in small)]
    Manifest("checkpoint", FORMAT_VERSION, whole.sha256, {"prep": prep.identity}, records, facts).write(made)
    return Checkpoint(made)


if __name__ == "__main__":
    command(figures, __doc__)
