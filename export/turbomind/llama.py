"""The files of a Llama-style model: which tensors go into which, for Llama, Mistral and Qwen2."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from export.cast import Bits
from export.turbomind import layout
from export.turbomind.geometry import Geometry
from export.weights import BLOCK, Weights

EMBEDDING, FINAL_NORM, OUTPUT = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

Progress = Callable[[int], object]


def write_weights(folder: Path, weights: Weights, geometry: Geometry, progress: Progress) -> None:
    """Write every weight file, holding at most one layer's matrix and its transpose in memory.

    Args:
        progress: told the bytes written since it was told last.
    """
    _write_embedding(folder, weights, geometry, progress)
    _write(folder, "norm.weight", weights.tensor(FINAL_NORM), progress)
    _write_output(folder, weights, geometry, progress)
    for layer in range(geometry.layers):
        for name, content in _layer_files(weights, geometry, layer):
            _write(folder, f"layers.{layer}.{name}", content, progress)


def _write(folder: Path, name: str, content: Bits, progress: Progress) -> None:
    with (folder / name).open("wb") as file:
        file.write(np.ascontiguousarray(content).data)
    progress(content.nbytes)


def _layer_files(weights: Weights, geometry: Geometry, layer: int) -> Iterator[tuple[str, Bits]]:
    def tensor(name: str) -> Bits:
        return weights.tensor(f"model.layers.{layer}.{name}")

    def matrix(name: str) -> Bits:
        return tensor(f"{name}.weight").T

    def bias(name: str) -> Bits:
        return tensor(f"{name}.bias")[None]

    tp = geometry.tp
    yield "attention_norm.weight", tensor("input_layernorm.weight")
    yield "ffn_norm.weight", tensor("post_attention_layernorm.weight")
    yield from _by_rank("attention.w_qkv", "weight", _qkv(matrix, geometry))
    yield from _by_rank("attention.wo", "weight", layout.split_rows(matrix("self_attn.o_proj"), tp))
    if geometry.qkv_bias:  # the engine reads biases of both projections or of none
        yield from _by_rank("attention.w_qkv", "bias", _qkv(bias, geometry))
        whole = bias("self_attn.o_proj")[0] if geometry.output_bias else np.zeros(geometry.hidden, np.uint16)
        yield from _by_rank("attention.wo", "bias", [whole] * tp)
    for file, name in (("w1", "gate_proj"), ("w3", "up_proj")):
        padded = layout.pad_columns(matrix(f"mlp.{name}"), geometry.padded_mlp)
        yield from _by_rank(f"feed_forward.{file}", "weight", layout.split_columns(padded, tp))
    padded = layout.pad_columns(matrix("mlp.down_proj").T, geometry.padded_mlp).T
    yield from _by_rank("feed_forward.w2", "weight", layout.split_rows(padded, tp))


def _by_rank(name: str, kind: str, content: list[Bits]) -> Iterator[tuple[str, Bits]]:
    for rank, part in enumerate(content):
        yield f"{name}.{rank}.{kind}", part


def _qkv(part: Callable[[str], Bits], geometry: Geometry) -> list[Bits]:
    size, times = geometry.head_size, geometry.kv_repeat
    query = layout.interleave(part("self_attn.q_proj"), size)
    key = layout.interleave(layout.repeat_heads(part("self_attn.k_proj"), size, times), size)
    value = layout.repeat_heads(part("self_attn.v_proj"), size, times)
    return layout.fuse_qkv(query, key, value, geometry.tp)


def _write_embedding(folder: Path, weights: Weights, geometry: Geometry, progress: Progress) -> None:
    with ExitStack() as open_files:
        files = [
            open_files.enter_context((folder / f"tok_embeddings.{rank}.weight").open("wb"))
            for rank in range(geometry.tp)
        ]
        for rows in _padded_rows(weights, EMBEDDING, geometry):
            for file, part in zip(files, layout.split_columns(rows, geometry.tp), strict=True):
                file.write(part.tobytes())
            progress(rows.nbytes)


def _write_output(folder: Path, weights: Weights, geometry: Geometry, progress: Progress) -> None:
    name = EMBEDDING if geometry.tied else OUTPUT
    bytes_by_rank = geometry.padded_rows // geometry.tp * geometry.hidden * 2
    with ExitStack() as open_files:
        files = [open_files.enter_context((folder / f"output.{rank}.weight").open("wb")) for rank in range(geometry.tp)]
        rank, room = 0, bytes_by_rank
        for rows in _padded_rows(weights, name, geometry):
            content = rows.data.cast("B")
            while content:
                part, content = content[:room], content[room:]
                files[rank].write(part)
                room -= len(part)
                if not room:
                    rank, room = rank + 1, bytes_by_rank
            progress(rows.nbytes)


def _padded_rows(weights: Weights, name: str, geometry: Geometry) -> Iterator[Bits]:
    """A [rows, hidden] matrix in blocks of whole rows, then the rows of zeros that pad it."""
    hidden = geometry.hidden
    step = max(1, BLOCK // hidden)
    for row in range(0, geometry.rows, step):
        end = min(row + step, geometry.rows)
        yield weights.read(name, row * hidden, end * hidden).reshape(-1, hidden)
    if missing := geometry.padded_rows - geometry.rows:
        yield np.zeros((missing, hidden), np.uint16)
