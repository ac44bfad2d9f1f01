"""An adapter's checkpoint as a PEFT directory, and merged into the model it was trained on."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from export.chat import chat
from export.run import run
from pipelines.artifacts import MANIFEST, Manifest
from pipelines.checkpoints import digest_base
from pipelines.errors import CheckError, ConfigError, DataError
from pipelines.provenance import verify
from tests.export.adapted import adapted_pipeline, write_adapted_run
from tests.export.tiny import LLAMA, pipeline, write_run

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8}
TIED = LLAMA | {"tie_word_embeddings": True}
BIASED = LLAMA | {"attention_bias": True, "num_hidden_layers": 1}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 259, "n_embd": 32, "n_layer": 1,
    "n_head": 4, "n_positions": 64, "tie_word_embeddings": True,
}  # fmt: skip
EXPERTS: dict[str, Any] = LLAMA | {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_hidden_layers": 1, "num_local_experts": 4,
    "num_experts_per_tok": 2,
}  # fmt: skip
ROUTED: dict[str, Any] = EXPERTS | {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 16,
}  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": (LORA, LLAMA),
    "rslora": ({**LORA, "use_rslora": True}, LLAMA),
    "dora": ({**LORA, "use_dora": True}, LLAMA),
    "patterns": (
        {
            **LORA,
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"up_proj": 3},
            "alpha_pattern": {"q_proj": 5},
        },
        LLAMA,
    ),
    "saved": ({**LORA, "modules_to_save": ["lm_head", "embed_tokens"]}, LLAMA),
    "tied": (LORA, TIED),
    "tied and saved": ({**LORA, "modules_to_save": ["embed_tokens"]}, TIED),
    "embedding": ({**LORA, "target_modules": ["embed_tokens", "lm_head", "v_proj"]}, LLAMA),
    "bias": ({**LORA, "bias": "lora_only", "target_modules": ["q_proj", "o_proj"]}, BIASED),
    "every bias": ({**LORA, "bias": "all", "target_modules": ["q_proj"]}, BIASED),
    "experts": ({**LORA, "target_modules": ["q_proj", "o_proj"]}, EXPERTS),
    "router": ({**LORA, "target_modules": ["v_proj"], "modules_to_save": ["gate"]}, ROUTED),
    "transposed": (LORA, GPT2),
    "transposed dora": ({**LORA, "use_dora": True}, GPT2),
}


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(3, 40)[None]
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=tokens).logits.float()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_what_was_trained(kind: str, tmp_path: Path) -> None:
    lora, config = KINDS[kind]
    _, trained = write_adapted_run(tmp_path, lora, config)
    run(adapted_pipeline(tmp_path, lora, targets=["adapter"]))
    folder = tmp_path / "work/tiny/export/adapter"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(base, folder)), logits(trained))
    found = peft.AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(logits(found), logits(trained))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_model_computes_what_the_adapted_one_does(kind: str, tmp_path: Path) -> None:
    lora, config = KINDS[kind]
    _, trained = write_adapted_run(tmp_path, lora, config)
    run(adapted_pipeline(tmp_path, lora, targets=["hf"], hf={"dtype": "float32", "max_shard_size": 100_000}))
    folder = tmp_path / "work/tiny/export/hf"
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert merged.dtype == torch.float32
    torch.testing.assert_close(logits(merged), logits(trained), rtol=1e-4, atol=1e-4)
    assert (merged.lm_head.weight is merged.get_input_embeddings().weight) == config["tie_word_embeddings"]


def test_number_format_of_the_base_is_kept_and_the_engine_gets_the_merged_weights(tmp_path: Path) -> None:
    write_adapted_run(tmp_path, LORA)
    run(adapted_pipeline(tmp_path, LORA, targets=["hf", "turbomind", "adapter"]))
    home = tmp_path / "work/tiny/export"
    assert json.loads((home / "hf/config.json").read_text())["dtype"] == "bfloat16"
    manifest = Manifest.read(home)
    assert manifest is not None
    assert manifest.facts["verified"].keys() == {"hf", "turbomind", "adapter"}
    assert [one.kind for one in verify(home)] == ["checkpoint", "export"]


def test_adapter_is_as_trained_and_names_its_base(tmp_path: Path) -> None:
    checkpoint, trained = write_adapted_run(tmp_path, LORA)
    run(adapted_pipeline(tmp_path, LORA, targets=["adapter"]))
    folder = tmp_path / "work/tiny/export/adapter"
    stored = load_file(folder / "adapter_model.safetensors")
    layer = "model.layers.1.self_attn.v_proj"
    assert torch.equal(
        stored[f"base_model.model.{layer}.lora_B.weight"], trained.get_submodule(layer).lora_B.default.weight
    )
    parent, manifest = Manifest.read(checkpoint), Manifest.read(folder)
    assert parent is not None
    assert manifest is not None
    assert manifest.facts["base"] == parent.facts["adapter"]["base"]
    assert manifest.facts["verified"]["greedy"]["max_abs_diff"] == 0.0
    assert not (folder / "config.json").exists()
    card = (folder / "README.md").read_text()
    assert "# LoRA adapter of rank 4" in card
    assert str(tmp_path) not in card


def test_chat_speaks_with_an_exported_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, _ = write_adapted_run(tmp_path, LORA)
    run(adapted_pipeline(tmp_path, LORA, targets=["adapter", "hf"], hf={"dtype": "float32"}))
    home, said = tmp_path / "work/tiny/export", []
    for folder in (home / "adapter", home / "hf"):
        chat(folder, prompt="hi", max_new_tokens=4)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    with pytest.raises(DataError, match="holds an adapter alone; run `packtrain export`"):
        chat(checkpoint, prompt="hi")
    change_base(tmp_path)
    with pytest.raises(DataError, match="base is not the model that it was trained on"):
        chat(home / "adapter", prompt="hi")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"its base .* is not there"):
        chat(home / "adapter", prompt="hi")


def change_base(folder: Path) -> None:
    path = sorted((folder / "base").glob("*.safetensors"))[-1]
    tensors = load_file(path)
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] + 1}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("target", ["hf", "turbomind", "adapter"])
def test_base_that_was_not_trained_on_is_refused(target: str, tmp_path: Path) -> None:
    write_adapted_run(tmp_path, LORA)
    change_base(tmp_path)
    with pytest.raises(CheckError, match=r"base: not the model that the adapter in .*step-00000003 was trained on"):
        run(adapted_pipeline(tmp_path, LORA, targets=[target]))
    assert not (tmp_path / "work/tiny/export" / target / MANIFEST).exists()


def test_base_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write_adapted_run(tmp_path, LORA)
    for path in (tmp_path / "base").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(DataError, match="base: no weight files of the model below an adapter"):
        run(adapted_pipeline(tmp_path, LORA, targets=["adapter"]))


def test_adapter_of_a_whole_model_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    with pytest.raises(ConfigError, match=r'export.targets = .*the checkpoint is of a whole model.*remove "adapter"'):
        run(pipeline(tmp_path, targets=["adapter"]))


def test_not_merging_is_refused_where_a_whole_model_is_asked_for(tmp_path: Path) -> None:
    write_adapted_run(tmp_path, LORA)
    with pytest.raises(ConfigError, match=r'merge_lora = false: .* set export.targets = \["adapter"\]'):
        run(adapted_pipeline(tmp_path, LORA, hf={"merge_lora": False}))


def test_base_in_another_layout_is_refused(tmp_path: Path) -> None:
    checkpoint, _ = write_adapted_run(tmp_path, LORA)
    for path in sorted((tmp_path / "base").glob("*.safetensors")):
        renamed = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
        save_file(renamed, path, metadata={"format": "pt"})
    (tmp_path / "base/model.safetensors.index.json").unlink()
    manifest = Manifest.read(checkpoint)
    assert manifest is not None
    adapter = {**manifest.facts["adapter"], "base": {"sha256": digest_base(tmp_path / "base")}}
    Manifest(**{**vars(manifest), "facts": {**manifest.facts, "adapter": adapter}}).write(checkpoint)
    with pytest.raises(ConfigError, match=r"base: has no tensor model.layers.0.* stored in another layout"):
        run(adapted_pipeline(tmp_path, LORA))


def test_module_that_the_base_stores_in_another_form_is_refused(tmp_path: Path) -> None:
    lora = {**LORA, "target_modules": ["q_proj"], "modules_to_save": ["experts"]}
    write_adapted_run(tmp_path, lora, EXPERTS)
    with pytest.raises(ConfigError, match=r"base: stores model.layers.0.mlp.experts.\w+, which was trained whole"):
        run(adapted_pipeline(tmp_path, lora))


def test_adapter_on_positions_that_its_base_lacks_is_refused(tmp_path: Path) -> None:
    checkpoint, _ = write_adapted_run(tmp_path, LORA)
    manifest = Manifest.read(checkpoint)
    assert manifest is not None
    facts = {**manifest.facts, "settings": {"model": {"max_position_embeddings": 4096}}}
    Manifest(**{**vars(manifest), "facts": facts}).write(checkpoint)
    with pytest.raises(
        ConfigError, match=r"trained with model.max_position_embeddings, which the base's .*export \"hf\""
    ):
        run(adapted_pipeline(tmp_path, LORA, targets=["adapter"]))


def test_card_says_that_the_base_was_packed(tmp_path: Path) -> None:
    checkpoint, _ = write_adapted_run(tmp_path, LORA)
    manifest = Manifest.read(checkpoint)
    assert manifest is not None
    facts = {**manifest.facts, "settings": {"model": {"quantization": {"bnb_4bit_quant_type": "nf4"}}}}
    Manifest(**{**vars(manifest), "facts": facts}).write(checkpoint)
    run(adapted_pipeline(tmp_path, LORA, targets=["adapter"]))
    assert "in 4 bits (nf4) while training" in (tmp_path / "work/tiny/export/adapter/README.md").read_text()
