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
