"""Every merged number is the one of the exported format that is nearest to what the adapter's factors say."""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

import export.merge
from export.cast import Dtype, cast_float64
from export.merge import Base, Merged, odd
from export.weights import Weights
from pipelines.artifacts import FileRecord, Manifest, identity
from pipelines.checkpoints import FORMAT_VERSION, Checkpoint, fragment_key
from pipelines.errors import CheckError, ConfigError, DataError

Floats = npt.NDArray[np.float32]
DTYPES: list[Dtype] = ["bfloat16", "float16", "float32"]
NAME = "m.weight"


def nearest(value: Fraction, dtype: Dtype) -> float:
    """The finite number of a format nearest to a value, ties to the even one, written the obvious way."""
    digits, smallest = {"bfloat16": (8, -133), "float16": (11, -24), "float32": (24, -149)}[dtype]
    if value == 0:
        return 0.0
    exponent = smallest
    while abs(value) >= Fraction(2) ** (exponent + digits):
        exponent += 1
    return float(round(value / Fraction(2) ** exponent) * Fraction(2) ** exponent)  # Python rounds ties to even


def number(bits: npt.NDArray[Any], dtype: Dtype) -> npt.NDArray[np.float64]:
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return bits.view(np.float16 if dtype == "float16" else np.float32).astype(np.float64)


def merged(folder: Path, before: Floats, tensors: dict[str, Floats], **how: Any) -> Merged:
    """The base `before` with an adapter of one layer on it."""
    (folder / "base").mkdir(parents=True)
    (folder / "step").mkdir()
    save_file({NAME: before}, folder / "base" / "model.safetensors")
    state = {fragment_key("parameter", name, 0): tensor.reshape(-1) for name, tensor in tensors.items()}
    save_file(state, folder / "step" / "state-00000-of-00001.safetensors")
    layer = {"rank": 1, "scaling": 1.0, "transposed": False, "dora": False, **how}
    facts = {
        "parameters": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "tied": {},
        "adapter": {"base": {}, "layers": {"m": layer}, "config": {}},
    }
    records = [FileRecord.of(folder / "step", folder / "step" / "state-00000-of-00001.safetensors")]
    Manifest("checkpoint", FORMAT_VERSION, identity(0), {}, records, facts).write(folder / "step")
    return Merged(Checkpoint(folder / "step"), folder / "base")


def factors(a: Floats, b: Floats) -> dict[str, Floats]:
    return {"m.lora_A.default.weight": a, "m.lora_B.default.weight": b}


@given(
    st.fractions(min_value=-60000, max_value=60000) | st.floats(-60000, 60000, width=16).map(Fraction),
    st.integers(-3, 3),
    st.sampled_from(DTYPES),
)
def test_float64_is_rounded_once(value: Fraction, steps: int, dtype: Dtype) -> None:
    near = float(np.float32(float(value)))
    values = [odd(value), near, near + steps * 2.0**-40 * near, (1 + 2.0**-9) * near, (1 + 2.0**-12) * near]
    found = number(cast_float64(np.array(values), dtype), dtype)
    expected = [nearest(value, dtype), *(nearest(Fraction(one), dtype) for one in values[1:])]
    limit = {"bfloat16": 3e38, "float16": 65504, "float32": 3e38}[dtype]
    assert all(one == other for one, other in zip(found.tolist(), expected, strict=True) if abs(other) <= limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 5), scaling=st.floats(-4, 4), tiny=st.booleans())
