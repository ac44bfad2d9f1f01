"""Every row of Llama's tensors is in the original form once, and what is no Llama is refused by name."""

from itertools import pairwise
from typing import Any

import pytest

from pipelines.errors import ConfigError
from pipelines.llama_layouts import KEY, Rows, layout_of, llama_config, original_config

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
INTERNLM = SIZES | {"model_type": "internlm", "bias": True}
INTERNLM2 = SIZES | {"model_type": "internlm2", "num_key_value_heads": 2, "bias": True, "rope_theta": 1000000}
BAICHUAN = SIZES | {"model_type": "baichuan", "architectures": ["BaiChuanForCausalLM"]}
BAICHUAN2 = BAICHUAN | {"architectures": ["BaichuanForCausalLM"]}


def test_rows_of_wqkv_are_grouped_by_key_and_value_head() -> None:
    place = "model.layers.1.self_attn"
    assert layout_of(INTERNLM2).tensors["model.layers.1.attention.wqkv.weight"] == (
        Rows(f"{place}.q_proj.weight", 0, 16),
        Rows(f"{place}.k_proj.weight", 0, 8),
        Rows(f"{place}.v_proj.weight", 0, 8),
        Rows(f"{place}.q_proj.weight", 16, 32),
        Rows(f"{place}.k_proj.weight", 8, 16),
        Rows(f"{place}.v_proj.weight", 8, 16),
    )


@pytest.mark.parametrize("config", [INTERNLM, INTERNLM2, INTERNLM2 | {"bias": False}, BAICHUAN, BAICHUAN2])
def test_every_row_is_held_once(config: dict[str, Any]) -> None:
    held: dict[str, list[tuple[int, int]]] = {}
    for parts in layout_of(config).tensors.values():
        for part in parts:
            held.setdefault(part.name, []).append((part.start, part.stop))
    for ranges in held.values():
        ordered = sorted(ranges)
        assert ordered[0][0] == 0
        assert all(before[1] == after[0] for before, after in pairwise(ordered))
    biases = 4 * 2 if llama_config(config)["attention_bias"] else 0
    assert len(held) == 3 + 2 * 9 + biases


def test_the_original_config_comes_back_as_it_was() -> None:
    for config in (INTERNLM, INTERNLM2, BAICHUAN):
        assert original_config(llama_config(config), "bfloat16") == {**config, "torch_dtype": "bfloat16"}


def test_positions_are_scaled_as_the_original_scales_them() -> None:
    scaled = INTERNLM2 | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    assert llama_config(scaled)["rope_parameters"] == {
        "rope_type": "dynamic",
        "rope_theta": 1000000,
        "factor": 2.0,
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({key: value for key, value in BAICHUAN.items() if key != "max_position_embeddings"}, "13B .* ALiBi"),
        ({key: value for key, value in INTERNLM2.items() if key != "vocab_size"}, "vocab_size is missing"),
        (INTERNLM2 | {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "scaled by 'yarn'"),
        (INTERNLM2 | {"quantization_config": {"quant_method": "awq"}}, "quantized weights"),
        (BAICHUAN | {"architectures": None}, "names neither BaiChuanForCausalLM"),
        (BAICHUAN2 | {"tie_word_embeddings": True}, "cannot be tied"),
    ],
)
def test_what_is_no_llama_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layout_of(config)


@pytest.mark.parametrize(
    ("llama", "message"),
    [
        ({"model_type": "llama"}, "no layout other"),
        (llama_config(BAICHUAN2), "divides every row of lm_head"),
        (llama_config(INTERNLM2) | {"max_position_embeddings": 128}, "positions were extended"),
    ],
)
def test_what_has_no_way_back_is_refused(llama: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        original_config(llama, "float32")


def test_a_llama_remembers_where_it_came_from() -> None:
    assert llama_config(INTERNLM2)[KEY] == INTERNLM2
