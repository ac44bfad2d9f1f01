"""Adapters train as documents alone would train them, are saved alone, and refused by name where they do not fit."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.checkpoints import Checkpoint, digest_base
from pipelines.errors import CheckError, ConfigError, DataError
from tests.train.conftest import SETTINGS, STEPS
from tests.train.ranks import run_on_ranks
from tests.train.reference import Trained, train_alone
from tests.train.runs import LLAMA, checkpoints, pipeline, same, share
from tests.train.test_run import GPT2_WITH_DROPOUT, assert_trained_as_alone, undo
from train.adapters import adapter_facts
from train.attention import PackedAttention
from train.model import build_model
from train.run import run

PREP = {"vocab_size": 48, "max_token_id": 47}
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8}
MODEL = {"scratch": LLAMA, "lora": LORA}
UNTIED = {**LLAMA, "tie_word_embeddings": False}
BUSY = {  # everything at once: its own ranks and scales, weights trained whole, an embedding that stays tied
    "scratch": {**LLAMA, "attention_bias": True},
    "lora": {
        **LORA,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "modules_to_save": ["embed_tokens", "input_layernorm"],
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"down_proj": Decimal("1.5")},
        "bias": "lora_only",
        "use_rslora": True,
        "use_dora": True,
    },
}


def trained_alone(folder: Path, model: dict[str, Any]) -> Trained:
    """The run of `SETTINGS` in PEFT's own wrapper, every document by itself in plain PyTorch."""
    settings = pipeline(folder, model=model, **SETTINGS)
    keys = dict(model["scratch"])
    torch.manual_seed(settings.run.seed)
    config = AutoConfig.for_model(keys.pop("model_type"), **keys)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(settings.run.seed)
    table = {"target_modules": "all-linear", **model["lora"]}
    tied = "modules_to_save" in table
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(**_floats(table), task_type="CAUSAL_LM", ensure_weight_tying=tied)
    )
    found = train_alone(settings, STEPS, adapted)
    weights = {name.removeprefix("base_model.model."): weight for name, weight in found.weights.items()}
    return Trained(found.losses, found.grad_norms, weights)


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _floats(child) for key, child in value.items()}
    return float(value) if isinstance(value, Decimal) else value


@pytest.fixture(scope="module")
def plain(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_alone(share(shards, tmp_path_factory.mktemp("plain")), MODEL)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_trains_the_adapter_as_documents_alone(
    stage: int, tmp_path: Path, shards: Path, plain: Trained
) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, model=MODEL, deepspeed={"zero_stage": stage}, **SETTINGS))
    assert_trained_as_alone(folder, plain)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_ranks_train_the_adapter_as_documents_alone(stage: int, tmp_path: Path, shards: Path, plain: Trained) -> None:
    folder = share(shards, tmp_path / "work")
    settings = pipeline(folder, model=MODEL, deepspeed={"zero_stage": stage}, **SETTINGS)
    assert run_on_ranks(2, run, settings) == [0, 0]
    assert_trained_as_alone(folder, plain)


@pytest.mark.slow
def test_ranks_that_share_packs_train_the_adapter_as_documents_alone(
    tmp_path: Path, shards: Path, plain: Trained
) -> None:
    folder = share(shards, tmp_path / "work")
    how = {"deepspeed": {"zero_stage": 2}, "parallel": {"sequence_parallel_size": 2}}
    assert run_on_ranks(2, run, pipeline(folder, model=MODEL, **how, **SETTINGS)) == [0, 0]
    assert_trained_as_alone(folder, plain)


@pytest.mark.parametrize("how", [{}, {"activation_checkpointing": "full"}], ids=str)
def test_everything_that_an_adapter_can_have_trains_as_documents_alone(
    how: dict[str, Any], tmp_path: Path, shards: Path
) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, model=BUSY, deepspeed={"zero_stage": 2}, **how, **SETTINGS))
    assert_trained_as_alone(folder, trained_alone(share(shards, tmp_path / "alone"), BUSY))


@pytest.mark.parametrize(
    "how",
    [
        {"deepspeed": {"zero_stage": 2}},
        {"deepspeed": {"zero_stage": 3}},
        {"deepspeed": {"zero_stage": 3}, "precision": "bf16"},
        {"model": {"scratch": LLAMA, "lora": {**LORA, "lora_dropout": Decimal("0.3")}}},
        {"model": BUSY},
    ],
    ids=str,
)
def test_resumed_adapter_is_bitwise_the_uninterrupted_one(how: dict[str, Any], tmp_path: Path, shards: Path) -> None:
    whole, halves = share(shards, tmp_path / "whole"), share(shards, tmp_path / "halves")
    how = {"model": MODEL, **how, **SETTINGS}
    run(pipeline(whole, **how))
    run(pipeline(halves, **how))
    undo(halves, 2)
    run(pipeline(halves, **how))
    assert same(halves, whole)


def test_adapter_resumes_under_another_zero_stage(tmp_path: Path, shards: Path, plain: Trained) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, model=MODEL, deepspeed={"zero_stage": 3}, **SETTINGS))
    for step, stage in ((2, 0), (4, 2)):
        undo(folder, step)
        run(pipeline(folder, model=MODEL, deepspeed={"zero_stage": stage}, **SETTINGS))
        assert_trained_as_alone(folder, plain)


