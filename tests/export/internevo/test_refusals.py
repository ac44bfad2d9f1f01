"""What is wrong with a checkpoint is named, and nothing in it is ever run."""

import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from export.internevo.exporter import to_internevo
from export.internevo.importer import import_internevo
from export.internevo.reader import InternEvoCheckpoint
from pipelines.errors import ConfigError, DataError
from tests.export.internevo.checkpoints import SETTINGS, State, cut, whole_tensors, write

STAGES = [[[0, 1]], [[2]]]


def files(kind: str = "internlm2", tp: int = 2, **changed: Any) -> dict[str, State]:
    return cut(whole_tensors(kind, SETTINGS | changed), tp, STAGES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "500", SETTINGS, files())


class Payload:
    """Makes a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["model_config.pt", "model_tp1_pp0.pt"])
def test_code_in_a_file_is_not_run(name: str, folder: Path, tmp_path: Path) -> None:
    armed = tmp_path / "armed"
    pickle.loads(pickle.dumps(Payload(armed)))
    assert armed.exists()
    marker = tmp_path / "marker"
    torch.save({"norm.weight": Payload(marker)}, folder / name)
    with pytest.raises(DataError, match=rf"{name}: asks for \w+.mkdir, which is code and is not run"):
        import_internevo(folder, tmp_path / "hf")
    (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(DataError, match=rf"{name}: not a file that torch.save wrote"):
        import_internevo(folder, tmp_path / "hf")
    assert not marker.exists()
    assert not (tmp_path / "hf").exists()


def test_settings_in_a_class_of_internevo_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "internlm.core.context.parallel_context"
    module = types.ModuleType(name)
    config = type("Config", (dict,), {"__module__": name})
    module.Config = config  # type: ignore[attr-defined]  # a stand-in for the package, which is not needed to read
    with monkeypatch.context() as patch:
        for parent in ("internlm", "internlm.core", "internlm.core.context"):
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        patch.setitem(sys.modules, name, module)
        torch.save(config(SETTINGS | {"more": config(key=1)}), folder / "model_config.pt")
    checkpoint = InternEvoCheckpoint(folder)
    assert checkpoint.config == SETTINGS | {"more": {"key": 1}}


def test_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model_tp0_pp1.pt").unlink()
    with pytest.raises(DataError, match=r"model_tp0_pp1.pt: missing, the other files are of 2 tensor ranks and 2"):
        import_internevo(folder, tmp_path / "hf")
    (folder / "model_config.pt").unlink()
    with pytest.raises(DataError, match=r"model_tp0_pp1.pt: missing"):
        import_internevo(folder, tmp_path / "hf")
    torch.save({}, folder / "model_tp0_pp1.pt")
    with pytest.raises(DataError, match=r"model_config.pt: missing"):
        import_internevo(folder, tmp_path / "hf")
    with pytest.raises(DataError, match=r"holds no model_tp\*_pp\*.pt; name a step's folder, such as .*500"):
        import_internevo(tmp_path, tmp_path / "hf")
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        import_internevo(tmp_path / "nowhere", tmp_path / "hf")


def test_a_cut_file_is_named(folder: Path, tmp_path: Path) -> None:
    content = (folder / "model_tp1_pp0.pt").read_bytes()
    (folder / "model_tp1_pp0.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"model_tp1_pp0.pt: not a file that torch.save wrote, or cut short"):
        import_internevo(folder, tmp_path / "hf")


def test_a_save_that_was_stopped_is_refused(folder: Path) -> None:
    (folder / "optimizer_tp0_pp0_zo0.pt").write_bytes(b"")
    with pytest.raises(DataError, match=r"has no .step file, so InternEvo was stopped while saving"):
        InternEvoCheckpoint(folder)
    (folder / "500.step").write_bytes(b"")
    InternEvoCheckpoint(folder)


def changed(folder: Path, name: str, **tensors: torch.Tensor | None) -> None:
    """Replace or remove tensors of a file; `__` stands for a dot."""
    state = torch.load(folder / name, weights_only=True)
    for key, tensor in tensors.items():
        state[f"model.{key.replace('__', '.')}"] = tensor
    torch.save({key: tensor for key, tensor in state.items() if tensor is not None}, folder / name)


def test_ranks_at_odds_are_found(folder: Path) -> None:
    norm = torch.full((32,), 0.5, dtype=torch.bfloat16)
    changed(folder, "model_tp1_pp1.pt", norm__weight=norm)
    with pytest.raises(DataError, match=r"norm.weight of tensor rank 1 differs from rank 0's, and all ranks"):
        InternEvoCheckpoint(folder)
    changed(folder, "model_tp1_pp1.pt", norm__weight=norm.float())
    with pytest.raises(DataError, match=r"norm.weight of tensor rank 1 is torch.float32, rank 0 has torch.bfloat16"):
        InternEvoCheckpoint(folder)
    changed(folder, "model_tp1_pp1.pt", norm__weight=None)
    with pytest.raises(DataError, match=r"model_tp1_pp1.pt: it and model_tp0_pp1.pt do not hold the same tensors"):
        InternEvoCheckpoint(folder)


def test_files_of_another_tensor_parallel_size_are_found(tmp_path: Path) -> None:
    mixed = {**files(tp=2), **{name: state for name, state in files(tp=4).items() if "tp1" in name}}
    with pytest.raises(DataError, match=r"rank 1 is \[24, 8\], a part of \[24, 32\] over 2 ranks is \[24, 16\]"):
        InternEvoCheckpoint(write(tmp_path / "a", SETTINGS, mixed))
    half = {name: state for name, state in files(tp=4).items() if "tp0" in name or "tp1" in name}
    with pytest.raises(DataError, match=r"files of another tensor-parallel size, or another model_config.pt"):
        InternEvoCheckpoint(write(tmp_path / "b", SETTINGS, half))
    odd = write(tmp_path / "c", SETTINGS | {"vocab_size": 25}, files(embed_split_hidden=False))
    with pytest.raises(DataError, match=r"over 2 ranks is impossible"):
        InternEvoCheckpoint(odd)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 4}, "hold 3 layers, model_config.pt says num_layers = 4"),
        ({"num_attention_heads": None}, "num_attention_heads is missing"),
        ({"num_kv_attention_heads": 3}, "do not divide hidden_size = 32"),
        ({"norm_type": "layernorm"}, "norm_type = 'layernorm'"),
        ({"head_dim": 16}, "head_dim = 16 is not hidden_size"),
    ],
)
def test_settings_of_another_model_are_found(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        InternEvoCheckpoint(write(tmp_path / "500", SETTINGS | settings, files()))


def test_other_kinds_of_model_and_cut_are_named(folder: Path, tmp_path: Path) -> None:
    torch.save([1], folder / "model_config.pt")
    with pytest.raises(DataError, match="holds a list, not the settings of a model"):
        InternEvoCheckpoint(folder)
    for name, message in (
        ("model_moe_layer0_expert0_tp0.pt", "holds experts in files of their own"),
        ("model_wp0_pp0.pt", r"is cut over weight-parallel ranks \(ISP\)"),
        ("model_tp0_pp0_dp0.pt", "is cut over FSDP ranks"),
    ):
        (folder / name).write_bytes(b"")
        with pytest.raises(DataError, match=f"{name}: the checkpoint {message}, which is not read"):
            InternEvoCheckpoint(folder)
        (folder / name).unlink()
    older = {"embedding.weight": torch.ones(2, 2), "blocks.0.mixer.Wqkv.weight": torch.ones(6, 2)}
    unknown = write(tmp_path / "1", SETTINGS, {"model_tp0_pp0.pt": older})
    with pytest.raises(DataError, match=r"of an unknown model type, it holds blocks.0.mixer.Wqkv.weight; read are"):
        InternEvoCheckpoint(unknown)
    extra = files(tp=1)
    extra["model_tp0_pp0.pt"]["model.layers.0.feed_forward.moe_layer.gate.weight"] = torch.ones(2)
    with pytest.raises(DataError, match=r"layers.0.feed_forward.moe_layer.gate.weight has no place in a internlm2"):
        InternEvoCheckpoint(write(tmp_path / "2", SETTINGS, extra))


def test_the_order_of_rows_is_never_guessed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"says adapt_hf = true; leave the option out"):
        import_internevo(folder, tmp_path / "hf", adapt_hf=False)
    torch.save({key: value for key, value in SETTINGS.items() if key != "adapt_hf"}, folder / "model_config.pt")
    with pytest.raises(ConfigError, match=r"does not say adapt_hf, the order of rows in query and key heads"):
        import_internevo(folder, tmp_path / "hf")
    assert import_internevo(folder, tmp_path / "hf", adapt_hf=False)["adapt_hf"] is False


def test_no_file_of_others_is_replaced(folder: Path, tmp_path: Path) -> None:
    hf, back = tmp_path / "hf", tmp_path / "back"
    for out in (hf, back):
        out.mkdir()
        (out / "mine").write_text("")
    with pytest.raises(ConfigError, match=r"mine: not written by an export"):
        import_internevo(folder, hf)
    (hf / "mine").unlink()
    import_internevo(folder, hf)
    with pytest.raises(ConfigError, match=r"mine: not written by an export"):
        to_internevo(hf, back)


def test_what_internevo_cannot_hold_is_refused(folder: Path, tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    import_internevo(folder, hf, layout="llama")
    with pytest.raises(ConfigError, match=r"--pp 4: the model has 3 layers"):
        to_internevo(hf, tmp_path / "out", pp=4)
    with pytest.raises(ConfigError, match=r"--tp 8: does not divide 4 key-value heads"):
        to_internevo(hf, tmp_path / "out", tp=8)
    config = (hf / "config.json").read_text()
    for old, new, error, message in (
        ('"model_type": "llama"', '"model_type": "qwen2"', ConfigError, "model_type 'qwen2': InternEvo checkpoints"),
        ('"tie_word_embeddings": false', '"tie_word_embeddings": true', ConfigError, "tie_word_embeddings = true"),
        ('"rope_type": "default"', '"rope_type": "yarn"', ConfigError, "positions scaled by 'yarn'"),
        ('"num_hidden_layers": 3', '"num_hidden_layers": 2', DataError, "has no place in InternEvo's model"),
        ('"intermediate_size": 40', '"intermediate_size": 44', DataError, r"is \[40, 32\], its config.json asks for"),
        ('"vocab_size"', '"vocab"', DataError, "vocab_size is missing"),
    ):
        assert old in config
        (hf / "config.json").write_text(config.replace(old, new))
        with pytest.raises(error, match=message):
            to_internevo(hf, tmp_path / "out")
    (hf / "config.json").write_text(config)
    (hf / "model.safetensors").unlink()
    with pytest.raises(DataError, match="holds no safetensors"):
        to_internevo(hf, tmp_path / "out")
    with pytest.raises(DataError, match=r"config.json: missing; name a Hugging Face directory"):
        to_internevo(tmp_path / "nowhere", tmp_path / "out")
    other = tmp_path / "other"
    import_internevo(folder, other)
    with pytest.raises(ConfigError, match="--type llama: the directory has InternLM2's names"):
        to_internevo(other, tmp_path / "out", kind="llama")
    llama = write(tmp_path / "600", SETTINGS, files("llama"))
    with pytest.raises(ConfigError, match="--layout internlm2: the checkpoint is of the Llama type"):
        import_internevo(llama, tmp_path / "third", layout="internlm2")


@pytest.mark.parametrize(
    ("key", "value", "finding"),
    [
        ("num_layers", 10**15, r"its files hold 3 layers, .* says num_layers = 1000000000000000"),
        ("hidden_size", {"x": 1}, r"hidden_size = dict: expected a whole number from 1 on"),
        ("num_attention_heads", 0, r"num_attention_heads = 0: expected a whole number"),
        ("head_dim", "4", r'head_dim = "4": expected a whole number'),
        ("rope_base", [1], r"rope_base = list: expected a number"),
        ("adapt_hf", "no", r'adapt_hf = "no": expected true or false'),
        ("anything", float("nan"), r"anything holds what no setting of a model is"),
        ("norm_head", torch.ones(2), r"norm_head holds what no setting of a model is"),
    ],
)
def test_a_setting_that_cannot_be_is_named(key: str, value: Any, finding: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "500", SETTINGS | {key: value}, files())
    with pytest.raises(DataError, match=rf"model_config\.pt.*{finding}|{finding}"):
        import_internevo(folder, tmp_path / "hf")
