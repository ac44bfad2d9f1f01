"""The closed forms of models' sizes against Transformers' own modules on the meta device, shape by shape."""

import json
import math
from collections import Counter
from typing import Any

import pytest

from pipelines.model_sizes import FAMILIES, UnknownModelError, model_sizes
from tests.train.sequence_parallel.architectures import ARCHITECTURES, config_keys

CLOSED = sorted({*FAMILIES, "gpt2", "opt"} & ARCHITECTURES.keys())
OPTIONS = ("attention_bias", "mlp_bias", "use_bias", "qkv_bias", "use_qkv_bias", "tie_word_embeddings")


def built(config: Any) -> Counter[tuple[int, ...]]:
    """How often each shape is among the parameters of a model."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return Counter(tuple(parameter.shape) for parameter in model.parameters())


def foretold(config: dict[str, Any]) -> Counter[tuple[int, ...]]:
    found: Counter[tuple[int, ...]] = Counter()
    for weight, count in model_sizes(config).weights():
        found[weight.shape] += count
        if weight.bias:
            rows = (weight.bias,) if weight.kind != "experts" else (weight.shape[0], weight.bias // weight.shape[0])
            found[rows] += count
    return found


def configs(model_type: str) -> list[Any]:
    """A small config of the type, and one with every option of ours the other way round."""
    from transformers import AutoConfig

    keys = config_keys(model_type, ARCHITECTURES[model_type].keys)
    plain = AutoConfig.for_model(**keys)
    known = plain.to_dict()
    turned = {key: not known[key] for key in OPTIONS if isinstance(known.get(key), bool)}
    return [plain, AutoConfig.for_model(**{**keys, **turned})]


def test_at_least_forty_architectures_have_a_closed_form() -> None:
    assert len(CLOSED) >= 40


@pytest.mark.parametrize("model_type", CLOSED)
def test_every_shape_is_foretold(model_type: str) -> None:
    for config in configs(model_type):
        expected = built(config)
        for text in (config.to_json_string(use_diff=False), config.to_json_string(use_diff=True)):
            assert foretold(json.loads(text)) == expected
        total = sum(math.prod(shape) * count for shape, count in expected.items())
        assert model_sizes(config.to_dict()).parameters == total


def test_published_models_have_the_published_sizes() -> None:
    llama_2_7b = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32000,
    }  # fmt: skip
    assert model_sizes(llama_2_7b).parameters == 6_738_415_616
    llama_3_70b = {
        **llama_2_7b, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    }  # fmt: skip
    assert model_sizes(llama_3_70b).parameters == 70_553_706_496
    mixtral = {
        **llama_2_7b, "model_type": "mixtral", "intermediate_size": 14336, "num_key_value_heads": 8,
        "num_local_experts": 8, "num_experts_per_tok": 2,
    }  # fmt: skip
    assert model_sizes(mixtral).parameters == 46_702_792_704
    assert model_sizes(mixtral).multiplied == 12_879_925_248 - 32000 * 4096


def test_internlm2_has_the_sizes_of_the_llama_that_it_is() -> None:
    keys = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 100, "hidden_act": "silu", "tie_word_embeddings": False,
    }  # fmt: skip
    original = {**keys, "model_type": "internlm2", "bias": False, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    assert model_sizes(original).parameters == model_sizes({**keys, "model_type": "llama"}).parameters


def test_an_unknown_model_is_not_guessed() -> None:
    with pytest.raises(UnknownModelError, match="no closed form for mamba models"):
        model_sizes({"model_type": "mamba"})
    with pytest.raises(UnknownModelError, match="num_key_value_heads"):
        model_sizes({"model_type": "qwen2", "hidden_size": 8, "vocab_size": 9, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "intermediate_size": 8})  # fmt: skip
