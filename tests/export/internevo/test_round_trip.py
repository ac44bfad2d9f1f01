"""InternEvo checkpoints become Hugging Face directories and come back, number for number."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from export.internevo import importer, reader
from export.internevo.exporter import _Rank, to_internevo
from export.internevo.importer import import_internevo
from export.internevo.layout import Kind
from pipelines.artifacts import Manifest
from pipelines.cli import main
from pipelines.errors import CheckError, ConfigError
from pipelines.llama_layouts import layout_of
from pipelines.provenance import verify
from tests.export.internevo.checkpoints import SETTINGS, cut, read, same, whole_tensors, write
from tests.train import runs
from train.attention import PackedAttention
from train.model import build_model

STAGES = {1: [[[0, 1, 2]]], 2: [[[0]], [[1, 2]]]}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "internlm2": ("internlm2", {"num_kv_attention_heads": 8}),
    "internlm2-gqa-vocabulary": ("internlm2", {"embed_split_hidden": False, "no_bias": False}),
    "llama": ("llama", {"num_kv_attention_heads": 8, "dtype": torch.float16}),
    "llama-gqa-bias": ("llama", {"no_bias": False}),
}


def expected(kind: str, settings: dict[str, Any], whole: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Llama's tensors, by the definition of each: one head after another."""
    heads, kv = settings["num_attention_heads"], settings["num_kv_attention_heads"]
    head, each = settings["hidden_size"] // heads, heads // kv
    halves = (lambda rows: rows) if settings["adapt_hf"] else (lambda rows: torch.cat([rows[0::2], rows[1::2]]))
    names = {"attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj"}
    names |= {"feed_forward.w2": "mlp.down_proj", "attention_norm": "input_layernorm"}
    names |= {"ffn_norm": "post_attention_layernorm", "attention.wv": "self_attn.v_proj"}
    found = {}
    for name, tensor in whole.items():
        if name.startswith("tok_"):
            found["model.embed_tokens.weight"] = tensor
        elif name == "output.weight":
            found["lm_head.weight"] = tensor
        elif name == "norm.weight":
            found["model.norm.weight"] = tensor
        else:
            _, layer, rest = name.split(".", 2)
            stem, ending = rest.rsplit(".", 1)
            place = f"model.layers.{layer}.self_attn"
            if stem == "attention.wqkv":
                rows = torch.split(tensor, head)
                groups = [rows[group * (each + 2) : (group + 1) * (each + 2)] for group in range(kv)]
                found[f"{place}.q_proj.{ending}"] = torch.cat([halves(one) for group in groups for one in group[:-2]])
                found[f"{place}.k_proj.{ending}"] = torch.cat([halves(group[-2]) for group in groups])
                found[f"{place}.v_proj.{ending}"] = torch.cat([group[-1] for group in groups])
            elif stem in ("attention.wq", "attention.wk"):
                found[f"{place}.{stem[-1]}_proj.{ending}"] = torch.cat(
                    [halves(one) for one in torch.split(tensor, head)]
                )
            else:
                found[f"model.layers.{layer}.{names[stem]}.{ending}"] = tensor
    return found


