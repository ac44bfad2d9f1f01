"""The three stages through the installed command: what the trainer saves on any ranks, the exporter reads."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.provenance import verify
from tests.export.tiny import write_tokenizer

pytestmark = pytest.mark.slow

TOML = """
schema_version = 1
[run]
name = "tiny"
[model.scratch]
model_type = "llama"
hidden_size = 128
intermediate_size = 96
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 256
tie_word_embeddings = true
[tokenizer]
name_or_path = "tokenizer"
[prep.order]
mode = "write"
[prep.pack]
capacity = 256
[[prep.source]]
name = "s"
path = "s.jsonl"
[train]
global_batch_size = 2
max_steps = 3
precision = "fp32"
nproc_per_node = {ranks}
checkpoint.save_optimizer = {with_optimizer}
[train.optimizer]
lr = 1e-3
[train.deepspeed]
zero_stage = {stage}
[export]
targets = ["hf", "turbomind"]
[export.turbomind]
tp = 2
[export.eval]
file = "heldout.jsonl"
max_new_tokens = 4
"""


def packtrain(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-m", "pipelines", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def exported(folder: Path, *, stage: int, ranks: int) -> dict[str, np.ndarray]:
    """Weights after prep, three steps of training and export below `folder`."""
    folder.mkdir()
    write_tokenizer(folder / "tokenizer")
    turns = [("user", "count from {0}"), ("assistant", "{0} {1} {2}")]
    lines = []
    for number in range(40):
        numbers = (number, number + 1, number + 2)
        messages = [{"role": role, "content": content.format(*numbers)} for role, content in turns]
        lines.append(json.dumps({"messages": messages}))
    (folder / "s.jsonl").write_text("\n".join(lines[:36]))
    (folder / "heldout.jsonl").write_text("\n".join(lines[36:]))
    (folder / "tiny.toml").write_text(TOML.format(stage=stage, ranks=ranks, with_optimizer=str(ranks == 1).lower()))
    for command in ("prep", "train"):
        packtrain(command, "tiny.toml", folder=folder)
    assert "of 4 held-out prompts" in packtrain("export", "tiny.toml", folder=folder)
    return dict(load_file(folder / "work" / "tiny" / "export" / "hf" / "model.safetensors"))


def test_a_model_trained_in_shards_is_exported_as_one_trained_whole(tmp_path: Path) -> None:
    whole = exported(tmp_path / "whole", stage=0, ranks=1)
    sharded = exported(tmp_path / "sharded", stage=3, ranks=2)
    assert whole.keys() == sharded.keys()
    assert "lm_head.weight" not in whole
    for name, weights in whole.items():
        # Ranks add their gradients in another order: a difference in the last places, in a few steps of 1e-3.
        np.testing.assert_allclose(sharded[name], weights, rtol=0, atol=1e-4, err_msg=name)
    kinds = [one.kind for one in verify(tmp_path / "sharded" / "work" / "tiny" / "export")]
    assert kinds == ["prep", "checkpoint", "export"]