def test_checkpoint_holds_the_adapter_alone_and_names_its_base(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, model=MODEL, max_steps=1))
    checkpoint = Checkpoint(checkpoints(folder)[-1])
    assert len(checkpoint.shapes) == 2 * 7 * 2  # two factors for seven matrices in two layers
    assert all("lora_" in name for name in checkpoint.shapes)
    assert checkpoint.manifest.facts["tied"] == {}
    facts = checkpoint.adapter
    assert facts["base"] == {"sha256": digest_base(folder / "tiny/train/base")}
    assert facts["layers"]["model.layers.1.mlp.up_proj"] == {
        "rank": 4, "scaling": 2.0, "transposed": False, "dora": False,
    }  # fmt: skip
    assert facts["config"]["r"] == 4
    assert len(facts["config"]["target_modules"]) == 14


def test_model_from_a_directory_is_adapted_and_another_in_its_place_is_refused(tmp_path: Path, shards: Path) -> None:
    PackedAttention("sdpa").register()
    base = tmp_path / "base"
    build_model(pipeline(tmp_path / "x"), PREP).save_pretrained(base)
    folder = share(shards, tmp_path / "work")
    model = {"name_or_path": str(base), "lora": LORA}
    run(pipeline(folder, model=model, **SETTINGS))
    assert not (folder / "tiny/train/base").exists()
    undo(folder, 4)
    other = build_model(pipeline(tmp_path / "x"), PREP)
    with torch.no_grad():
        other.model.norm.weight.add_(1)
    other.save_pretrained(base)
    with pytest.raises(CheckError, match=r"step-00000004: its adapter was trained on another base \(digest"):
        run(pipeline(folder, model=model, **SETTINGS))


def test_weights_below_an_adapter_may_be_pickles_and_are_known_by_their_digest(tmp_path: Path) -> None:
    PackedAttention("sdpa").register()
    base = tmp_path / "base"
    model = build_model(pipeline(tmp_path), PREP)
    model.save_pretrained(base)
    (base / "model.safetensors").unlink()
    table = {"name_or_path": str(base), "lora": LORA, "weights_format": "safetensors_or_bin"}
    with pytest.raises(DataError, match="download the model's weights"):
        build_model(pipeline(tmp_path, model=table), PREP)
    torch.save(model.state_dict(), base / "pytorch_model.bin")
    adapted: Any = build_model(pipeline(tmp_path, model=table), PREP)
    assert adapted.base_sha256 == digest_base(base)
    with pytest.raises(ConfigError, match=r"its weights are .bin files only"):
        build_model(pipeline(tmp_path, model={**table, "weights_format": "safetensors"}), PREP)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        LLAMA,
        {"target_modules": ["q_prj"]},
        "target_modules = .*: the model has no module 'q_prj'; did you mean 'q_proj'",
    ),
    (LLAMA, {"target_modules": ["zzz"]}, "no module 'zzz'; it has down_proj, gate_proj, k_proj, .*v_proj"),
    (LLAMA, {"modules_to_save": ["lm_haed"]}, "modules_to_save = .*no module 'lm_haed'; did you mean 'lm_head'"),
    (LLAMA, {"rank_pattern": {"qproj": 3}}, "rank_pattern: the model has no module 'qproj'"),
    (LLAMA, {"alpha_pattern": {"qproj": 3}}, "alpha_pattern: the model has no module 'qproj'"),
    (LLAMA, {"target_modules": ["input_layernorm"]}, "PEFT refuses it: Target module LlamaRMSNorm"),
    (LLAMA, {"target_modules": ["lm_head"]}, "lm_head serves as embedding and as output matrix"),
    (LLAMA, {"target_modules": ["embed_tokens"]}, "embed_tokens serves as embedding and as output matrix"),
    (UNTIED, {"target_modules": ["embed_tokens"], "use_dora": True}, "is an embedding, which use_dora does not serve"),
    (LLAMA, {"target_modules": ["q_proj"], "modules_to_save": ["q_proj"]}, "q_proj is among target_modules; keep one"),
]


@pytest.mark.parametrize(("model", "lora", "message"), REFUSED, ids=[str(one[1]) for one in REFUSED])
def test_what_cannot_be_adapted_is_refused(
    model: dict[str, Any], lora: dict[str, Any], message: str, tmp_path: Path
) -> None:
    PackedAttention("sdpa").register()
    with pytest.raises(ConfigError, match=message) as refusal:
        build_model(pipeline(tmp_path, model={"scratch": model, "lora": {**LORA, **lora}}), PREP)
    assert "\n" not in str(refusal.value)


def test_transposed_layers_are_told_apart(tmp_path: Path) -> None:
    PackedAttention("sdpa").register()
    model = build_model(pipeline(tmp_path, model={"scratch": GPT2_WITH_DROPOUT, "lora": LORA}), PREP)
    layers = adapter_facts(model)["layers"]
    assert {layer["transposed"] for layer in layers.values()} == {True}
    assert {name.rsplit(".", 1)[-1] for name in layers} == {"c_attn", "c_proj", "c_fc"}
