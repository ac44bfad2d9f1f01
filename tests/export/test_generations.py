"""An export means the same to Transformers 4.56 as to 5, without a file being edited."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer

from export.hf import Model, write_hf
from pipelines.checkpoints import Checkpoint
from tests.export.architectures import build, save
from tests.export.tiny import complete

pytestmark = pytest.mark.slow

EARLIER = Path(sys.prefix) / "transformers-4.56"
"""Made by `make setup` from transformers-4.56.txt."""
SCRIPT = Path(__file__).with_name("as_loaded.py")
BROUGHT = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.05}
DENSE = ["gemma2", "gemma3_text", "glm4", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"]
EXPERTS = [
    "deepseek_v3",
    "ernie4_5_moe",
    "gpt_oss",
    "granitemoe",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
]


@pytest.mark.skipif(not (EARLIER / ".ready").exists(), reason="no Transformers 4.56 here: make setup")
def test_two_generations_of_transformers_load_the_same_model(tmp_path: Path) -> None:
    folders = {name: exported(name, tmp_path / name) for name in DENSE + EXPERTS}
    folders["grown"] = exported("llama", tmp_path / "grown", dtype="bfloat16", new_token=True)
    now, now_logits = loaded(folders)
    then, then_logits = loaded(folders, PYTHONPATH=str(EARLIER))
    assert (now["version"][0], then["version"][:4]) == ("5", "4.56")
    for name in folders:
        assert now[name]["gaps"] == {}, name
        assert now[name] == then[name], name
        # Experts' outputs are added up in another order since 5.
        tolerance = 1e-6 if name in EXPERTS else 0.0
        torch.testing.assert_close(then_logits[name], now_logits[name], rtol=0, atol=tolerance, msg=name)
    assert now["llama"]["generation"] == {**BROUGHT, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    assert (now["llama"]["tied"], now["qwen3"]["tied"]) == (True, False)
    assert now["grown"]["dtype"] == "torch.bfloat16"
    assert 259 in now["grown"]["texts"][3]
    assert 259 not in now["llama"]["texts"][3]


def exported(model_type: str, folder: Path, dtype: Any = "float32", *, new_token: bool = False) -> Path:
    """The Hugging Face directory of a tiny model."""
    checkpoint = save(build(model_type), folder / "step-00000001", generation=BROUGHT)
    if new_token:
        grow(checkpoint)
    model = Model.of(Checkpoint(checkpoint), dtype)
    (folder / "hf").mkdir()
    write_hf(model, folder / "hf", 100_000)
    return folder / "hf"


def grow(checkpoint: Path) -> None:
    """Add a token, as a tokenizer that prep grew has it."""
    tensors = dict(Checkpoint(checkpoint).tensors())
    path = checkpoint / "tokenizer" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken("<|new|>", special=True)])
    tokenizer.save(str(path))
    config = json.loads((path.parent / "tokenizer_config.json").read_text())
    (path.parent / "tokenizer_config.json").write_text(json.dumps({**config, "extra_special_tokens": ["<|new|>"]}))
    complete(checkpoint, tensors)


def loaded(folders: dict[str, Path], **environment: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What the Transformers of that environment makes of the directories, and its logits."""
    command = [sys.executable, str(SCRIPT), *map(str, folders.values())]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {name: json.loads(Path(f"{folder}.json").read_text()) for name, folder in folders.items()}
    logits = {name: load_file(f"{folder}.safetensors")["logits"] for name, folder in folders.items()}
    return {**found, "version": done.stdout.split()[-1]}, logits
