"""A model that packed training would get silently wrong is refused by name before the first step."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError
from tests.train.runs import LLAMA, VOCABULARY, pipeline, write_prep
from tests.train.sequence_parallel.architectures import REFUSED, config_keys
from train.run import run

SMALL = {"model_type": "", "vocab_size": VOCABULARY, "hidden_size": 32, "max_position_embeddings": 64}
LAYERS = {**SMALL, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
GROUPED = {**LAYERS, "num_key_value_heads": 2, "head_dim": 8}

TRAINED: dict[str, dict[str, Any]] = {
    "mistral": {**GROUPED, "sliding_window": 6},
    "gemma2": {**GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 6},
    "qwen3": GROUPED,
    "gpt_oss": {**GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6},
    "gpt2": {
        "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "stablelm": {**LAYERS, "num_key_value_heads": 2},
    "glm4": {**GROUPED, "pad_token_id": 0},
    "deepseek_v3": {
        **LAYERS, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
        "qk_nope_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
        "first_k_dense_replace": 1, "moe_intermediate_size": 16,
    },
}  # fmt: skip


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_prep(tmp_path / "tiny" / "prep")
    return tmp_path


@pytest.mark.parametrize("name", TRAINED)
def test_audit_passes_models_that_train_exactly(name: str, work: Path) -> None:
    run(pipeline(work, model={"scratch": {**TRAINED[name], "model_type": name}}, max_steps=1))
    assert (work / "tiny" / "train" / "checkpoints" / "step-00000001" / "manifest.json").is_file()


@pytest.mark.parametrize("name", REFUSED)
def test_audit_refuses_by_name(name: str, work: Path) -> None:
    keys, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message) as refusal:
        run(pipeline(work, model={"scratch": config_keys(name, keys)}, max_steps=1))
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (work / "tiny" / "train" / "metrics.jsonl").exists()


def test_leak_between_documents_is_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.attention import KERNELS, Segments

    exact = KERNELS["sdpa"]
    leaking = lambda q, k, v, segments, scores: exact(q, k, v, Segments.of([sum(segments.lengths)]), scores)  # noqa: E731
    monkeypatch.setitem(KERNELS, "sdpa", leaking)
    with pytest.raises(ConfigError, match="llama models cannot be trained on packed documents: their logits differ"):
        run(pipeline(work, model={"scratch": LLAMA}, max_steps=1))
