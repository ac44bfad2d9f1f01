"""4-bit weights of AutoAWQ: passed on code by code, as a second writer and LMDeploy have them, and read back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.run import run
from export.turbomind.packed import pack, unpack
from pipelines.errors import ConfigError, DataError
from tests.export.tiny import pipeline
from tests.export.turbomind.awq import CASES, MODELS, UNLIKE_LMDEPLOY, awq_files, write_awq_with_tokenizer
from tests.export.turbomind.test_folder import GOLDEN, digest

AWQ: dict[str, Any] = {"model_format": "awq", "weight_type": "float16"}


def exported(folder: Path, model: str, *, turbomind: dict[str, Any], targets: Any = ("turbomind",)) -> Path:
    run(
        pipeline(
            folder,
            checkpoint=str(folder / model),
            targets=list(targets),
            turbomind={"model_name": "tiny", **turbomind},
            verify={"greedy_tokens": 3},
        )
    )
    return folder / "work" / "tiny" / "export" / "turbomind" / "triton_models" / "weights"


@pytest.mark.parametrize(("name", "tp"), CASES)
def test_every_byte_is_as_a_second_writer_and_lmdeploy_write_it(tmp_path: Path, name: str, tp: int) -> None:
    config = MODELS[name]
    floats, packed = write_awq_with_tokenizer(tmp_path / name, config)
    weights = exported(tmp_path, name, turbomind={"tp": tp, "chat_template": "base", **AWQ})
    found = {path.name: path.read_bytes() for path in weights.iterdir()}
    settings = found.pop("config.yaml")
    expected = awq_files(config, floats, packed, tp)
    assert found.keys() == expected.keys()
    assert [one for one in found if found[one] != expected[one]] == []
    if name in UNLIKE_LMDEPLOY:
        return
    assert digest({**found, "config.yaml": settings}) == json.loads(GOLDEN.read_bytes())[f"{name} int4 {tp}"]


def test_eight_codes_are_one_number_the_first_in_its_lowest_bits() -> None:
    codes = np.arange(16, dtype=np.uint8).reshape(16, 1)
    assert [hex(word) for word in pack(codes)[:, 0].tolist()] == ["0x76543210", "0xfedcba98"]
    np.testing.assert_array_equal(unpack(pack(codes)), codes)


@pytest.mark.parametrize(
    ("quantization", "finding"),
    [
        ({"quant_method": "gptq"}, r"quantized with gptq \(4 bits, group_size 128\); of quantized models only AWQ"),
        ({"version": "gemv"}, "quantized with awq .* version 'gemv'"),
        ({"group_size": 64}, "group_size 64"),
        ({"quant_method": "bitsandbytes", "bits": None}, "quantized with bitsandbytes"),
    ],
)
def test_other_quantization_is_refused_by_name(tmp_path: Path, quantization: dict[str, Any], finding: str) -> None:
    write_awq_with_tokenizer(tmp_path / "awq", MODELS["awq"], **quantization)
    with pytest.raises(ConfigError, match=finding):
        exported(tmp_path, "awq", turbomind=AWQ)


@pytest.mark.parametrize(
    ("turbomind", "targets", "finding"),
    [
        ({}, ["turbomind"], r'model_format = "hf": the checkpoint holds weights in 4 bits; set it to "awq"'),
        ({**AWQ, "weight_type": "bfloat16"}, ["turbomind"], "weight_type = .* the engine computes .* in float16"),
        (AWQ, ["hf", "turbomind"], "holds weights in 4 bits, which are passed on as TurboMind weights alone"),
        ({**AWQ, "tp": 4}, ["turbomind"], "tp = 4: does not divide"),
    ],
)
def test_a_pipeline_that_asks_for_something_else_is_refused(
    tmp_path: Path, turbomind: dict[str, Any], targets: list[str], finding: str
) -> None:
    write_awq_with_tokenizer(tmp_path / "awq", MODELS["awq"])
    with pytest.raises(ConfigError, match=finding):
        exported(tmp_path, "awq", turbomind=turbomind, targets=targets)


def test_a_matrix_without_its_scales_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    write_awq_with_tokenizer(tmp_path / "awq", MODELS["awq"])
    tensors = load_file(tmp_path / "awq" / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.scales"]
    save_file(tensors, tmp_path / "awq" / "model.safetensors")
    with pytest.raises(DataError, match=r"up_proj\.scales is missing, for AWQ it has to be"):
        exported(tmp_path, "awq", turbomind=AWQ)
