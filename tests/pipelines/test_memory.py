"""Memory of a step from sizes alone: worked by hand, and against the libraries whose tensors are counted."""

import math
from dataclasses import replace
from typing import Any, get_args

import pytest

from pipelines.memory import STATE_BYTES, Layout, adapter_elements, memory
from pipelines.model_sizes import model_sizes
from pipelines.schema import Lora, Quantization
from pipelines.schema.train import Optimizer
from tests.train.sequence_parallel.architectures import ARCHITECTURES, config_keys

SEVEN_B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32000,
}  # fmt: skip
SIZES = model_sizes(SEVEN_B)
P = SIZES.parameters
BASE = Layout(ranks=8, capacity=8192, zero_stage=2)


def test_training_state_is_shared_as_zero_says() -> None:
    # arXiv 1910.02054, figure 1, with float32 gradients: 2 P + (4 + 4 + 8) P / N, then all of it over N.
    two = memory(SIZES, BASE).parts
    assert two["parameters"] == 2 * P
    assert two["float32 master weights"] == two["gradients"] == 4 * P // 8
    assert two["optimizer state"] == P
    three = memory(SIZES, replace(BASE, zero_stage=3)).parts
    assert three["parameters"] == 2 * P // 8
    assert three["optimizer state"] == P


def test_zero_0_and_1_in_half_precision_run_as_2() -> None:
    assert memory(SIZES, replace(BASE, zero_stage=1)) == memory(SIZES, BASE)
    whole = memory(SIZES, replace(BASE, zero_stage=0, precision="fp32")).parts
    assert whole["gradients"] == whole["parameters"] == 4 * P
    assert whole["optimizer state"] == 8 * P


def test_offloaded_state_is_in_the_machines_memory() -> None:
    away = memory(SIZES, replace(BASE, zero_stage=3, offload_optimizer=True, offload_param=True))
    assert not {"gradients", "float32 master weights", "optimizer state", "parameters"} & away.parts.keys()
    assert away.host == (4 + 8 + 4 + 2 + 2) * P // 8


def test_activations_of_a_llama_layer_by_hand() -> None:
    # Bytes a token of a layer in bf16: each norm 8 h (float32 input 4, normalized 2, result 2), q k v and the result of
    # attention 2 each, the log of the softmax's sum 4 a head, and 4 tensors of the MLP.
    hidden, width, heads = 4096, 11008, 32
    layer = 2 * 8 * hidden + 2 * 4 * hidden + 4 * heads + 2 * 4 * width
    last_norm = 6 * hidden
    assert memory(SIZES, BASE).parts["activations"] == 8192 * (32 * layer + last_norm)
    full = memory(SIZES, replace(BASE, checkpointing="full")).parts
    assert full["activations"] == 8192 * (32 * 2 * hidden + last_norm)


H, W, V, HEADS, DEPTH = 4096, 11008, 32000, 32, 32
"""Of that model: hidden size, width of the MLP, vocabulary, heads, layers."""
VECTORS = 65 * H
"""All norms, which ZeRO 3 never shards."""
ALLOWED = 3 * 2**29


def test_every_part_of_a_whole_step_by_hand() -> None:
    """Two bytes a number, in float32 masters, gradients and Adam's two states, in eighths."""
    tokens = 8192
    found = memory(SIZES, BASE)
    assert found.parts == {
        "parameters": 2 * P,
        "gradients": 4 * P // 8,
        "float32 master weights": 4 * P // 8,
        "optimizer state": 8 * P // 8,
        "activations": tokens * (DEPTH * (24 * H + 8 * W + 4 * HEADS) + 6 * H),
        "gradients of activations": tokens * 2 * (2 * H + 2 * W),  # gate and up projection
        "attention workspace": tokens * (4 * H + 2 * 4 * H),  # the queries' in float32, and q k v and result
        "logits and loss": 2 * tokens * H + 4 * V * H,  # hidden states, and the output matrix's gradient in float32
        "communication buckets": 2 * V * H + 2 * 2 * 200_000_000,  # the largest tensor, and two buckets
        "CUDA context and allowance": ALLOWED,
    }
    assert (found.peak, found.host) == ("backward pass", 0)


def test_every_part_of_a_shared_long_pack_by_hand() -> None:
    tokens = 262_144 // 8
    layout = replace(BASE, capacity=262_144, zero_stage=3, checkpointing="full", sequence_parallel_size=8)
    found = memory(SIZES, layout)
    assert found.parts == {
        "parameters": 2 * P // 8,
        "gathered parameters": 2 * VECTORS + 2 * 1_000_000_000,
        "gradients": 4 * P // 8,
        "float32 master weights": 4 * P // 8,
        "optimizer state": 8 * P // 8,
        "activations": tokens * (DEPTH * 2 * H + 6 * H),
        "recomputed layer": tokens * (24 * H + 8 * W + 4 * HEADS + 2 * H),  # and the result on its way back
        "gradients of activations": tokens * 2 * (2 * H + 2 * W),
        "attention workspace": tokens * (4 * H + 2 * 4 * H + 2 * 2 * 4 * H),  # sent and received
        "logits and loss": 2 * tokens * H + 4 * V * H,
        "communication buckets": 2 * V * H + 2 * 200_000_000,
        "CUDA context and allowance": ALLOWED,
    }
    away = memory(SIZES, replace(layout, activation_offload=True))
    assert away.parts["activations"] == tokens * (2 * 2 * H + 6 * H)  # one layer's input in use, one on its way
    assert away.host == tokens * DEPTH * 2 * H
    tiled = memory(SIZES, replace(layout, tiled_mlp=True)).parts
    assert tiled["recomputed layer"] == tokens * (26 * H + 4 * HEADS)
    assert tiled["gradients of activations"] == 2 * (2 * tokens * H + H * 6 * W) + 6 * 3 * H * W  # tiles of H tokens
    short = memory(SIZES, replace(layout, capacity=8192))
    assert short.peak == "optimizer step"
    assert short.parts["optimizer step workspace"] == 4 * P // 8


