"""The 4-bit numbers below an adapter are those that bitsandbytes trained with, and either base can be merged into."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import export.dequantized
import train.run
from export.dequantized import Dequantized
from export.merge import Base, open_base
from export.run import run
from pipelines.artifacts import Json, Manifest
from pipelines.checkpoints import Checkpoint, base_folder
from pipelines.errors import CheckError, ConfigError, MachineError
from tests.export.adapted import adapted_pipeline, write_adapted_run
from tests.export.test_adapter import GPT2, LORA, logits
from tests.export.tiny import LLAMA, write_run
from tests.export.tiny import pipeline as whole_pipeline
from tests.train import runs

functional = pytest.importorskip("bitsandbytes.functional")


class Held(Base):
    """One matrix in memory."""

    def __init__(self, matrix: npt.NDArray[np.float32]) -> None:
        self.folder, self.shapes = Path("held"), {"m": matrix.shape}
        self._matrix = matrix

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        return self._matrix.reshape(-1)[start:stop]


def packed(matrix: torch.Tensor, kind: str, dtype: str, *, twice: bool, transposed: bool) -> tuple[Json, torch.Tensor]:
    """What a checkpoint says of a matrix in 4 bits, and what bitsandbytes unpacks it to."""
    codes, state = functional.quantize_4bit(
        matrix.T.contiguous() if transposed else matrix, compress_statistics=twice, quant_type=kind
    )
    digest = hashlib.sha256()
    for part in (codes, state.absmax, *([state.state2.absmax] if twice else [])):
        digest.update(part.contiguous().view(torch.uint8).numpy().data)
    one = {"offset": float(state.offset) if twice else None, "transposed": transposed, "sha256": digest.hexdigest()}
    scale_block = 256 if twice else None
    facts = {"type": kind, "block": 64, "scale_block": scale_block, "compute_dtype": dtype, "matrices": {"m": one}}
    state.dtype = getattr(torch, dtype)
    unpacked = functional.dequantize_4bit(codes, state).float()
    return facts, unpacked.T if transposed else unpacked


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_numbers_are_those_of_bitsandbytes_bit_for_bit(kind: str, twice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.dequantized, "STEP", 4096)
    torch.manual_seed(11)
    for shape in ((300, 64), (7, 33), (5, 129), (130, 300)):
        matrix = torch.randn(shape) * 0.02
        matrix[0, :3], matrix[-1] = 0, 0  # a block without a number other than zero
        if twice:
            matrix = matrix.bfloat16().float()
        for dtype in ("bfloat16", "float16", "float32"):
            for transposed in (False, True):
                facts, expected = packed(matrix, kind, dtype, twice=twice, transposed=transposed)
                found = Dequantized(Held(matrix.numpy()), facts)
                assert found.agrees("m")
                np.testing.assert_array_equal(found.whole("m"), expected.numpy())
                for start, stop in ((0, 1), (63, 66), (100, matrix.numel() - 1)):
                    part = expected.contiguous().reshape(-1)[start:stop]
                    np.testing.assert_array_equal(found.read("m", start, stop), part.numpy())


def test_other_numbers_than_those_of_training_are_noticed() -> None:
    facts, _ = packed(torch.randn(20, 64), "nf4", "float32", twice=True, transposed=False)
    matrix = torch.randn(20, 64).numpy()
    found, differing = Dequantized.of(Held(matrix), facts)
    assert differing == "m"
    with pytest.raises(CheckError, match="held: m comes out otherwise in 4 bits than in training"):
        export.dequantized.refuse_other_numbers(found, differing)


def exported(folder: Path, lora: dict[str, Any], packing: dict[str, Any], **how: Any) -> tuple[Any, Json]:
    """The exported model, and the facts of its manifest."""
    run(adapted_pipeline(folder, lora, packing, hf={"dtype": "float32"}, **how))
    home = folder / "work/tiny/export"
    manifest = Manifest.read(home)
    assert manifest is not None
    return AutoModelForCausalLM.from_pretrained(home / "hf", dtype="auto"), manifest.facts


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "lora": (LORA, LLAMA, {}),
    "dora": ({**LORA, "use_dora": True}, LLAMA, {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}),
    "transposed": (LORA, {**GPT2, "n_embd": 64}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_onto_the_dequantized_base_it_computes_what_was_trained(kind: str, tmp_path: Path) -> None:
    lora, config, packing = KINDS[kind]
    _, trained = write_adapted_run(tmp_path, lora, config, quantization=packing)
    said = logits(trained)
    model, facts = exported(tmp_path, lora, packing, merge_base="dequantized")
    torch.testing.assert_close(logits(model), said, rtol=1e-4, atol=1e-4)
    original, other = exported(tmp_path, lora, packing)
    assert (logits(original) - said).abs().max() > 0.05
    # Either export measures both, and the same; what it took to pack is in the base alone.
    assert facts["merging"].pop("base") == "dequantized"
    assert other["merging"].pop("base") == "original"
    assert facts["merging"] == other["merging"]
    assert facts["merging"]["other_numbers_in"] is None
    assert facts["merging"]["dequantized"]["relative"] < 1e-7
    measured = facts["merging"]["original"]
    assert 0.03 < measured["relative"] <= measured["worst"]["relative"] < 0.3
    assert measured["logits"] > 0.05 > 1e-3 > facts["merging"]["dequantized"]["logits"]


def test_report_is_what_dense_arithmetic_says_and_stands_in_the_card(tmp_path: Path) -> None:
    _, trained = write_adapted_run(tmp_path, LORA, quantization={"bnb_4bit_compute_dtype": "bfloat16"})
    packing = {"bnb_4bit_compute_dtype": "bfloat16"}
    run(adapted_pipeline(tmp_path, LORA, packing, targets=["adapter"], verify={"greedy_tokens": 0}))
    run(adapted_pipeline(tmp_path, LORA, packing, targets=["turbomind", "hf", "adapter"], verify={"greedy_tokens": 0}))
    home = tmp_path / "work/tiny/export"
    found = json.loads((home / "manifest.json").read_text())["facts"]["merging"]
    assert found["original"]["logits"] is None
    weights, sums = load_file(home / "hf/model.safetensors"), np.zeros(2)
    for name, layer in trained.named_modules():
        if hasattr(layer, "lora_A"):
            below = layer.get_base_layer().weight
            unpacked = functional.dequantize_4bit(below.data, below.quant_state).bfloat16().double()
            a, b = layer.lora_A.default.weight.double(), layer.lora_B.default.weight.double()
            exact = (unpacked + layer.scaling["default"] * (b @ a)).detach()
            sums += [float((weights[f"{name}.weight"].double() - exact).square().sum()), float(exact.square().sum())]
    assert found["original"]["relative"] == float(f"{np.sqrt(sums[0] / sums[1]):.2g}")
    card = (home / "hf/README.md").read_text()
    assert f"| **original** | {found['original']['relative']:.3%} |" in card
    assert "merging" not in json.loads((home / "turbomind/manifest.json").read_text())["facts"]


def test_what_training_notes_is_what_the_files_give(tmp_path: Path) -> None:
    sizes = {**runs.LLAMA, "hidden_size": 64, "intermediate_size": 128}
    model: dict[str, Any] = {"scratch": sizes, "lora": LORA, "quantization": {}}
    runs.write_prep(tmp_path / "shards")
    folder = runs.share(tmp_path / "shards", tmp_path / "work")
    training = runs.pipeline(folder, model=model, max_steps=1, precision="bf16", deepspeed={"zero_stage": 3})
    train.run.run(training)
    checkpoint = Checkpoint(runs.checkpoints(folder)[-1])
    facts = checkpoint.adapter["four_bits"]
    assert facts["compute_dtype"] == "bfloat16"
    assert {f"{name}.weight" for name in checkpoint.adapter["layers"]} == facts["matrices"].keys()
    assert Dequantized.of(open_base(base_folder(training)), facts)[1] is None


def test_base_that_was_not_in_four_bits_is_refused_by_name(tmp_path: Path) -> None:
    write_run(tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"merge_base = .*: the checkpoint is not of an adapter on a model"):
        run(whole_pipeline(tmp_path / "whole", merge_base="dequantized"))
    checkpoint, _ = write_adapted_run(tmp_path, LORA)
    manifest = Manifest.read(checkpoint)
    assert manifest is not None
    facts = {**manifest.facts, "settings": {"model": {"quantization": {}}}}
    Manifest(**{**vars(manifest), "facts": facts}).write(checkpoint)
    with pytest.raises(ConfigError, match="not of an adapter on a model in 4 bits"):
        run(adapted_pipeline(tmp_path, LORA, merge_base="dequantized"))
    facts = {**manifest.facts, "settings": {"model": {"quantization": {"load_in_4bit": True}}}}
    Manifest(**{**vars(manifest), "facts": facts}).write(checkpoint)
    with pytest.raises(ConfigError, match="saved by a version that did not note how the 4 bits came out"):
        run(adapted_pipeline(tmp_path, LORA, merge_base="dequantized"))


def test_missing_library_stops_only_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapted_run(tmp_path, LORA, quantization={})
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(MachineError, match="need bitsandbytes, which is not installed here; pip install bitsandbytes"):
        exported(tmp_path, LORA, {}, merge_base="dequantized")
    _, facts = exported(tmp_path, LORA, {})
    assert facts["merging"] is None
