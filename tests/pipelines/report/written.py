"""A run's files as the three stages leave them, small, with everything in them that the report shows."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.artifacts import MANIFEST, FileRecord, Manifest, identity
from pipelines.checkpoints import step_folder
from tests.train import runs

HOSTILE = "<script>fetch('//x')</script>\"'&\u202e\x1b[31m"
"""What no part of a page may take for its own: markup, quotes, a turn of direction, a control character."""
HALF = "\ud800"
"""Half a character, which JSON can spell and UTF-8 cannot."""
SOURCES = ("chat", "web & <b>books</b>")
STEPS = 300


def write_run(folder: Path, *, steps: int = STEPS, until: str = "export") -> Path:
    """A run in `folder`, up to a stage; returns its directory."""
    home = folder / "tiny"
    write_prep(home / "prep")
    if until == "prep":
        return home
    write_train(home / "train", steps=steps)
    if until == "export":
        write_export(home / "export")
    return home


def write_prep(folder: Path) -> None:
    """Shards of the train tests, with the facts that prep tells of its own."""
    runs.write_prep(folder, packs=200, held_out=3)
    rejects = [{"source": SOURCES[0], "path": f"{HOSTILE}.jsonl", "record": 6, "byte": 3, "reason": HOSTILE}]
    (folder / "rejects.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rejects))
    shards = Manifest.read(folder)
    assert shards is not None
    sources = [
        {"weight": "0.75", "samples": 600, "tokens": 5_580, "share": 0.744, "passes": 0.61},
        {"repeat": "2.5", "samples": 200, "tokens": 1_920, "share": 0.256, "passes": 2.5},
    ]
    asked = ("weight", "repeat")
    facts: dict[str, Any] = {
        **shards.facts,
        "samples": 800,
        "tokens": 7_490,
        "loss_tokens": 3_000,
        "fill": 0.936250,
        "packs_lower_bound": 188,
        "records": 1_003,
        "rejected": 1,
        "dropped": {"overlong, cut": 12},
        "sources": [
            {"name": name, "sha256": "5" * 64, **{key: value for key, value in one.items() if key not in asked}}
            for name, one in zip(SOURCES, sources, strict=True)
        ],
        "files": [
            {"source": source, "path": path, "size": 1_234, "sha256": "f" * 64}
            for source, path in ((SOURCES[0], "a.jsonl"), (SOURCES[0], f"{HOSTILE}.jsonl"), (SOURCES[1], "b.jsonl"))
        ],
        "eval": {**shards.facts["eval"], "samples": 12, "tokens": 110},
        "settings": {
            "prep": {
                "mix": {"unit": "tokens"},
                "pack": {"strategy": "in_order"},
                "source": [
                    {"name": name, **{key: one.get(key) for key in asked}}
                    for name, one in zip(SOURCES, sources, strict=True)
                ],
            }
        },
        "versions": {"tokenizers": "0.23.3"},
    }
    _complete(folder, "prep", {}, facts)


def write_train(folder: Path, *, steps: int = STEPS, total: int | None = None) -> None:
    """metrics.jsonl of so many steps, run.json, and two checkpoints."""
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(steps))
        file.write('{"kind": "train", "step"')  # the row that is being written
    (folder / "run.json").write_text(json.dumps(RECORD))
    prep = Manifest.read(folder.parent / "prep")
    assert prep is not None
    for step in (max(1, steps // 2), steps):
        checkpoint = step_folder(folder / "checkpoints", step)
        (checkpoint / "model").mkdir(parents=True, exist_ok=True)
        (checkpoint / "model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        facts = {
            "step": step,
            "total_steps": total or steps,
            "loss": {"first": 6.5, "last": 0.5},
            "parameters": {"a": [1_200, 1_000], "b": [64]},
            "settings": {"train": {"global_batch_size": 4, "optimizer": {"lr": 1e-3, "type": HOSTILE}}},
            "versions": {"torch": "2.13.0"},
        }
        _complete(checkpoint, "checkpoint", {"prep": prep.identity}, facts)


def write_export(folder: Path) -> None:
    """Two targets of the newest checkpoint, and what the model answered."""
    checkpoints = sorted((folder.parent / "train" / "checkpoints").iterdir())
    newest = Manifest.read(checkpoints[-1])
    assert newest is not None
    verified: dict[str, Any] = {
        "tensors_equal": 38,
        "prompts_equal": 6,
        "greedy": {"prompts": 4, "tokens": 16, "max_abs_diff": 0.0},
    }
    step = newest.facts["step"]
    for target in ("hf", "turbomind"):
        (folder / target).mkdir(parents=True)
        (folder / target / "model.safetensors").write_bytes(bytes(2_000))
        facts = {"verified": verified, "dtype": "bfloat16", "parameters": 1_200_064, "rounded_to_zero": 0, "step": step}
        _complete(folder / target, target, {"checkpoint": newest.identity}, facts)
    answers = [
        {"messages": [{"role": "user", "content": HOSTILE}], "expected": "1 2 3", "found": HOSTILE, "right": False}
    ]
    accuracy = {"right": 9, "of": 10, "accuracy": 0.9, "by_task": {"sort": {"right": 9, "of": 10, "accuracy": 0.9}}}
    (folder / "eval.json").write_text(json.dumps({**accuracy, "answers": answers}))
    facts = {"verified": {"hf": verified, "turbomind": verified}, "evaluation": accuracy, "step": step}
    _complete(folder, "export", {"checkpoint": newest.identity}, facts)


RECORD = {
    "started": "2026-01-02T03:04:05+00:00",
    "ended": "2026-01-02T05:04:05+00:00",
    "hosts": ["secret-host"],
    "command": ["packtrain", "train", "/home/someone/secret.toml"],
    "environment": {"NCCL_SECRET": "1"},
    "device": "NVIDIA H100",
    "ranks": 8,
    "zero_stage": 3,
    "precision": "bf16",
    "attention": "flash_attention_2",
    "sequence_parallel_size": 2,
}


def rows(steps: int) -> Iterator[dict[str, Any]]:
    """A training whose loss falls, with a spike, two steps that were skipped, evaluations and answers."""
    skipped = 0
    for step in range(1, steps + 1):
        loss = 0.4 + 6 * math.exp(-step / steps * 6) + 0.15 * math.sin(step * 1.7)
        nonfinite = step in (steps // 3, steps // 3 + 1)
        skipped += nonfinite
        yield {
            "kind": "train",
            "step": step,
            "epoch": step * 4 / 200,
            "loss": None if nonfinite else 9.0 if step == steps // 2 else loss,
            "loss_tokens": 300,
            "tokens": 150_000,
            "grad_norm": None if nonfinite else 1 + loss + 0.3 * math.sin(step),
            "lr": 2e-5 * min(1, step / steps * 20) * (1 + math.cos(step / steps * math.pi)) / 2,
            "step_time_s": 1.5,
            "tokens_per_s": 100_000 + 4_000 * math.sin(step / 3),
            "mfu": 0.41,
            "memory_gb": 61.2,
            "skipped": nonfinite,
            "skipped_steps": skipped,
            "loss_by_source": {} if nonfinite else {SOURCES[0]: loss * 0.9, SOURCES[1]: loss * 1.2},
        }
        if step % max(1, steps // 10) == 0:
            held_out = loss + 0.05
            by_source = {SOURCES[0]: held_out * 0.9, SOURCES[1]: held_out * 1.2}
            yield {"kind": "eval", "step": step, "loss": held_out, "loss_tokens": 99, "loss_by_source": by_source}
            for prompt in ("Sort: 5 2 9", HOSTILE):
                said = {"answer": f"2 5 9 after {step}\n{HOSTILE}{HALF}", "tokens": 9, "finish": "stop", "error": None}
                yield {"kind": "chat", "step": step, "prompt": prompt, "system": "", "seconds": 0.1, **said}


def _complete(folder: Path, kind: str, parents: dict[str, str], facts: dict[str, Any]) -> None:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    Manifest(
        kind, 1, identity(kind, facts, parents), parents, [FileRecord.of(folder, one) for one in found], facts
    ).write(folder)
