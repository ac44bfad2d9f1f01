"""Which rows of which tensors are the columns of every matrix of a TurboMind folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from export.turbomind.geometry import Geometry

EMBEDDING, FINAL_NORM, OUTPUT = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass(frozen=True)
class Run:
    """Rows start..stop of a Hugging Face tensor, as columns of a matrix of the engine."""

    tensor: str
    """Nothing where the columns are zero."""
    start: int
    stop: int
    head_size: int = 0
    """Rows of a head, whose rotary pairs are put next to each other; 0 leaves the rows in their order."""


@dataclass(frozen=True)
class Matrix:
    """A matrix [rows, columns] of the engine before it is cut: tensors transposed, side by side.

    A vector is a matrix with one row.
    """

    name: str
    """Of its files, without rank and ending."""
    rows: int
    """Those that the tensors do not have are zero."""
    runs: tuple[Run, ...]
    split: Literal["columns", "rows", "copies", "whole"]
    """Equal shares of the columns or of the rows by rank, a copy for each rank, or one file for all."""
    kind: str = "weight"
    """Of a file: `weight` or `bias`, or one of the three of a matrix in 4 bits."""

    @property
    def columns(self) -> int:
        return sum(run.stop - run.start for run in self.runs)

    def files(self, tp: int) -> list[str]:
        """Names by rank."""
        if self.split == "whole":
            return [f"{self.name}.{self.kind}"]
        return [f"{self.name}.{rank}.{self.kind}" for rank in range(tp)]

    def file_shape(self, tp: int) -> tuple[int, int]:
        """Rows and columns of each file."""
        match self.split:
            case "columns":
                return self.rows, self.columns // tp
            case "rows":
                return self.rows // tp, self.columns
            case _:
                return self.rows, self.columns


def matrices(geometry: Geometry) -> Iterator[Matrix]:
    """Every matrix but the embedding and the output, which are not transposed."""
    yield _vector("norm", FINAL_NORM, geometry.hidden)
    for layer in range(geometry.layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        yield _vector(f"{ours}.attention_norm", f"{theirs}.input_layernorm.weight", geometry.hidden)
        yield _vector(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm.weight", geometry.hidden)
        yield from _attention(geometry, f"{theirs}.self_attn", f"{ours}.attention")
        if geometry.experts:
            yield from _experts(geometry, f"{theirs}.block_sparse_moe", f"{ours}.moe_ffn")
        elif geometry.fused_mlp:
            fused, down = f"{theirs}.mlp.gate_up_proj", f"{theirs}.mlp.down_proj"
            yield from _mlp(geometry, f"{ours}.feed_forward", gate=(fused, 0), up=(fused, geometry.mlp), down=down)
        else:
            gate, up, down = (f"{theirs}.mlp.{part}_proj" for part in ("gate", "up", "down"))
            yield from _mlp(geometry, f"{ours}.feed_forward", gate=(gate, 0), up=(up, 0), down=down)


def bands(runs: Sequence[Run], limit: int) -> Iterator[list[Run]]:
    """The same rows in lists of about `limit` rows, cutting no head whose order changes."""
    band: list[Run] = []
    room = limit
    for run in runs:
        unit, start = run.head_size or 1, run.start
        while start < run.stop:
            if room < unit and band:
                yield band
                band, room = [], limit
            stop = min(run.stop, start + max(unit, room // unit * unit))
            band.append(replace(run, start=start, stop=stop))
            room -= stop - start
            start = stop
    if band:
        yield band


def _vector(name: str, tensor: str, size: int) -> Matrix:
    return Matrix(name, 1, (Run(tensor, 0, size),), "whole")


def _attention(geometry: Geometry, theirs: str, ours: str) -> Iterator[Matrix]:
    inner = geometry.heads * geometry.head_size
    yield Matrix(f"{ours}.w_qkv", geometry.hidden, _qkv(geometry, theirs, "weight"), "columns")
    yield Matrix(f"{ours}.wo", inner, (Run(f"{theirs}.o_proj.weight", 0, geometry.hidden),), "rows")
    if geometry.qkv_bias:  # the engine reads biases of both projections or of none
        yield Matrix(f"{ours}.w_qkv", 1, _qkv(geometry, theirs, "bias"), "columns", "bias")
        bias = f"{theirs}.o_proj.bias" if geometry.output_bias else ""
        yield Matrix(f"{ours}.wo", 1, (Run(bias, 0, geometry.hidden),), "copies", "bias")


def _qkv(geometry: Geometry, theirs: str, kind: str) -> tuple[Run, ...]:
    """By rank: its share of the query heads, then of the key heads, then of the value heads."""
    size, tp = geometry.head_size, geometry.tp
    rotary = size if geometry.interleaved else 0
    queries = geometry.heads // tp * size
    copies = [head for head in range(geometry.kv_heads) for _ in range(geometry.kv_repeat)]
    share = len(copies) // tp
    runs = []
    for rank in range(tp):
        runs.append(Run(f"{theirs}.q_proj.{kind}", rank * queries, (rank + 1) * queries, rotary))
        mine = copies[rank * share : (rank + 1) * share]
        for letter, order in (("k", rotary), ("v", 0)):
            runs += [Run(f"{theirs}.{letter}_proj.{kind}", h * size, (h + 1) * size, order) for h in mine]
    return tuple(runs)


def _experts(geometry: Geometry, theirs: str, ours: str) -> Iterator[Matrix]:
    yield Matrix(f"{ours}.gate", geometry.hidden, (Run(f"{theirs}.gate.weight", 0, geometry.experts),), "whole")
    for expert in range(geometry.experts):
        gate, down, up = (f"{theirs}.experts.{expert}.w{i}" for i in (1, 2, 3))
        yield from _mlp(geometry, f"{ours}.experts.{expert}", gate=(gate, 0), up=(up, 0), down=down)


def _mlp(geometry: Geometry, ours: str, *, gate: tuple[str, int], up: tuple[str, int], down: str) -> Iterator[Matrix]:
    """The three matrices of a dense MLP or of an expert; gate and up are a tensor and the first of their rows in it."""
    inner, padded = geometry.mlp, geometry.padded_mlp
    for file, (tensor, first) in (("w1", gate), ("w3", up)):
        rows = Run(f"{tensor}.weight", first, first + inner)
        zeros = (Run("", 0, padded - inner),) if padded > inner else ()
        yield Matrix(f"{ours}.{file}", geometry.hidden, (rows, *zeros), "columns")
    yield Matrix(f"{ours}.w2", padded, (Run(f"{down}.weight", 0, geometry.hidden),), "rows")
