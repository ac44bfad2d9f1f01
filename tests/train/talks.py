"""Tiny runs whose model can be talked to, and what plain Transformers answers for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pipelines import schema
from pipelines.artifacts import FileRecord, Manifest
from pipelines.checkpoints import Checkpoint
from pipelines.probes import Probes
from prep.tokenizer import load_tokenizer
from prep.tokenizer_files import write_tokenizer_files
from tests.prep.folders import byte_level
from tests.train.runs import LLAMA, checkpoints, write_prep

PROMPTS = ["Hello!", "上海是什么？", "def add(left: int"]
MOST = 10
EVAL: dict[str, Any] = {"eval": {"steps": 2, "prompts": PROMPTS, "max_new_tokens": MOST}}
VOCABULARY = 600
TALKATIVE: dict[str, Any] = {"vocab_size": VOCABULARY, "tie_word_embeddings": False, "initializer_range": 0.3}
"""Small random weights, tied, would say the prompt's last token again and again."""
MODEL: dict[str, Any] = {"scratch": LLAMA | TALKATIVE}
STOPS = list(range(0, VOCABULARY, 9))
"""So many that a model that has learned nothing ends some answers."""


def write_chat_prep(folder: Path, *, template: str = "internlm2_chat", held_out: int = 0) -> Path:
    """A finished prep directory with a tokenizer and a chat template."""
    write_prep(folder, vocabulary=VOCABULARY, held_out=held_out)
    byte_level(folder / "model", config={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"})
    settings = schema.Template(name=template)
    write_tokenizer_files(load_tokenizer(folder / "model"), settings, folder / "tokenizer", chat=template != "none")
    Probes(STOPS, Probes.read(folder / "tokenizer").probes).write(folder / "tokenizer")
    manifest = Manifest.read(folder)
    assert manifest is not None
    others = [record for record in manifest.files if not record.path.startswith("tokenizer/")]
    files = [FileRecord.of(folder, path) for path in sorted((folder / "tokenizer").iterdir())]
    Manifest(**{**vars(manifest), "files": [*others, *files]}).write(folder)
    return folder


def answers(rows: Sequence[dict[str, Any]], step: int) -> list[tuple[str, int, str]]:
    """Text, tokens and end of the answers after a step."""
    found = [row for row in rows if (row["kind"], row["step"]) == ("chat", step)]
    return [(row["answer"], row["tokens"], row["finish"]) for row in found]


def from_checkpoint(folder: Path, model: dict[str, Any]) -> list[tuple[str, int, str]]:
    """What Transformers' own generate gives for the weights of a run's last checkpoint."""
    checkpoint = Checkpoint(checkpoints(folder)[-1])
    loaded = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model))
    loaded.load_state_dict({name: torch.from_numpy(values) for name, values in checkpoint.tensors()}, strict=False)
    return generated(loaded, checkpoint.folder / "tokenizer")


def generated(model: Any, tokenizer_folder: Path) -> list[tuple[str, int, str]]:
    """Greedy answers of Transformers to `PROMPTS`."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    return [_generated(model.eval(), tokenizer, prompt) for prompt in PROMPTS]


def _generated(model: Any, tokenizer: Any, prompt: str) -> tuple[str, int, str]:
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    output = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        max_new_tokens=MOST,
        do_sample=False,
        eos_token_id=STOPS,
        pad_token_id=0,
    )
    new = output[0, len(ids) :].tolist()
    stopped = new[-1] in STOPS
    text = tokenizer.decode(new[:-1] if stopped else new, skip_special_tokens=True).strip()
    return text, len(new), "stop" if stopped else "length"
