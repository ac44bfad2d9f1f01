"""What was loaded from a published layout is written back in it, bit for bit, and checked as every export is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.adapter import load_described
from export.hf import Model, write_hf
from export.language_model import load_folder
from export.run import run
from export.verify import verify_hf
from export.weights import Weights
from pipelines.artifacts import Manifest
from pipelines.checkpoints import Checkpoint, step_folder
from pipelines.errors import CheckError, ConfigError
from pipelines.schema import ExportVerify
from tests.export.adapted import adapted_pipeline
from tests.export.tiny import pipeline, write_checkpoint, write_run
from tests.train import runs
from tests.train.test_original_weights import BAICHUAN, BAICHUAN2, INTERNLM, INTERNLM2, original_tensors, write_original
from train.adapters import adapter_facts
from train.attention import PackedAttention
from train.fragments import tied
from train.model import build_model, exported_config

ROWS = {"vocab_size": 259}
"""Of the tokenizer that the checkpoints here have."""
CONFIGS = {
    "internlm": INTERNLM | ROWS,
    "internlm2": INTERNLM2 | ROWS,
    "internlm2-bias": INTERNLM2 | ROWS | {"bias": True, "num_key_value_heads": 1},
    "baichuan": BAICHUAN | ROWS,
}


def checkpoint(folder: Path, config: dict[str, Any], **model: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint of a published model before its first step, below the run `folder`; and what was published."""
    PackedAttention("sdpa").register()
    folder.mkdir(exist_ok=True)
    published = original_tensors(config)
    source = write_original(folder / "published", config, published)
    settings = runs.pipeline(folder, model={"name_or_path": str(source), **model})
    loaded = build_model(settings, {"vocab_size": 259, "max_token_id": 258})
    tensors = {name: tensor.detach().numpy() for name, tensor in loaded.named_parameters()}
    place = step_folder(folder / "work" / "tiny" / "train" / "checkpoints", 3)
    write_checkpoint(place, json.loads(exported_config(loaded)), tensors)
    return place, published


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_published_checkpoint_comes_back_bit_for_bit(config: dict[str, Any], tmp_path: Path) -> None:
    place, published = checkpoint(tmp_path, config)
    model, folder = Model.of(Checkpoint(place), "bfloat16").as_it_came(), tmp_path / "out"
    folder.mkdir()
    write_hf(model, folder, 20_000)
    files = list(folder.glob("*.safetensors"))
    assert len(files) > 1
    written = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert written.keys() == published.keys()
    for name, tensor in published.items():
        assert written[name].dtype == torch.bfloat16
        assert torch.equal(written[name].view(torch.uint16), tensor.view(torch.uint16)), name
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert json.loads((folder / "config.json").read_text()) == {**config, **special}
    found = verify_hf(model, folder, ExportVerify(greedy_tokens=3))
    assert found["tensors_equal"] == len(published)
    assert found["greedy"]["max_abs_diff"] == 0.0


def test_a_tensor_is_read_from_any_element_to_any_other(tmp_path: Path) -> None:
    place, published = checkpoint(tmp_path, CONFIGS["internlm2"])
    weights = Model.of(Checkpoint(place), "bfloat16").as_it_came().weights
    name = "model.layers.1.attention.wqkv.weight"
    flat = published[name].view(torch.uint16).reshape(-1).numpy()
    random = np.random.default_rng(0)
    for _ in range(50):
        start, stop = sorted(random.choice(flat.size + 1, 2, replace=False))
        assert np.array_equal(weights.read(name, int(start), int(stop)), flat[start:stop])


def test_rows_in_the_wrong_order_are_found(tmp_path: Path) -> None:
    place, _ = checkpoint(tmp_path, CONFIGS["baichuan"])
    model, folder = Model.of(Checkpoint(place), "float32").as_it_came(), tmp_path / "out"
    folder.mkdir()
    write_hf(model, folder, 10**9)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.W_pack.weight"
    tensors[name] = tensors[name].roll(32, 0)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckError, match=rf"{name} differs from the checkpoint"):
        verify_hf(model, folder, ExportVerify())