def test_every_part_of_four_bits_by_hand() -> None:
    tokens, linear = 8192, DEPTH * (4 * H * H + 3 * H * W)
    trained = 16 * DEPTH * (4 * 2 * H + 3 * (H + W))
    lora = replace(BASE, lora=Lora(r=16), checkpointing="selective", fused_loss=False)
    found = memory(SIZES, replace(lora, quantization=Quantization()))
    assert found.parts == {
        "parameters": 2 * (P - linear) + 2 * trained + linear // 2 + linear // 64 + linear // (64 * 64),
        "gradients": 4 * trained // 8,
        "float32 master weights": 4 * trained // 8,
        "optimizer state": 8 * trained // 8,
        "activations": tokens * (DEPTH * (14 * H + 4 * W + 4 * HEADS) + 4 * H),
        "logits and loss": 14 * tokens * V + 4 * tokens * H,
        "CUDA context and allowance": ALLOWED,
    }
    assert found.peak == "loss"


def test_every_part_of_a_step_on_a_cpu_by_hand() -> None:
    tokens = 8192
    found = memory(SIZES, replace(BASE, ranks=1, zero_stage=3, precision="fp32", on_gpu=False))
    assert found.parts == {
        "parameters": 4 * P,
        "gathered parameters": 4 * VECTORS + 4 * 1_000_000_000,
        "gradients": 4 * P,
        "optimizer state": 8 * P,
        "activations": tokens * (DEPTH * (24 * H + 20 * H + 16 * W + 4 * HEADS) + 8 * H),
        "gradients of activations": tokens * 4 * (2 * H + 2 * W),
        "attention workspace": tokens * 4 * 4 * H,
        "logits and loss": 4 * tokens * H + 4 * V * H,
        "communication buckets": 4 * V * H + 4 * 200_000_000,
    }


def test_each_saving_saves() -> None:
    layouts = {
        "none": BASE,
        "selective": replace(BASE, checkpointing="selective"),
        "selective and tiled": replace(BASE, checkpointing="selective", tiled_mlp=True),
        "full": replace(BASE, checkpointing="full"),
        "offload": replace(BASE, checkpointing="full", activation_offload=True),
        "shared": replace(BASE, checkpointing="full", activation_offload=True, sequence_parallel_size=8),
    }
    totals = [memory(SIZES, layout).total for layout in layouts.values()]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)


def test_heads_that_do_not_divide_gather_keys_and_values() -> None:
    grouped = model_sizes({**SEVEN_B, "num_key_value_heads": 8})
    by = {size: memory(grouped, replace(BASE, ranks=96, sequence_parallel_size=size)).parts for size in (1, 32, 96)}
    each = {size: parts["activations"] * size for size, parts in by.items()}
    assert each[1] < each[32] < each[96]  # 32 ranks repeat 8 heads, 96 gather those of three rows as well


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [
        ("llama", "all-linear"),
        ("llama", ["q_proj", "mlp.down_proj"]),
        ("qwen3", "all-linear"),
        ("minicpm3", "all-linear"),
        ("phi3", "all-linear"),
        ("starcoder2", ["v_proj", "c_fc"]),
    ],
)
def test_adapters_have_as_many_elements_as_pefts(model_type: str, targets: Any) -> None:
    import peft
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**config_keys(model_type, ARCHITECTURES[model_type].keys))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        peft.inject_adapter_in_model(peft.LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM"), model)
    expected = sum(math.prod(one.shape) for one in model.parameters() if one.requires_grad)
    lora = Lora(r=3, target_modules=targets)
    found = sum(adapter_elements(weight, lora) * count for weight, count in model_sizes(config.to_dict()).weights())
    assert found == expected


def test_four_bits_take_half_a_byte_and_their_scales() -> None:
    lora = replace(BASE, lora=Lora(r=16))
    packed = replace(lora, quantization=Quantization())
    linear = sum(weight.elements * count for weight, count in SIZES.weights() if weight.kind == "linear")
    saved = memory(SIZES, lora).parts["parameters"] - memory(SIZES, packed).parts["parameters"]
    assert saved == pytest.approx(linear * (2 - 0.5 - 1 / 64 - 4 / (64 * 256)), rel=1e-6)
    assert memory(SIZES, packed).trained == 16 * 32 * (4 * 8192 + 3 * (4096 + 11008))


def test_every_optimizer_of_the_schema_has_its_bytes() -> None:
    named, _ = get_args(Optimizer.model_fields["type"].annotation)
    assert set(get_args(named)) <= STATE_BYTES.keys()
