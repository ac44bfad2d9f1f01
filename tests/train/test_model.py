"""The model is built the same everywhere, and refused by name where it does not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import ConfigError, DataError, PacktrainError
from tests.train.runs import LLAMA, VOCABULARY, pipeline
from train.attention import NAME, PackedAttention
from train.model import build_model

PREP = {"vocab_size": VOCABULARY, "max_token_id": VOCABULARY - 1}


@pytest.fixture(autouse=True)
def attention() -> None:
    PackedAttention("sdpa").register()


def test_random_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    first, again = (dict(build_model(pipeline(tmp_path), PREP).named_parameters()) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(parameter.dtype == torch.float32 for parameter in first.values())


def test_weights_come_from_a_directory(tmp_path: Path) -> None:
    model = build_model(pipeline(tmp_path), PREP)
    model.save_pretrained(tmp_path / "model")
    loaded = build_model(pipeline(tmp_path, model={"name_or_path": str(tmp_path / "model")}), PREP)
    assert loaded.config._attn_implementation == NAME
    expected = dict(model.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in loaded.named_parameters())


REFUSED: list[tuple[dict[str, Any], dict[str, int], type[PacktrainError], str]] = [
    (
        {"hiden_size": 32},
        {},
        ConfigError,
        "model.scratch.hiden_size = 32: llama models have no such key; did you mean 'hidden_size'?",
    ),
    ({"model_type": "lama"}, {}, ConfigError, 'model.scratch.model_type = "lama": this Transformers has no such model'),
    ({"hidden_size": 33}, {}, ConfigError, "hidden size \\(33\\) is not a multiple"),
    ({"max_position_embeddings": 16}, {}, ConfigError, "may have 40 tokens, .* max_position_embeddings = 16; set prep"),
    ({}, {"max_token_id": 99, "vocab_size": 128}, DataError, "token id 99 .*128 tokens\\), but the model embeds 48"),
]


@pytest.mark.parametrize(("keys", "facts", "kind", "message"), REFUSED)
def test_what_does_not_fit_is_refused(
    keys: dict[str, Any], facts: dict[str, int], kind: type[PacktrainError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message) as refusal:
        build_model(pipeline(tmp_path, model={"scratch": {**LLAMA, **keys}}), {**PREP, **facts})
    assert "\n" not in str(refusal.value)


def test_no_model_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='no model_type; add one such as "llama"'):
        build_model(pipeline(tmp_path, model={"scratch": {"hidden_size": 32}}), PREP)


def test_positions_that_depend_on_the_longest_document_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    keys = {**LLAMA, "model_type": "phi3", "pad_token_id": 0, "rope_parameters": rope}
    fitting, shorter = ({**keys, "original_max_position_embeddings": limit} for limit in (40, 32))
    build_model(pipeline(tmp_path, model={"scratch": fitting}), PREP)
    with pytest.raises(ConfigError, match=r"may have 40 tokens, .*\(longrope\) of phi3 .*passes 32.*max_length = 32"):
        build_model(pipeline(tmp_path, model={"scratch": shorter}), PREP)


def test_chunked_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="llama4_text attends in chunks of 8192 tokens"):
        build_model(pipeline(tmp_path, model={"scratch": {"model_type": "llama4_text"}}), PREP)


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(DataError, match=r"no model.safetensors, nor an index of several; download"):
        build_model(pipeline(tmp_path, model={"name_or_path": str(tmp_path)}), PREP)
