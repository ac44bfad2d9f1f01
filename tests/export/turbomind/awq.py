"""Tiny models of 4 bits as AutoAWQ writes them, from random codes, and their TurboMind files spelled out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from tests.export.tiny import LLAMA, QWEN2, shapes, write_tokenizer
from tests.export.turbomind.reference import weight_files

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "dtype": "float16",
}
"""Three groups in the MLP, which two ranks pad to four."""
MODELS: dict[str, dict[str, Any]] = {
    "awq": LLAMA | SIZES,
    "awq_qwen2": QWEN2 | SIZES,
    "awq_one_head": LLAMA | SIZES | {"num_key_value_heads": 1},
}
CASES = [("awq", 1), ("awq", 2), ("awq_qwen2", 2), ("awq_one_head", 2)]
UNLIKE_LMDEPLOY = ("awq_one_head",)
"""LMDeploy's converter fails where ranks have copies of a head in 4 bits."""
QUANTIZATION = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": True}

Numbers = dict[str, npt.NDArray[Any]]


def random_codes(config: dict[str, Any]) -> tuple[Numbers, Numbers]:
    """What is stored by name: floats, and for each linear layer [in, out] codes and [groups, out] zeros and scales."""
    random = np.random.RandomState(5)  # whose numbers are the same in every version of NumPy
    floats: Numbers = {}
    packed: Numbers = {}
    for name, shape in shapes(config).items():
        if "_proj.weight" in name:
            module, groups = name.removesuffix(".weight"), shape[1] // 128
            packed[f"{module}.codes"] = random.randint(0, 16, shape[::-1]).astype(np.uint8)
            packed[f"{module}.zeros"] = random.randint(0, 16, (groups, shape[0])).astype(np.uint8)
            packed[f"{module}.scales"] = (random.randint(1, 64, (groups, shape[0])) / 4096).astype(np.float16)
        else:
            floats[name] = (random.randint(-128, 128, shape) / 512).astype(np.float16)
    return floats, packed


def write_awq(folder: Path, config: dict[str, Any], **changed: Any) -> tuple[Numbers, Numbers]:
    """A directory as AutoAWQ leaves it; returns what was drawn."""
    folder.mkdir(parents=True)
    floats, packed = random_codes(config)
    stored = dict(floats)
    for name, numbers in packed.items():
        module, kind = name.rsplit(".", 1)
        if kind == "scales":
            stored[name] = numbers
        else:
            stored[f"{module}.{'qweight' if kind == 'codes' else 'qzeros'}"] = _packed(numbers)
    save_file({name: np.ascontiguousarray(one) for name, one in stored.items()}, folder / "model.safetensors")
    settings = config | {"quantization_config": QUANTIZATION | changed, "rope_theta": 50000.0}
    (folder / "config.json").write_text(json.dumps(settings))
    return floats, packed


def write_awq_with_tokenizer(folder: Path, config: dict[str, Any], **changed: Any) -> tuple[Numbers, Numbers]:
    """The same, with a tokenizer among the files."""
    drawn = write_awq(folder, config, **changed)
    write_tokenizer(folder / "own")
    for path in (folder / "own").iterdir():
        path.rename(folder / path.name)
    (folder / "own").rmdir()
    return drawn


def _packed(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Eight neighbours in an int32, in AutoAWQ's order."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        words |= codes[:, column::8].astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


def awq_files(config: dict[str, Any], floats: Numbers, packed: Numbers, tp: int) -> dict[str, bytes]:
    """Content of every weight file by name, each of the three kinds as a matrix of its own."""
    inner, size = config["intermediate_size"], config["head_dim"]
    groups = -(-(inner // 128) // tp) * tp
    dense = {name: one.astype(np.float32) for name, one in floats.items()}
    for name, shape in shapes(config).items():
        dense.setdefault(name, np.zeros(shape, np.float32))  # of the files that are replaced below
    files = {
        name: content
        for name, content in weight_files(config, dense, tp, "float16").items()
        if not name.endswith(".weight") or not any(f".{one}." in name for one in ("w_qkv", "wo", "w1", "w2", "w3"))
    }
    for kind in ("codes", "scales", "zeros"):
        one = {name.rsplit(".", 2)[1]: value for name, value in packed.items() if name.endswith(f".{kind}")}
        rows = groups * (128 if kind == "codes" else 1)
        gate, up = (_padded(one[f"{part}_proj"], one[f"{part}_proj"].shape[0], groups * 128) for part in ("gate", "up"))
        down = _padded(one["down_proj"], rows, config["hidden_size"])
        copies = max(1, tp // config["num_key_value_heads"])
        query, key = (_rotated(one[f"{part}_proj"], size) for part in ("q", "k"))
        heads = [np.concatenate([part] * copies, axis=1) if copies > 1 else part for part in (key, one["v_proj"])]
        for rank in range(tp):
            mine = [_rank(part.T, rank, tp).T for part in (query, *heads)]
            found = {"attention.w_qkv": np.concatenate(mine, axis=1), "attention.wo": _rank(one["o_proj"], rank, tp)}
            found |= {"feed_forward.w1": _rank(gate.T, rank, tp).T, "feed_forward.w3": _rank(up.T, rank, tp).T}
            found["feed_forward.w2"] = _rank(down, rank, tp)
            for name, matrix in found.items():
                ending = "qweight" if kind == "codes" else kind
                files[f"layers.0.{name}.{rank}.{ending}"] = _file(matrix, kind)
    return files


def _file(matrix: npt.NDArray[Any], kind: str) -> bytes:
    if kind != "codes":
        return matrix.astype(np.float16).tobytes()
    words = [[sum(int(code) << 4 * i for i, code in enumerate(row[c : c + 8])) for c in range(0, len(row), 8)]
             for row in matrix]  # fmt: skip
    return np.array(words, np.uint32).tobytes()


def _padded(matrix: npt.NDArray[Any], rows: int, columns: int) -> npt.NDArray[Any]:
    return np.pad(matrix, ((0, rows - matrix.shape[0]), (0, columns - matrix.shape[1])))


def _rank(matrix: npt.NDArray[Any], rank: int, tp: int) -> npt.NDArray[Any]:
    share = matrix.shape[0] // tp
    return matrix[rank * share : (rank + 1) * share]


def _rotated(matrix: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    half = size // 2
    within = [j // 2 if j % 2 == 0 else half + j // 2 for j in range(size)]
    return matrix[:, [head + j for head in range(0, matrix.shape[1], size) for j in within]]
