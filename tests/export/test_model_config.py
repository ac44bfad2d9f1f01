"""config.json and generation_config.json in both spellings."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from export.model_config import (
    exported_config,
    exported_generation_config,
    read_config,
    rope_spellings,
    stored_dtype,
)
from pipelines.checkpoints import Checkpoint
from pipelines.errors import CheckError, ConfigError
from pipelines.tokenizer_files import SpecialTokens
from tests.export.tiny import LLAMA, random_tensors, shapes, write_checkpoint

SPECIAL = SpecialTokens(bos=1, pad=0, stop=(7, 2))
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


@pytest.mark.parametrize(
    ("brought", "old", "new"),
    [
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            {"rope_theta": 1e6, "rope_scaling": None},
            {"rope_type": "default", "rope_theta": 1e6},
        ),
        (
            {"rope_theta": 1e6, "rope_scaling": None},
            {"rope_theta": 1e6, "rope_scaling": None},
            {"rope_type": "default", "rope_theta": 1e6},
        ),
        (
            {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
            {"rope_theta": 5e5, "rope_scaling": LLAMA3},
            {**LLAMA3, "rope_theta": 5e5},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": LLAMA3},
            {"rope_theta": 5e5, "rope_scaling": LLAMA3},
            {**LLAMA3, "rope_theta": 5e5},
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.5},
            {
                "rope_theta": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                "partial_rotary_factor": 0.5,
            },
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
    ],
)
def test_rotary_settings_are_written_in_both_spellings(
    brought: dict[str, Any], old: dict[str, Any], new: dict[str, Any]
) -> None:
    assert rope_spellings(brought) == {**old, "rope_parameters": new}


def test_classes_that_took_only_some_fields_get_only_those() -> None:
    factors = {"short_factor": [1.0], "long_factor": [2.0]}
    phi3 = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16, **factors}
    found = rope_spellings({"model_type": "phi3", "rope_parameters": phi3})
    assert found["rope_scaling"] == {"type": "longrope", **factors}
    assert (found["rope_theta"], found["original_max_position_embeddings"]) == (1e4, 16)
    olmo2 = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    found = rope_spellings({"model_type": "olmo2", "rope_parameters": olmo2})
    assert found["rope_scaling"] == {"type": "linear", "factor": 2.0}
    # With a field they have no place for, an error of theirs is better than a model that is not the trained one.
    more = {**phi3, "attention_factor": 1.5}
    assert rope_spellings({"model_type": "phi3", "rope_parameters": more})["rope_scaling"]["attention_factor"] == 1.5


def test_what_follows_from_the_factor_of_longrope_is_said() -> None:
    new = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    found = rope_spellings({"model_type": "llama", "rope_parameters": new})
    assert found["rope_scaling"]["attention_factor"] == found["rope_parameters"]["attention_factor"] == math.sqrt(1.5)


def test_two_kinds_of_layers_have_the_old_keys_of_their_class() -> None:
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert rope_spellings({"model_type": "gemma3_text", "rope_parameters": nested}) == {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }


def test_a_model_without_rotary_embedding_gets_none() -> None:
    assert rope_spellings({"model_type": "gpt2"}) == {}


def test_settings_by_kind_of_layer_have_no_old_spelling_and_stay() -> None:
    nested = {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}}
    assert rope_spellings({"rope_parameters": nested}) == {}


def test_transformers_reads_the_config_it_is_meant_for(tmp_path: Path) -> None:
    brought = LLAMA | {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}
    config = exported_config(brought, shapes(brought), "bfloat16", SPECIAL)
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = AutoConfig.from_pretrained(tmp_path)
    assert dict(read.rope_parameters) == {**LLAMA3, "rope_theta": 5e5}
    assert str(read.dtype) == "torch.bfloat16"
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id) == (1, [7, 2], 0)
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert "transformers_version" not in config


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_stated_even_where_the_trainer_left_them_out(tied: bool) -> None:
    config = LLAMA | {"tie_word_embeddings": tied}
    silent = {key: value for key, value in config.items() if key != "tie_word_embeddings"}
    assert exported_config(silent, shapes(config), "float16", SPECIAL)["tie_word_embeddings"] is tied


def checkpoint(folder: Path, config: dict[str, Any] = LLAMA, **how: Any) -> Checkpoint:
    return Checkpoint(write_checkpoint(folder / "step-00000001", config, random_tensors(LLAMA), **how))


def test_generation_keeps_what_the_model_brought_and_stops_at_the_template(tmp_path: Path) -> None:
    brought = {"temperature": 0.7, "do_sample": True, "eos_token_id": 99, "transformers_version": "4.1"}
    found = exported_generation_config(checkpoint(tmp_path, generation=brought), SPECIAL)
    assert found == {
        "temperature": 0.7,
        "do_sample": True,
        "bos_token_id": 1,
        "eos_token_id": [7, 2],
        "pad_token_id": 0,
    }


def test_one_stop_token_is_a_number_and_none_is_null() -> None:
    assert SpecialTokens(None, None, (5,)).as_config()["eos_token_id"] == 5
    assert SpecialTokens(None, None, ()).as_config()["eos_token_id"] is None


@pytest.mark.parametrize("key", ["architectures", "model_type", "vocab_size"])
def test_a_config_that_lacks_something_is_refused_by_name(tmp_path: Path, key: str) -> None:
    config = {name: value for name, value in LLAMA.items() if name != key}
    with pytest.raises(CheckError, match=rf"config\.json: {key} is missing"):
        read_config(checkpoint(tmp_path, config).model)


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path).folder
    (folder / "model" / "config.json").write_text("{")
    with pytest.raises(CheckError, match=r"config\.json: cannot be read"):
        read_config(folder / "model")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({"dtype": None}, "float32"),
    ],
)
def test_the_stored_format_is_read_in_either_spelling(tmp_path: Path, said: dict[str, Any], expected: str) -> None:
    assert stored_dtype(checkpoint(tmp_path, LLAMA | said).model) == expected


def test_a_format_that_cannot_be_exported_is_refused_with_the_key_to_set(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, LLAMA | {"dtype": "float8_e4m3fn"}).folder
    with pytest.raises(ConfigError, match=r"'float8_e4m3fn', which cannot be exported; set export\.hf\.dtype"):
        stored_dtype(folder / "model")
