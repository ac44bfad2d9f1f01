"""Two new special tokens through all three stages: templates use them, the model learns rows for them, exports stop."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList

from export.adapter import load_adapter
from export.run import run as export
from pipelines.artifacts import Manifest
from pipelines.checkpoints import Checkpoint, finished
from pipelines.config import load
from pipelines.shards import ShardReader
from prep.run import run as prep
from tests.export.tiny import LLAMA, write_tokenizer
from train.run import run as train

pytestmark = pytest.mark.slow

OWN, TURN, DONE = 259, 259, 260
TEMPLATE = """{%- for message in messages -%}
<|turn|>{{ message['role'] }}
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|done|>{% endgeneration %}
{%- else %}{{ message['content'] }}<|done|>{% endif %}
{%- endfor -%}
{%- if add_generation_prompt -%}<|turn|>assistant
{% endif -%}"""
TOML = """
schema_version = 1
[run]
name = "whole"
[model]
name_or_path = "base"
[tokenizer]
name_or_path = "tokenizer"
add_special_tokens = ["<|turn|>", "<|done|>"]
pad_vocab_multiple = 8
[template]
name = "custom"
file = "chat.jinja"
[prep.order]
mode = "write"
[prep.pack]
capacity = 256
[[prep.source]]
name = "s"
path = "s.jsonl"
[train]
global_batch_size = 2
max_steps = 2
precision = "fp32"
[train.optimizer]
lr = 1e-3
[export]
targets = ["hf", "turbomind"]
[export.hf]
dtype = "float32"
[export.verify]
greedy_tokens = 8
"""
LORA = (
    'run.name="adapted"',
    'model.lora={ r = 2, modules_to_save = ["embed_tokens", "lm_head"] }',
    'export.targets=["adapter", "hf"]',
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new-tokens")
    write_tokenizer(folder / "tokenizer")
    (folder / "chat.jinja").write_text(TEMPLATE)
    keys = {key: value for key, value in LLAMA.items() if key not in ("architectures", "dtype", "transformers_version")}
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**keys)).save_pretrained(folder / "base")
    talks = [[("user", f"say <|done|> and {n}"), ("assistant", f"<|done|> and {n}")] for n in range(40)]
    lines = [
        json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}) for turns in talks
    ]
    (folder / "s.jsonl").write_text("\n".join(lines))
    (folder / "x.toml").write_text(TOML)
    return folder


def through(folder: Path, *overrides: str) -> Path:
    """All three stages; returns the exports' folder."""
    pipeline = load(folder / "x.toml", overrides)
    prep(pipeline, workers=1)
    train(pipeline)
    export(pipeline)
    return pipeline.home / "export"


def checkpoint_of(exports: Path) -> Checkpoint:
    return Checkpoint(finished(exports.parent / "train" / "checkpoints")[-1])


class DoneAtThird(LogitsProcessor):  # type: ignore[misc]  # of a library without types
    """Lets the third new token be the new end of turn, as a model that learned to stop would."""

    def __init__(self, prompt: int) -> None:
        self._prompt = prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, DONE] = 1e9 if input_ids.shape[1] == self._prompt + 2 else -1e9
        return scores


def test_new_tokens_are_trained_exported_and_stop_an_answer(folder: Path) -> None:
    exports = through(folder)
    facts = ShardReader(exports.parent / "prep").manifest.facts
    assert facts["added_tokens"] == {"<|turn|>": TURN, "<|done|>": DONE}
    assert (facts["own_vocab_size"], facts["vocab_size"]) == (OWN, OWN + 2)
    pack = ShardReader(exports.parent / "prep")[0]
    begins = [index for index, token in enumerate(pack.tokens.tolist()) if token == TURN]
    assert pack.tokens.tolist().count(DONE) == len(begins)  # what users wrote stays text

    trained = dict(checkpoint_of(exports).tensors())
    weights = load_file(exports / "hf" / "model.safetensors")
    assert weights["model.embed_tokens.weight"].shape[0] == weights["lm_head.weight"].shape[0] == 264
    assert all((weights[name] == trained[name]).all() for name in weights)
    assert not (weights["model.embed_tokens.weight"][TURN] == weights["model.embed_tokens.weight"][263]).all()
    config = json.loads((exports / "hf" / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"][0], config["pad_token_id"]) == (264, DONE, 2)
    served = (exports / "turbomind" / "triton_models" / "weights" / "config.yaml").read_text()
    assert "embedding_size: 264" in served
    assert "vocab_size: 264" in served
    greedy = Manifest.read(exports / "hf").facts["verified"]["greedy"]  # type: ignore[union-attr]
    assert greedy["max_abs_diff"] == 0

    tokenizer = AutoTokenizer.from_pretrained(exports / "hf")
    model = AutoModelForCausalLM.from_pretrained(exports / "hf")
    assert tokenizer.encode("<|turn|><|done|>", add_special_tokens=False) == [TURN, DONE]
    assert tokenizer.decode([TURN, 3 + ord("a"), DONE], skip_special_tokens=True) == "a"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "say"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    size = prompt["input_ids"].shape[1]
    said = model.generate(
        **prompt, max_new_tokens=20, do_sample=False, logits_processor=LogitsProcessorList([DoneAtThird(size)])
    )
    assert said.shape[1] == size + 3
    assert said[0, -1] == DONE


def test_an_adapter_brings_the_grown_embedding_along(folder: Path) -> None:
    exports = through(folder, *LORA)
    tokens = torch.tensor([[TURN, 50, 60, DONE, 263]])
    with torch.inference_mode():
        adapted = load_adapter(folder / "base", exports / "adapter")(input_ids=tokens).logits
        merged = AutoModelForCausalLM.from_pretrained(exports / "hf")(input_ids=tokens).logits
    assert adapted.shape == (1, 5, 264)
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    card = (exports / "adapter" / "README.md").read_text()
    namespace: dict[str, Any] = {"folder": exports / "adapter"}
    exec(card.split("```python\n")[1].split("```")[0], namespace)
    with torch.inference_mode():
        torch.testing.assert_close(namespace["model"](input_ids=tokens).logits, adapted, rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(exports / "adapter").convert_tokens_to_ids("<|done|>") == DONE
