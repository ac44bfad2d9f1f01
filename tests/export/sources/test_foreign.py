"""An export that starts from what others wrote: names, neighbours, identity, and the numbers at the end."""

import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from export.merge import OriginalBase
from export.plan import Plan
from export.run import run
from export.source import open_source
from export.sources.foreign import Beside, Foreign, find
from pipelines.artifacts import Manifest
from pipelines.errors import CheckError, ConfigError, DataError, PacktrainError
from pipelines.provenance import verify
from tests.export.sources.zero import write_zero
from tests.export.tiny import LLAMA, PROBES, Tensors, pipeline, random_tensors, write_checkpoint, write_tokenizer
from tests.train.test_original_weights import BAICHUAN, BAICHUAN2, INTERNLM, INTERNLM2, original_tensors

TIED = LLAMA | {"tie_word_embeddings": True}


def write_plain(folder: Path, tensors: Tensors, config: dict[str, Any] = LLAMA) -> Path:
    """A directory of one safetensors file with config.json and a tokenizer."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    return complete(folder, config)


def complete(folder: Path, config: dict[str, Any] = LLAMA) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder / "tokenizer")
    for path in (folder / "tokenizer").iterdir():
        path.rename(folder / path.name)
    (folder / "tokenizer").rmdir()
    return folder


def tensors_of(folder: Path) -> Tensors:
    source = open_source(folder)
    return {name: source.read("parameter", name).reshape(shape) for name, shape in source.shapes.items()}


def refused(folder: Path, **beside: Any) -> PacktrainError:
    with pytest.raises(PacktrainError) as caught:
        open_source(folder, Beside(**beside))
    return caught.value


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_zero_3_becomes_both_forms_without_a_copy_in_between(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    write_zero(tmp_path / "run", tensors, stage=3, ranks=3, prefix="bf16_")
    complete(tmp_path / "run")
    (tmp_path / "run" / "zero_to_fp32.py").write_text("raise SystemExit")  # which DeepSpeed leaves there
    asked = pipeline(tmp_path, checkpoint="run", targets=["hf", "turbomind"], hf={"dtype": "float32"})
    run(asked)
    home = tmp_path / "work" / "tiny" / "export"
    assert_same(load_file(home / "hf" / "model.safetensors"), tensors)
    card = (home / "hf" / "README.md").read_text()
    assert "Written by packtrain from a checkpoint of DeepSpeed ZeRO 3 of 3 ranks, after 7 optimizer steps." in card
    manifest = Manifest.read(home)
    assert manifest is not None
    assert manifest.facts["step"] == 7
    assert not list((home / "hf").rglob("*.py"))
    assert Plan.of(asked).is_done()
    (one,) = [one for one in verify(home) if one.kind == "export"]
    assert one.parents == {"checkpoint": "not here"}
    write_checkpoint(tmp_path / "work" / "tiny" / "train" / "checkpoints" / "step-00000007", LLAMA, tensors)
    run(pipeline(tmp_path, hf={"dtype": "float32"}))
    assert_same(load_file(home / "hf" / "model.safetensors"), tensors)


def test_a_checkpoint_of_ours_is_known_anywhere(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    write_checkpoint(tmp_path / "elsewhere" / "kept", LLAMA, tensors, ranks=2)
    assert_same(tensors_of(tmp_path / "elsewhere" / "kept"), tensors)
    assert Plan.of(pipeline(tmp_path, checkpoint="elsewhere/kept")).source.step == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_directories_of_weights_are_read_in_each_format(tmp_path: Path, dtype: torch.dtype, kind: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA), dtype=dtype)
    folder = tmp_path / "model"
    if kind == "safetensors":
        model.save_pretrained(folder, max_shard_size="200KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    else:
        folder.mkdir()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    complete(folder)
    expected = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    assert_same(tensors_of(folder), expected)


def test_experts_are_known_by_the_names_they_are_stored_under(tmp_path: Path) -> None:
    config = LLAMA | {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 2,
        "num_hidden_layers": 1,
    }
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(tmp_path / "model")
    complete(tmp_path / "model", config)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert any(".experts.1." in name for name in stored)
    assert_same(tensors_of(tmp_path / "model"), stored)
    run(pipeline(tmp_path, checkpoint="model", hf={"dtype": "float32"}))
    assert_same(load_file(tmp_path / "work" / "tiny" / "export" / "hf" / "model.safetensors"), stored)


ORIGINALS = {
    "internlm": INTERNLM,
    "internlm2": INTERNLM2 | {"bias": True, "num_key_value_heads": 1},
    "baichuan": BAICHUAN,
    "baichuan2": BAICHUAN2,
}


@pytest.mark.parametrize("kind", ORIGINALS)
def test_models_that_are_llamas_under_other_names_are_read_as_those(tmp_path: Path, kind: str) -> None:
    config = ORIGINALS[kind] | {"vocab_size": 259, "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    published = {name: tensor.float().numpy() for name, tensor in original_tensors(config).items()}
    folder = write_plain(tmp_path / "m", published, config)
    (folder / "modeling_own.py").write_text("raise SystemExit")
    expected = OriginalBase(folder, config)
    found = tensors_of(folder)
    assert found.keys() == expected.shapes.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected.whole(name), err_msg=name)
    source = open_source(folder)
    for name, values in found.items():
        np.testing.assert_array_equal(source.read("parameter", name, 3, 8), values.reshape(-1)[3:8])
    if kind != "baichuan2":  # whose output has no way back
        run(pipeline(tmp_path, checkpoint="m", hf={"dtype": "float32", "layout": "original"}))
        assert_same(load_file(tmp_path / "work" / "tiny" / "export" / "hf" / "model.safetensors"), published)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_wrappers_before_names_are_taken_off(tmp_path: Path, prefix: str) -> None:
    tensors = random_tensors(LLAMA)
    write_plain(tmp_path / "m", {prefix + name: tensor for name, tensor in tensors.items()})
    assert_same(tensors_of(tmp_path / "m"), tensors)


def test_wrappers_inside_names_are_taken_off(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    wrapped = {
        name.replace(".layers.0.", ".layers.0._checkpoint_wrapped_module."): one for name, one in tensors.items()
    }
    write_plain(tmp_path / "m", wrapped)
    assert_same(tensors_of(tmp_path / "m"), tensors)


@pytest.mark.parametrize("names", [("model.embed_tokens.weight",), ("lm_head.weight",), None])
def test_tied_weights_are_counted_once(tmp_path: Path, names: tuple[str, ...] | None) -> None:
    tensors = random_tensors(TIED)
    embedding = tensors.pop("model.embed_tokens.weight")
    stored = dict.fromkeys(names or ("model.embed_tokens.weight", "lm_head.weight"), embedding)
    folder = write_plain(tmp_path / "m", {**tensors, **{name: one.copy() for name, one in stored.items()}}, TIED)
    found = tensors_of(folder)
    assert "lm_head.weight" not in found
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], embedding)
    open_source(folder).verify()


def test_tied_weights_that_differ_are_found(tmp_path: Path) -> None:
    tensors = random_tensors(TIED)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    source = open_source(write_plain(tmp_path / "m", tensors, TIED))
    with pytest.raises(CheckError, match=r"is tied to another tensor by config.json, and they differ"):
        source.verify()


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda t: t.pop("model.norm.weight"), "missing: model.norm.weight;"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), "unknown: extra;"),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(3, np.float32)}),
            "model.norm.weight is [3], the model that config.json describes has [128]",
        ),
        (lambda t: [t.pop(name) for name in list(t) if "layers.1" in name], "missing: model.layers.1."),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(128, np.int32)}),
            "model.norm.weight is stored as I32; only float32, bfloat16 and float16",
        ),
        (
            lambda t: t.update(
                {"model.layers.0.self_attn.q_proj.lora_A.default.weight": np.zeros((8, 128), np.float32)}
            ),
            "so an adapter, whose scaling and base only its trainer knows; merge it there first",
        ),
    ],
)
def test_what_is_not_the_models_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], finding: str
) -> None:
    tensors: dict[str, Any] = random_tensors(LLAMA)
    change(tensors)
    assert finding in str(refused(write_plain(tmp_path / "m", tensors)))


@pytest.mark.parametrize(
    ("config", "finding"),
    [
        ("[1]", "config.json: holds no settings by name"),
        ("[" * 100_000, "config.json: cannot be read (maximum recursion"),
        ({"model_type": None}, "config.json: model_type is missing; put the model's own config.json there"),
        ({"architectures": None}, "config.json: architectures is missing"),
        ({"num_attention_heads": 0}, "Transformers refuses its config.json (ZeroDivisionError"),
        ({"hidden_act": "nosuch"}, "Transformers refuses its config.json (KeyError: 'nosuch')"),
        ({"model_type": "internlm2", "rope_scaling": "x"}, "its config.json is not that of internlm2 (Attribute"),
        ({"pad_token_id": 259}, "Transformers refuses its config.json (AssertionError"),
    ],
)
def test_settings_that_describe_no_model_are_named(tmp_path: Path, config: Any, finding: str) -> None:
    folder = write_plain(tmp_path / "m", random_tensors(LLAMA))
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(LLAMA | config))
    error = str(refused(folder))
    assert error.startswith(str(folder))
    assert finding in error


def test_settings_of_a_quantized_model_are_not_those_of_its_numbers(tmp_path: Path) -> None:
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    write_plain(tmp_path / "m", random_tensors(LLAMA), LLAMA | quantized | {"pad_token_id": -1})
    run(pipeline(tmp_path, checkpoint="m"))
    config = json.loads((tmp_path / "work" / "tiny" / "export" / "hf" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["pad_token_id"] == 2  # -1 is written for none


def test_a_format_that_cannot_be_exported_is_told_with_the_checkpoint(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "m", random_tensors(LLAMA), LLAMA | {"dtype": "float64"})
    with pytest.raises(
        ConfigError, match=rf"^{folder}: by its config\.json in 'float64', which cannot be exported; set "
    ):
        Plan.of(pipeline(tmp_path, checkpoint="m"))


def test_generation_settings_that_transformers_does_not_load_are_named(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "m", random_tensors(LLAMA))
    (folder / "generation_config.json").write_text("[]")
    assert "generation_config.json: holds no settings by name" in str(refused(folder))
    (folder / "generation_config.json").write_text('{"max_new_tokens": "x"}')
    with pytest.raises(CheckError, match=r"does not load it .*; correct the model's generation_config\.json"):
        run(pipeline(tmp_path, checkpoint="m"))
    assert not (tmp_path / "work" / "tiny" / "export" / "hf").exists()


def test_what_the_class_leaves_unread_is_no_error(tmp_path: Path) -> None:
    tensors: dict[str, Any] = random_tensors(LLAMA)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(3, np.float32)}
    assert_same(tensors_of(write_plain(tmp_path / "m", {**tensors, **extra})), tensors)


def test_a_missing_or_cut_file_of_several_is_named(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA))
    model.save_pretrained(tmp_path / "m", max_shard_size="200KB")
    complete(tmp_path / "m")
    path = sorted((tmp_path / "m").glob("*.safetensors"))[1]
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    assert f"{path}: cannot be read" in str(refused(tmp_path / "m"))
    path.unlink()
    assert f"{path}: missing, model.safetensors.index.json names it" in str(refused(tmp_path / "m"))


def test_what_is_nothing_is_named_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "m" / "logs").mkdir(parents=True)
    (tmp_path / "m" / "a.txt").touch()
    error = refused(tmp_path / "m")
    assert isinstance(error, DataError)
    assert f"{tmp_path / 'm'}: holds a.txt, logs/, so no checkpoint that is read: packtrain's, DeepSpeed's" in str(
        error
    )


def test_config_and_tokenizer_come_from_elsewhere_if_they_have_to(tmp_path: Path) -> None:
    whole = write_plain(tmp_path / "whole", random_tensors(LLAMA))
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(whole / "model.safetensors", bare)
    assert "has no config.json, and model.name_or_path names no model that has" in str(refused(bare))
    assert "has no tokenizer.json, and the pipeline names none" in str(refused(bare, model=lambda: whole))
    found = open_source(bare, Beside(model=lambda: whole, tokenizer=lambda: whole))
    assert found.tokenizer == whole
    assert found.model != whole


def finished_prep(folder: Path) -> Path:
    home = folder / "work" / "tiny" / "prep"
    home.mkdir(parents=True)
    write_tokenizer(home / "tokenizer")
    PROBES.write(home / "tokenizer")
    Manifest("prep", 1, "0" * 64, {}, [], {"packs": 1, "capacity": 8, "fill": 1.0}).write(home)
    return home


def test_probes_and_template_are_those_of_prep(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "m", random_tensors(LLAMA))
    home = finished_prep(tmp_path)
    assert Plan.of(pipeline(tmp_path, checkpoint="m")).source.tokenizer == home / "tokenizer"
    content = json.loads((folder / "tokenizer.json").read_bytes())
    content["model"]["vocab"]["<|extra|>"] = 259
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"has other tokens than .*, which this pipeline's prep made"):
        Plan.of(pipeline(tmp_path, checkpoint="m"))


def test_identity_is_of_the_bytes_that_are_exported(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)

    def identity_of(name: str, change: Callable[[Path], object] = lambda folder: None) -> str:
        write_zero(tmp_path / name, tensors, stage=3)
        change(complete(tmp_path / name))
        return open_source(tmp_path / name).manifest.identity

    def other(name: str) -> Callable[[Path], object]:
        def change(folder: Path) -> None:
            path = folder / "global_step7" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
            state = torch.load(path, weights_only=False)
            part = state["optimizer_state_dict"]
            (part["fp32_flat_groups"][0] if name == "weight" else part["optimizer_state_dict"]["state"][0]["exp_avg"])[
                5
            ] += 1
            torch.save(state, path)

        return change

    first = identity_of("a")
    assert identity_of("b") == first
    assert identity_of("c", other("weight")) != first
    assert identity_of("d", other("moment")) == first  # which no export reads
    assert identity_of("e", lambda folder: (folder / "config.json").write_text(json.dumps(LLAMA | {"x": 1}))) != first


def test_digests_are_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_tensors(LLAMA)
    folder = write_plain(tmp_path / "m", tensors)
    beside = Beside(cache=tmp_path / "kept.json")
    first = open_source(folder, beside).manifest.identity
    read: list[Path] = []

    def digest(_ranges: object, path: Path, *_: object) -> str:
        read.append(path)
        return "0" * 64

    monkeypatch.setattr("export.sources.foreign._digest", digest)
    assert open_source(folder, beside).manifest.identity == first
    assert not read
    again = open_source(folder, beside)
    with pytest.raises(CheckError, match=r"changed since its digests were taken"):
        again.verify()  # which reads them whatever is kept
    tensors["model.norm.weight"] += 1
    save_file(tensors, folder / "model.safetensors")
    assert open_source(folder, beside).manifest.identity != first
    assert read[-1] == folder / "model.safetensors"


def test_weights_that_change_after_their_digests_were_taken_are_found(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "m", random_tensors(LLAMA))
    source, path = open_source(folder), folder / "model.safetensors"
    source.verify()
    os.utime(path)
    source.refuse_changed()
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 4)
        file.write(b"\1\2\3\4")
    with pytest.raises(CheckError, match=r"changed since its digests were taken"):
        source.refuse_changed()
    (folder / "config.json").unlink()
    with pytest.raises(CheckError, match=r"changed since its digests were taken"):
        source.refuse_changed()


def test_code_of_a_model_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    config = LLAMA | {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    folder = write_plain(tmp_path / "m", random_tensors(LLAMA), config)
    (folder / "modeling_own.py").write_text("raise SystemExit")
    error = refused(folder)
    assert isinstance(error, ConfigError)
    assert "of a model with code of its own, modeling_own.Own" in str(error)


def test_what_is_gathered_is_gone_with_the_source(tmp_path: Path) -> None:
    source = open_source(write_plain(tmp_path / "m", random_tensors(LLAMA)))
    assert isinstance(source, Foreign)
    gathered = source.model
    assert (gathered / "config.json").is_file()
    del source
    gc.collect()
    assert not gathered.exists()


def test_a_name_of_several_lines_makes_no_lines_of_its_own_in_an_error(tmp_path: Path) -> None:
    torch.save({"a\nexport: all is well\x1b[2J": torch.ones(2, 3).T}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="is not stored in its own order") as caught:
        find(tmp_path)
    assert str(caught.value).isprintable()