def test_the_stage_writes_either_layout(tmp_path: Path) -> None:
    _, published = checkpoint(tmp_path, CONFIGS["internlm2"])
    folder = tmp_path / "work" / "tiny" / "export" / "hf"
    run(pipeline(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "original_config" not in config
    run(pipeline(tmp_path, hf={"layout": "original", "dtype": "bfloat16"}))
    assert load_file(folder / "model.safetensors").keys() == published.keys()
    assert Manifest.read(folder) is not None
    card = (folder / "README.md").read_text()
    assert "from_pretrained" not in card
    (tmp_path / "heldout.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"export.hf.layout.*asks the model with Transformers"):
        run(pipeline(tmp_path, hf={"layout": "original"}, eval={"file": "heldout.jsonl"}))


def test_a_model_without_another_layout_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    with pytest.raises(ConfigError, match=r'export.hf.layout = "original": the model has no layout other than'):
        run(pipeline(tmp_path, hf={"layout": "original"}))


def test_what_training_changed_beyond_the_layout_is_refused(tmp_path: Path) -> None:
    place, _ = checkpoint(tmp_path, BAICHUAN2 | ROWS)
    with pytest.raises(ConfigError, match="Baichuan2 divides every row of lm_head"):
        Model.of(Checkpoint(place), "float32").as_it_came()
    longer, _ = checkpoint(tmp_path / "longer", CONFIGS["baichuan"], max_position_embeddings=128)
    with pytest.raises(ConfigError, match="positions were extended in training"):
        Model.of(Checkpoint(longer), "float32").as_it_came()


def adapted(folder: Path, config: dict[str, Any], **lora: Any) -> tuple[Path, Path, Path]:
    """A run of an adapter on a published model, after some training.

    Returns:
        The checkpoint, the published directory, and the same weights as a Llama's directory.
    """
    PackedAttention("sdpa").register()
    source = write_original(folder / "base", config, original_tensors(config), files=2)
    prep = {"vocab_size": 259, "max_token_id": 258}
    plain = build_model(runs.pipeline(folder, model={"name_or_path": str(source)}), prep)
    plain.save_pretrained(folder / "llama")
    model = build_model(runs.pipeline(folder, model={"name_or_path": str(source), "lora": {"r": 2, **lora}}), prep)
    torch.manual_seed(5)
    named = {name: one for name, one in model.named_parameters() if one.requires_grad}
    with torch.no_grad():
        for parameter in named.values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    place = step_folder(folder / "work" / "tiny" / "train" / "checkpoints", 3)
    tensors = {name: parameter.detach().numpy() for name, parameter in named.items()}
    write_checkpoint(place, json.loads(exported_config(model)), tensors, ranks=2)
    manifest = Manifest.read(place)
    assert manifest is not None
    facts = {**manifest.facts, "adapter": adapter_facts(model), "tied": tied(model)}
    Manifest(**{**vars(manifest), "facts": facts}).write(place)
    return place, source, folder / "llama"


@pytest.mark.parametrize("name", ["internlm", "internlm2", "baichuan", "baichuan2"])
def test_an_adapter_is_merged_as_into_the_llama_and_the_rest_comes_back(name: str, tmp_path: Path) -> None:
    config = {**CONFIGS, "baichuan2": BAICHUAN2 | ROWS}[name]
    place, source, llama = adapted(tmp_path, config, target_modules=["q_proj", "v_proj"], use_dora=name == "internlm")
    merged, reference = (Weights(Checkpoint(place), "bfloat16", base) for base in (source, llama))
    assert merged.shapes == {key: reference.shapes[key] for key in merged.shapes}
    assert merged.shapes.keys() == reference.shapes.keys()
    changed = set()
    for key in merged.shapes:
        assert np.array_equal(merged.tensor(key), reference.tensor(key)), key
    if name == "baichuan2":  # which has no way back
        return
    written = Model.of(Checkpoint(place), "bfloat16", source).as_it_came().weights
    for key, tensor in original_tensors(config).items():
        if not np.array_equal(written.tensor(key), tensor.view(torch.uint16).numpy()):
            changed.add(key.rsplit(".", 2)[1])
    assert changed == {"internlm": {"q_proj", "v_proj"}, "internlm2": {"wqkv"}, "baichuan": {"W_pack"}}[name]


def test_the_stage_exports_an_adapter_on_a_published_model(tmp_path: Path) -> None:
    _, source, _ = adapted(tmp_path, CONFIGS["internlm2"] | {"architectures": ["InternLM2ForCausalLM"]})
    run(adapted_pipeline(tmp_path, {"r": 2}, targets=["hf", "adapter"]))
    home = tmp_path / "work" / "tiny" / "export"
    assert json.loads((home / "hf/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    config = json.loads((home / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(source)
    assert "PEFT cannot put it on the published code" in (home / "adapter/README.md").read_text()
    ids = torch.tensor([[5, 40, 17]])
    with torch.no_grad():
        served = load_described(home / "adapter")(input_ids=ids).logits
        whole = load_folder(home / "hf").float()(input_ids=ids).logits
    torch.testing.assert_close(served, whole, rtol=0.05, atol=0.05)  # the export is in the base's bfloat16
    run(adapted_pipeline(tmp_path, {"r": 2}, hf={"layout": "original"}))
    assert load_file(home / "hf/model.safetensors").keys() == original_tensors(CONFIGS["internlm2"]).keys()