def test_every_number_is_the_nearest(
    dtype: Dtype, transposed: bool, seed: int, rank: int, scaling: float, tiny: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    random = np.random.default_rng(seed)
    before = random.standard_normal((6, 5)).astype(np.float32)
    # Halfway between two numbers of a shorter format: the least addition decides, and without one the even number.
    words = before.view(np.uint32)
    words[:4] = (words[:4] & np.uint32(0xFFFF0000 if dtype == "bfloat16" else 0xFFFFE000)) | np.uint32(
        0x8000 if dtype == "bfloat16" else 0x1000
    )
    outputs, inputs = (5, 6) if transposed else (6, 5)
    a = random.standard_normal((rank, inputs)).astype(np.float32)
    b = random.standard_normal((outputs, rank)).astype(np.float32)
    if tiny:
        b *= np.float32(2.0**-90)
        b[random.integers(0, outputs)] = 0
    model = merged(tmp_path_factory.mktemp("m"), before, factors(a, b), scaling=scaling, transposed=transposed)
    _, bits = model.read(NAME, 0, 30, dtype)
    found = number(bits, dtype).reshape(6, 5)
    for row in range(6):
        for column in range(5):
            out, in_ = (column, row) if transposed else (row, column)
            products = sum(Fraction(float(a[k, in_])) * Fraction(float(b[out, k])) for k in range(rank))
            exact = Fraction(float(before[row, column])) + Fraction(scaling) * products
            assert found[row, column] == nearest(exact, dtype)


def square_root(value: Fraction) -> Fraction:
    """To some 200 bits."""
    scale = 2**400
    return Fraction(math.isqrt(int(value * scale)), 2**200)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_every_number_of_dora_is_the_nearest(dtype: Dtype, transposed: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    outputs, inputs, rank, scaling = 12, 9, 3, 0.7
    a = random.standard_normal((rank, inputs)).astype(np.float32)
    b = random.standard_normal((outputs, rank)).astype(np.float32)
    matrix = random.standard_normal((outputs, inputs)).astype(np.float32)
    magnitude = random.uniform(0.5, 2, outputs).astype(np.float32)
    tensors = {**factors(a, b), "m.lora_magnitude_vector.default.weight": magnitude}
    before = np.ascontiguousarray(matrix.T) if transposed else matrix
    model = merged(tmp_path, before, tensors, scaling=scaling, transposed=transposed, dora=True)
    bits = model.read(NAME, 0, before.size, dtype)[1]
    found = number(bits, dtype).reshape(before.shape)
    found = found.T if transposed else found
    for out in range(outputs):
        row = [
            Fraction(float(matrix[out, i]))
            + Fraction(scaling) * sum(Fraction(float(b[out, k])) * Fraction(float(a[k, i])) for k in range(rank))
            for i in range(inputs)
        ]
        length = square_root(sum((one * one for one in row), Fraction(0)))
        expected = [nearest(Fraction(float(magnitude[out])) * one / length, dtype) for one in row]
        assert found[out].tolist() == expected


def test_numbers_computed_again_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    a, b, before = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 4), (3, 2), (3, 4)))
    magnitude = {"m.lora_magnitude_vector.default.weight": np.ones(3, np.float32)}
    for name, tensors, dora in (("plain", {}, False), ("dora", magnitude, True)):
        model = merged(tmp_path / name, before, {**factors(a, b), **tensors}, dora=dora)
        values, bits = model.read(NAME, 0, 12, "float32")
        again = [model._again(NAME, *divmod(place, 4)) for place in range(12)]
        np.testing.assert_array_equal(cast_float64(np.array(again), "float32"), bits)
        np.testing.assert_allclose(again, values, rtol=1e-14)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("roughly", [1, 7, 1 << 19])
def test_any_range_and_any_block_give_the_same_numbers(
    roughly: int, dora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(2)
    a, b, before = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 5), (7, 2), (7, 5)))
    tensors = {**factors(a, b), "m.lora_magnitude_vector.default.weight": np.ones(7, np.float32)}
    model = merged(tmp_path, before, tensors, dora=dora)
    _, whole = model.read(NAME, 0, 35, "bfloat16")
    monkeypatch.setattr(export.merge, "ROUGHLY", roughly)
    for start in range(0, 35, 4):
        for stop in range(start + 1, 36, 3):
            np.testing.assert_array_equal(model.read(NAME, start, stop, "bfloat16")[1], whole[start:stop])


@pytest.mark.parametrize("file", ["x.safetensors", "pytorch_model-00001-of-00001.bin"])
def test_every_format_of_a_base_is_read(file: str, tmp_path: Path) -> None:
    values = torch.tensor([[1.5, -0.25, 3e-8], [2.0**-14, 1024.0, 0.0]])
    formats = {"b": torch.bfloat16, "h": torch.float16, "f": torch.float32}
    tensors = {name: values.to(kind) for name, kind in formats.items()}
    (torch.save if file.endswith(".bin") else save_torch)(tensors, tmp_path / file)
    base = Base(tmp_path)
    for name, kind in formats.items():
        assert base.read(name, 1, 5).tolist() == values.to(kind).float().reshape(-1)[1:5].tolist()


def test_format_that_cannot_be_merged_into_is_refused(tmp_path: Path) -> None:
    save_file({"w": np.zeros(3, np.int8)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"x.safetensors: w is stored as I8, which an adapter cannot be merged into"):
        Base(tmp_path)


def test_tensor_of_a_pickle_that_is_in_pieces_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(4, 6)[:, :3]}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"w does not lie there in one piece; convert the model to safetensors"):
        Base(tmp_path)


def test_damaged_base_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": np.zeros(300, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckError, match=r"x.safetensors: ends inside w; restore the base model"):
        Base(tmp_path).read("w", 0, 300)
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"x.safetensors: not a safetensors file"):
        Base(tmp_path)


def test_merged_number_beyond_the_format_is_named(tmp_path: Path) -> None:
    merged(
        tmp_path,
        np.ones((2, 2), np.float32),
        factors(np.full((1, 2), 300, np.float32), np.full((2, 1), 300, np.float32)),
    )
    weights = Weights(Checkpoint(tmp_path / "step"), "float16", tmp_path / "base")
    with pytest.raises(CheckError, match=r"m.weight holds 90001, beyond the range of float16; export bfloat16"):
        weights.tensor(NAME)