@pytest.mark.parametrize("adapt_hf", [True, False])
@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_checkpoints_come_back_bit_for_bit(tp: int, pp: int, adapt_hf: bool, tmp_path: Path) -> None:
    for variant, (kind, changed) in VARIANTS.items():
        settings = SETTINGS | changed | {"adapt_hf": adapt_hf}
        whole = whole_tensors(kind, settings)
        files = cut(whole, tp, STAGES[pp])
        source = write(tmp_path / variant / "500", settings, files)
        hf, llama = tmp_path / variant / "hf", tmp_path / variant / "llama"
        import_internevo(source, hf)
        import_internevo(source, llama, layout="llama")
        assert same(load_file(llama / "model.safetensors"), expected(kind, settings, whole)), variant
        for number, directory in enumerate((hf, llama)):
            to_internevo(directory, tmp_path / variant / f"back{number}")
            back_settings, back = read(tmp_path / variant / f"back{number}")
            assert back_settings == settings
            assert back.keys() == files.keys()
            assert all(same(back[name], files[name]) for name in files), variant
        other = to_internevo(hf, tmp_path / variant / "other", tp=4 // tp, pp=3 - pp, adapt_hf=not adapt_hf)
        import_internevo(tmp_path / variant / "other", tmp_path / variant / "again")
        assert other["adapt_hf"] is not adapt_hf
        assert same(load_file(tmp_path / variant / "again" / "model.safetensors"), load_file(hf / "model.safetensors"))


def imported(folder: Path, settings: dict[str, Any], files: dict[str, dict[str, torch.Tensor]], **how: Any) -> Path:
    import_internevo(write(folder / "500", settings, files), folder / "hf", **how)
    return folder / "hf"


def test_interleaved_stages_are_put_in_order(tmp_path: Path) -> None:
    settings = SETTINGS | {"num_layers": 5, "num_chunks": 2}
    whole = whole_tensors("internlm2", settings)
    hf = imported(tmp_path, settings, cut(whole, 2, [[[0], [2, 3]], [[1], [4]]]))
    found = load_file(hf / "model.safetensors")
    for layer in range(5):
        name = f"layers.{layer}.feed_forward.w1.weight"
        assert torch.equal(found[f"model.{name}"], whole[name])
    to_internevo(hf, tmp_path / "back")
    assert read(tmp_path / "back")[0]["num_chunks"] == 1


def test_the_directory_is_what_training_loads(tmp_path: Path) -> None:
    settings = SETTINGS | {"use_dynamic_ntk_rope": True}
    hf = imported(tmp_path, settings, cut(whole_tensors("internlm2", settings), 1, STAGES[1]))
    config = json.loads((hf / "config.json").read_text())
    layout = layout_of(config)
    assert {name: tensor.shape[0] for name, tensor in load_file(hf / "model.safetensors").items()} == layout.rows
    assert config["rope_scaling"] == {"type": "dynamic", "factor": 1.0}
    assert (config["rope_theta"], config["intermediate_size"]) == (50000.0, 40)
    manifest = Manifest.read(hf)
    assert manifest is not None
    assert [one.kind for one in verify(hf)] == [manifest.kind]


def test_norms_in_float32_stay_so(tmp_path: Path) -> None:
    whole = whole_tensors("internlm2", SETTINGS)
    whole |= {name: tensor.float() + 1e-4 for name, tensor in whole.items() if name.endswith("norm.weight")}
    files = cut(whole, 2, STAGES[2])
    hf = imported(tmp_path, SETTINGS, files)
    assert load_file(hf / "model.safetensors")["model.norm.weight"].dtype == torch.float32
    to_internevo(hf, tmp_path / "back")
    assert all(same(state, files[name]) for name, state in read(tmp_path / "back")[1].items())


def test_rows_of_a_norm_head_are_divided_once(tmp_path: Path) -> None:
    settings = SETTINGS | {"norm_head": True}
    whole = whole_tensors("internlm2", settings)
    hf = imported(tmp_path, settings, cut(whole, 2, STAGES[1]))
    exact = whole["output.weight"].double()
    unit = (exact / exact.norm(dim=1, keepdim=True)).to(torch.bfloat16)
    assert torch.equal(load_file(hf / "model.safetensors")["output.weight"], unit)
    to_internevo(hf, tmp_path / "back")
    assert read(tmp_path / "back")[0]["norm_head"] is False


def test_equal_inputs_give_equal_bytes_and_are_not_read_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = cut(whole_tensors("llama", SETTINGS), 2, STAGES[2])
    for name in ("a", "b"):
        hf = imported(tmp_path / name, SETTINGS, files)
        to_internevo(hf, tmp_path / name / "back")
    for below in ("hf", "back"):
        names = sorted(path.name for path in (tmp_path / "a" / below).iterdir())
        assert len(names) == (4 if below == "hf" else 6)
        for name in names:
            assert (tmp_path / "a" / below / name).read_bytes() == (tmp_path / "b" / below / name).read_bytes(), name
    with caplog.at_level("INFO", "export"):
        import_internevo(tmp_path / "a" / "500", tmp_path / "a" / "hf")
        to_internevo(tmp_path / "a" / "hf", tmp_path / "a" / "back")
    assert caplog.text.count("nothing to do") == 2


def test_a_published_model_becomes_a_checkpoint(tmp_path: Path) -> None:
    settings = SETTINGS | {"hidden_size": 64, "adapt_hf": False}
    hf = imported(tmp_path, settings, cut(whole_tensors("llama", settings), 1, STAGES[1]))
    (hf / importer.RECORD).unlink()
    with pytest.raises(ConfigError, match=r"intermediate_size = 40 is no multiple of 256"):
        to_internevo(hf, tmp_path / "out")
    config = json.loads((hf / "config.json").read_text())
    tensors = load_file(hf / "model.safetensors")

    for layer in range(3):
        for name, shape in (("gate", (256, 64)), ("up", (256, 64)), ("down", (64, 256))):
            tensors[f"model.layers.{layer}.mlp.{name}_proj.weight"] = torch.ones(shape, dtype=torch.bfloat16)
    save_file(tensors, hf / "model.safetensors")
    (hf / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}))
    facts = to_internevo(hf, tmp_path / "out", tp=2, kind="internlm2")
    assert (facts["adapt_hf"], facts["kind"]) == (True, "internlm2")
    back, _ = read(tmp_path / "out")
    assert (back["mlp_ratio"], back["dtype"], back["num_layers"]) == (4.0, torch.bfloat16, 3)
    import_internevo(tmp_path / "out", tmp_path / "again", layout="llama")
    assert same(load_file(tmp_path / "again" / "model.safetensors"), tensors)


