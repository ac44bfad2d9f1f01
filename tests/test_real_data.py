"""Records and a vocabulary that nobody here wrote, through all three stages; skipped where they are missing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.artifacts import Manifest
from pipelines.config import load
from pipelines.shards import ShardReader

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RECORDS, VOCABULARY = DATA / "alpaca_en_demo.json", DATA / "internlm2_tokenizer.model"
SPECIAL = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (RECORDS.exists() and VOCABULARY.exists()), reason="the real data is not here"),
]

PIPELINE = """
schema_version = 1
[run]
name = "alpaca"
[model.scratch]
model_type = "llama"
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 1
num_key_value_heads = 1
max_position_embeddings = 2048
[tokenizer]
name_or_path = "tokenizer"
[template]
name = "internlm2_chat"
[prep.order]
mode = "write"
[prep.pack]
capacity = 2048
[[prep.source]]
name = "alpaca"
path = "alpaca_en_demo.json"
map = "alpaca"
[train]
global_batch_size = 2
max_steps = 3
precision = "fp32"
[train.optimizer]
lr = 1e-3
[train.deepspeed]
zero_stage = 2
[export]
targets = ["hf", "turbomind"]
[export.hf]
dtype = "bfloat16"
"""


def packtrain(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pipelines", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    (folder / "tokenizer").mkdir()
    shutil.copy(VOCABULARY, folder / "tokenizer" / "tokenizer.model")
    shutil.copy(RECORDS, folder / RECORDS.name)
    added = {
        str(92538 + number): {"content": text, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
        for number, text in enumerate(SPECIAL)
    }
    config = {
        "tokenizer_class": "InternLM2Tokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": added,
    }
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    file = folder / "alpaca.toml"
    file.write_text(PIPELINE)
    for stage in ("prep", "train", "export"):
        print(packtrain(stage, str(file)))
    return file


def test_every_record_is_packed_with_the_loss_on_its_answer(file: Path) -> None:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(VOCABULARY))
    records = json.loads(RECORDS.read_text(encoding="utf-8"))
    prep = load(file).home / "prep"
    facts = Manifest.read(prep).facts  # type: ignore[union-attr]
    seen = set()
    for pack in ShardReader(prep):
        for begin, end, record in zip(pack.cu_seqlens, pack.cu_seqlens[1:], pack.record, strict=False):
            answer = [int(token) for token in pack.tokens[begin:end][pack.loss[begin:end]]]
            assert answer[-1] == 92542  # <|im_end|>
            assert model.decode(answer[:-1]).strip() == records[record]["output"].strip()
            assert pack.tokens[begin] == model.bos_id()
            assert np.count_nonzero(pack.tokens[begin:end] == model.bos_id()) == 1
            seen.add(int(record))
    assert len(seen) == facts["samples"] == 999
    assert facts["fill"] > 0.98


def test_the_export_is_loaded_by_plain_transformers_and_tokenizes_as_prep_did(file: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = load(file).home / "export" / "hf"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    probes = json.loads((load(file).home / "prep" / "tokenizer" / "probes.json").read_text())["probes"]
    assert len(probes) >= 4
    for probe in probes:
        ids = tokenizer.apply_chat_template(probe["messages"], add_generation_prompt=True, return_dict=False)
        assert ids == probe["prompt_ids"]
    assert model.get_input_embeddings().weight.shape == (92544, 64)
    assert 92542 in np.atleast_1d(model.generation_config.eos_token_id)
    assert (load(file).home / "export" / "turbomind" / "triton_models" / "weights" / "config.yaml").is_file()


def test_the_run_leads_back_to_the_records(file: Path) -> None:
    assert "1 unchanged, 0 not here" in packtrain("verify", str(load(file).home))
