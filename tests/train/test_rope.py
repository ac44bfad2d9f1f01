"""Models extended to longer documents."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from pipelines.checkpoints import Checkpoint
from pipelines.errors import ConfigError
from tests.train.runs import LLAMA, checkpoints, pipeline, share
from train.model import build_model, model_config
from train.rope import extend_positions
from train.run import run

FACTS = {"vocab_size": 48, "max_token_id": 47}


def extended(config: dict[str, Any] | None = None, **model: Any) -> PretrainedConfig:
    settings = pipeline(Path(), model={"scratch": config or LLAMA, **model})
    found = model_config(settings, FACTS)
    extend_positions(settings, found)
    return found


@pytest.mark.parametrize(("positions", "factor"), [(65, 2.0), (128, 2.0), (129, 3.0), (640, 10.0)])
def test_more_positions_are_scaled_linearly_by_a_whole_factor(positions: int, factor: float) -> None:
    config = extended(max_position_embeddings=positions)
    assert config.max_position_embeddings == positions
    assert config.rope_parameters == {"rope_type": "linear", "factor": factor, "rope_theta": 10000.0}


def test_as_many_positions_change_nothing() -> None:
    assert extended(max_position_embeddings=64).to_dict() == extended().to_dict()


@pytest.mark.parametrize("name", ["type", "rope_type"])
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_both_spellings_rotate_as_transformers_own(spelling: str, name: str, tmp_path: Path) -> None:
    """A model directory whose config.json is extended computes what one whose config.json was written so does."""
    scaling = {name: "yarn", "factor": 4.0}
    plain: dict[str, Any] = {**LLAMA, "architectures": ["LlamaForCausalLM"]}
    base = (
        {"rope_theta": 500.0}
        if spelling == "rope_scaling"
        else {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}
    )
    by_hand = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    whole = (
        {"rope_theta": 500.0, "rope_scaling": by_hand}
        if spelling == "rope_scaling"
        else {"rope_parameters": {"rope_theta": 500.0, **by_hand}}
    )
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/config.json").write_text(json.dumps({**plain, **base}))
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole/config.json").write_text(json.dumps({**plain, **whole, "max_position_embeddings": 256}))
    settings = pipeline(
        Path(),
        model={"name_or_path": str(tmp_path / "plain"), "max_position_embeddings": 256, "rope_scaling": scaling},
    )
    found = model_config(settings, FACTS)
    extend_positions(settings, found)
    right = AutoConfig.from_pretrained(tmp_path / "whole")
    assert found.max_position_embeddings == right.max_position_embeddings == 256
    assert found.rope_parameters == right.rope_parameters
    logits = []
    for config in (found, right):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        logits.append(model(input_ids=torch.arange(40)[None]).logits)
    assert torch.equal(*logits)


def test_scaling_keeps_what_it_does_not_say() -> None:
    own = {
        "model_type": "phi",
        **{key: LLAMA[key] for key in LLAMA if key not in ("model_type", "tie_word_embeddings")},
    }
    config = extended(own, rope_scaling={"rope_type": "linear", "factor": Decimal(3)})
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    assert config.rope_parameters["factor"] == 3.0
    assert config.max_position_embeddings == 64


def test_export_has_the_positions_that_were_trained(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    run(
        pipeline(
            folder,
            model={"scratch": {**LLAMA, "max_position_embeddings": 16}, "max_position_embeddings": 64},
            max_steps=1,
        )
    )
    config = json.loads((Checkpoint(checkpoints(folder)[-1]).folder / "model/config.json").read_text())
    assert config["max_position_embeddings"] == 64
    assert config["rope_parameters"] == {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


YARN = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("config", "model", "message"),
    [
        (LLAMA, {"max_position_embeddings": 63}, "max_position_embeddings = 63: the model has 64 already; remove it"),
        (
            {**LLAMA, "rope_parameters": YARN},
            {"max_position_embeddings": 128},
            r"the model's 64 positions are scaled already \(yarn\); set model.rope_scaling",
        ),
        (
            {"model_type": "gpt2", "vocab_size": 48, "n_embd": 32, "n_layer": 1, "n_head": 4},
            {"max_position_embeddings": 4096},
            "gpt2 models have no rotary positions to extend; remove it",
        ),
        (
            {"model_type": "gemma3_text", "num_hidden_layers": 2},
            {"rope_scaling": {"rope_type": "linear", "factor": 2}},
            "gemma3_text models rotate layers in several ways",
        ),
        (
            LLAMA,
            {"rope_scaling": {"type": "dynamic", "factor": 2}},
            "rope_type = 'dynamic': use one of default, linear",
        ),
        (LLAMA, {"rope_scaling": {"factor": 2}}, "rope_type = None: use one of"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear"}}, "model.rope_scaling.*Missing required keys.*factor"),
    ],
    ids=str,
)
def test_model_that_cannot_be_extended_is_an_error(config: dict[str, Any], model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        extended(config, **model)


def test_longer_documents_than_positions_name_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"or raise model\.max_position_embeddings"):
        build_model(pipeline(tmp_path, model={"scratch": {**LLAMA, "max_position_embeddings": 16}}), FACTS)