def test_the_whole_model_is_never_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    gather = importer.gather

    def counted(shards: Any, whole: Any, rows: Any) -> Any:
        found = gather(shards, whole, rows)
        asked.append(found.size)
        return found

    monkeypatch.setattr("export.weights.BLOCK", 64)
    monkeypatch.setattr("export.blocks.BLOCK", 64)
    monkeypatch.setattr("export.internevo.exporter.BLOCK", 64)
    monkeypatch.setattr(importer, "gather", counted)
    files = cut(whole_tensors("internlm2", SETTINGS), 2, STAGES[1])
    hf = imported(tmp_path, SETTINGS, files)
    assert max(asked) <= 64 + 2 * 40  # a block, and the rows at its two ends
    to_internevo(hf, tmp_path / "back")
    assert all(same(state, files[name]) for name, state in read(tmp_path / "back")[1].items())


def test_the_commands_say_what_they_did(tmp_path: Path) -> None:
    source = write(tmp_path / "500", SETTINGS, cut(whole_tensors("internlm2", SETTINGS), 2, STAGES[2]))
    hf, back = str(tmp_path / "hf"), str(tmp_path / "back")
    answer = CliRunner().invoke(main, ["export", "import-internevo", str(source), hf])
    assert answer.exit_code == 0, answer.output
    assert "from 2 tensor ranks x 2 stages; query and key rows were in halves (adapt_hf = true)" in answer.output
    answer = CliRunner().invoke(main, ["export", "to-internevo", hf, back, "--tp", "4", "--json"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.output)["tp"] == 4
    answer = CliRunner().invoke(main, ["export", "to-internevo", hf, back + "3", "--tp", "3"])
    assert answer.exit_code == 2
    assert answer.output.startswith("--tp 3: does not divide 4 key-value heads")
    assert "Commands:" in CliRunner().invoke(main, ["export", "--help"]).output


def test_what_was_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = imported(tmp_path, SETTINGS, cut(whole_tensors("llama", SETTINGS), 1, STAGES[1]))
    right = _Rank._rows
    monkeypatch.setattr(_Rank, "_rows", lambda self, *rows: right(self, *rows)[::-1])
    with pytest.raises(CheckError, match=r"model.embed_tokens.weight differs from .*hf; write it again"):
        to_internevo(hf, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_any_elements_can_be_read(tmp_path: Path) -> None:
    settings = SETTINGS | {"adapt_hf": False}
    whole = whole_tensors("llama", settings)
    source = write(tmp_path / "500", settings, cut(whole, 2, STAGES[1]))
    weights = importer.InternEvoWeights(reader.InternEvoCheckpoint(source), "llama", adapt_hf=False)
    chance = np.random.default_rng(0)
    for name, tensor in expected("llama", settings, whole).items():
        flat = tensor.view(torch.uint16).numpy().reshape(-1)
        start, stop = sorted(int(place) for place in chance.choice(flat.size + 1, 2, replace=False))
        assert np.array_equal(weights.read(name, start, stop), flat[start:stop]), name


@pytest.mark.parametrize("layout", ["internlm2", "llama"])
def test_training_starts_from_the_same_numbers(layout: Kind, tmp_path: Path) -> None:
    settings = SETTINGS | {"adapt_hf": False}
    whole = whole_tensors("internlm2", settings)
    hf = imported(tmp_path, settings, cut(whole, 2, STAGES[2]), layout=layout)
    PackedAttention("sdpa").register()
    model = build_model(
        runs.pipeline(tmp_path, model={"name_or_path": str(hf)}), {"vocab_size": 24, "max_token_id": 23}
    )
    loaded = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.named_parameters()}
    assert same(loaded, expected("internlm2", settings, whole))
    assert model.config.rope_parameters["rope_theta"] == 50000.0
