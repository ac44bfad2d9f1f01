"""Operations of a step, compared with those that PyTorch counts, and what devices can do at most."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.gpus import peak_of
from pipelines.schema import Pipeline
from tests.train.runs import LLAMA, pipeline
from train.adapters import add_adapter
from train.batches import StepBatch
from train.flops import Layer, Work

TOKENS, TARGETS = 32, 8
WIDE = {**LLAMA, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 64, "num_hidden_layers": 3}
UNTIED = {**WIDE, "tie_word_embeddings": False}
EXPERTS = {**UNTIED, "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 16,
           "moe_intermediate_size": 48, "decoder_sparse_step": 1, "norm_topk_prob": True}  # fmt: skip
LATENT = {**UNTIED, "model_type": "deepseek_v2", "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
          "q_lora_rank": 24, "kv_lora_rank": 24, "first_k_dense_replace": 3, "n_routed_experts": 1,
          "num_key_value_heads": 4}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}


def build(config: dict[str, Any], folder: Path, lora: dict[str, Any] | None) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), attn_implementation="eager", experts_implementation="eager"
    )
    if lora:
        where = folder / "base"
        model.save_pretrained(where)
        add_adapter(adapted(folder, where, lora), model)
    return model.train()


def adapted(folder: Path, base: Path, lora: dict[str, Any]) -> Pipeline:
    return pipeline(folder, model={"name_or_path": str(base), "lora": {"r": 4, "lora_alpha": 8, **lora}})


def batch(documents: list[int], targets: int) -> StepBatch:
    lengths = np.array(documents, np.int64)
    return StepBatch([], loss_tokens=targets, tokens=int(lengths.sum()), documents=lengths)


def counted(model: Any) -> int:
    """Operations of products in a document's forward and backward pass, by PyTorch."""
    tokens = torch.arange(TOKENS)[None]
    predictors = torch.arange(TARGETS)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=tokens, use_cache=False, logits_to_keep=predictors).logits[0]
        F.cross_entropy(logits, predictors, reduction="sum").backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("config", "lora"),
    [
        (WIDE, None),
        (UNTIED, None),
        (GPT2, None),
        (EXPERTS, None),
        (LATENT, None),
        (UNTIED, {"target_modules": ALL}),
        (UNTIED, {"target_modules": ALL, "modules_to_save": ["lm_head", "embed_tokens"]}),
        (UNTIED, {"target_modules": ["lm_head"]}),
        (
            UNTIED,
            {"target_modules": ["model.layers.2.self_attn.q_proj", "model.layers.2.mlp.up_proj"]},
        ),  # nothing goes back through the first two layers
    ],
    ids=["tied", "untied", "gpt2", "experts", "latent", "lora", "saved", "lora on the head", "lora on the last layer"],
)
def test_operations_are_those_that_pytorch_counts(
    config: dict[str, Any], lora: dict[str, Any] | None, tmp_path: Path
) -> None:
    model = build(config, tmp_path, lora)
    work = Work.of(model)
    assert work is not None
    found, weights = work.flops(batch([TOKENS], TARGETS)), work.flops(batch([0], TARGETS)) + work.per_token * TOKENS
    # Eager attention computes the half that is masked as well. Biases and norms count as if they were multiplied with,
    # and all of the first layer that has a gradient as if it went through it.
    assert 2 * found - weights == pytest.approx(counted(model), rel=0.07 if lora else 0.02)


def test_packed_weights_count_as_what_they_stand_for(tmp_path: Path) -> None:
    model = build(UNTIED, tmp_path, {"target_modules": ALL})
    whole = Work.of(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad:
            packed = torch.zeros(module.weight.numel() // 4, 1)  # four bits each, in elements of sixteen
            module.weight = torch.nn.Parameter(packed, requires_grad=False)
    assert Work.of(model) == whole


def test_window_bounds_what_a_token_attends_to() -> None:
    sliding, whole = (Work(0, 0, [Layer(width=2, window=window, passes=1)]) for window in (4, None))
    assert whole.flops(batch([8, 2], 0)) == 2 * 2 * (32 + 2)
    assert sliding.flops(batch([8, 2], 0)) == 2 * 2 * (4 * 8 - 8 + 2)
    mistral = AutoConfig.for_model(**{**WIDE, "model_type": "mistral", "sliding_window": 4})
    work = Work.of(AutoModelForCausalLM.from_config(mistral))
    assert work is not None
    assert {layer.window for layer in work.layers} == {4}


def test_experts_of_unknown_number_leave_it_unknown() -> None:
    dense = AutoModelForCausalLM.from_config(AutoConfig.for_model(**UNTIED))
    dense.config.num_experts = 8  # under a name that is not known to be of experts
    assert Work.of(dense) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H20-3e", 148e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA RTX A6000", 154.8e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("AMD Instinct MI300X", 1307.4e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
        ("Some Other GPU", None),
    ],
)
def test_peak_goes_by_whole_words_of_the_name(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak
