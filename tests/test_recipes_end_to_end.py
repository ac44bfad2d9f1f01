"""Two recipes through all three stages, on tiny random models of their families."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.train.sequence_parallel.architectures import ARCHITECTURES

QUICKSTART = Path(__file__).parents[1] / "pipelines" / "quickstart"
OVERRIDES = (
    *('model.source="local"', 'model.name_or_path="model"', "prep.pack.capacity=256", 'prep.order.mode="write"'),
    *("train.global_batch_size=2", "train.max_steps=2", 'train.precision="fp32"', 'export.targets=["hf"]'),
)


def packtrain(*arguments: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pipelines", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(QUICKSTART.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "model_type"), [("llama3-8b-instruct-lora-2k", "llama"), ("starcoder2-3b-pretrain-2k", "starcoder2")]
)
def test_a_recipe_goes_through_all_stages(recipe: str, model_type: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    keys = {**ARCHITECTURES[model_type].keys, "vocab_size": 1024, "max_position_embeddings": 512}
    config = AutoConfig.for_model(model_type, **{key: value for key, value in keys.items() if key != "model_type"})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    for file in (QUICKSTART / "tokenizer").iterdir():
        shutil.copy(file, tmp_path / "model")
    packtrain("init", recipe, ".", folder=tmp_path)
    asked = [f"Sort: {first} {second}" for first in range(15) for second in range(15)]
    if recipe.endswith("pretrain-2k"):
        write(tmp_path / "data" / "text", [{"text": text} for text in asked])
    else:
        roles = ("user", "assistant")
        chats = [[{"role": role, "content": text} for role in roles] for text in asked]
        write(tmp_path / "data" / "chats", [{"messages": chat} for chat in chats])
    sets = [part for override in OVERRIDES for part in ("--set", override)]
    for stage in ("prep", "train", "export"):
        packtrain(stage, f"{recipe}.toml", *sets, folder=tmp_path)
    assert (tmp_path / "work" / recipe / "export" / "hf" / "config.json").is_file()


def write(folder: Path, records: Sequence[Mapping[str, object]]) -> None:
    folder.mkdir(parents=True)
    (folder / "data.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
