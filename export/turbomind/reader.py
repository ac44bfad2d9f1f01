"""Reading a TurboMind folder back, from its files alone: the Hugging Face tensors and config they came from.

The sizes come from config.yaml, as they do for the engine, and a file of another length is an error, which the engine
would not notice. A tensor is read by rows, so that memory holds as many of them as the caller wants.
"""

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from export.cast import Bits, cast
from export.turbomind import layout
from export.turbomind.folder import CONFIG, WEIGHTS
from export.turbomind.geometry import GLM, MIXTRAL
from export.turbomind.matrices import EMBEDDING, FINAL_NORM, OUTPUT
from export.turbomind.packed import KINDS, unpack
from pipelines.errors import CheckError

TILE = 1 << 23
"""Numbers mapped at once."""
_MODEL_TYPES = {"MistralForCausalLM": "mistral", "Qwen2ForCausalLM": "qwen2", MIXTRAL: "mixtral", GLM: "glm"}
_ROPE_KEYS = {
    "llama3": ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("attention_factor", "beta_fast", "beta_slow"),
}


@dataclass(frozen=True)
class Stored:
    """Where a tensor [out, in] is: its rows are columns of files, or as they are in the embedding and the output."""

    files: tuple[str, ...]
    """By rank."""
    columns: int
    """Of each file, counted as the tensor is stored."""
    outputs: int
    """Rows of the tensor in each file."""
    inputs: int
    """Columns of the tensor in each file."""
    first: int = 0
    """The first column of the tensor's in each file."""
    along: Literal["out", "in", ""] = "out"
    """What the ranks have shares of: `out`, `in`, or nothing, as each has a copy."""
    head_size: int = 0
    """Rows whose order the engine has changed within each head."""
    transposed: bool = True
    group: int = 0
    """Inputs that share a scale, of 4-bit weights, of which there are three files where `files` says one."""

    @property
    def is_matrix(self) -> bool:
        """Whether it is one of those that are in 4 bits where any is."""
        return self.transposed and self.files[0].endswith(".0.weight")

    def of_kind(self, kind: str) -> "Stored":
        """One of the three: codes, eight outputs in a number, or scales or zeros, one for a group of inputs."""
        files = tuple(file.removesuffix("weight") + kind for file in self.files)
        if kind == "qweight":
            columns, outputs, first = self.columns // 8, self.outputs // 8, self.first // 8
            return replace(self, files=files, group=0, columns=columns, outputs=outputs, first=first)
        return replace(self, files=files, group=0, inputs=self.inputs // self.group)

    @property
    def shape(self) -> tuple[int, int]:
        ranks = len(self.files)
        return (
            self.outputs * (ranks if self.along == "out" else 1),
            self.inputs * (ranks if self.along == "in" else 1),
        )


class TurbomindReader:
    """An opened folder, whose files are all there and of the right length.

    Raises:
        CheckError: if a file is missing, too many or of the wrong length.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / WEIGHTS
        """Where the weight files are."""
        settings = yaml.safe_load((self.folder / CONFIG).read_bytes())
        self.model: dict[str, Any] = settings["model_config"]
        """The `model_config` map of config.yaml."""
        self.attention: dict[str, Any] = settings["attention_config"]
        """The `attention_config` map."""
        group = self.model["group_size"] if self.model["weight_type"] == "int4" else 0
        self.stored: dict[str, Stored] = {
            name: replace(one, group=group) if group and one.is_matrix else one for name, one in self._stored()
        }
        """Where every tensor is, under its Hugging Face name; a tied output is a tensor of its own."""
        self._check_files()

    def hf_config(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """A config.json for the tensors, from config.yaml alone but for what tensor parallelism changed.

        Args:
            shapes: of the tensors before heads were repeated and the MLP was padded.
        """
        model, attention = self.model, self.attention
        rope = {"rope_type": attention["rope_scaling_type"] or "default", "rope_theta": attention["rope_theta"]}
        if attention["rope_scaling_type"]:
            rope["factor"] = attention["rope_scaling_factor"]
            rope |= {key: attention[key] for key in _ROPE_KEYS.get(attention["rope_scaling_type"], ())}
        if attention["rotary_embedding"] != model["size_per_head"]:
            rope["partial_rotary_factor"] = attention["rotary_embedding"] / model["size_per_head"]
        kind = _MODEL_TYPES.get(model["model_arch"], "llama")
        if kind == "llama" and model["attn_bias"] and "model.layers.0.self_attn.o_proj.bias" not in shapes:
            kind = "qwen2"  # the one that has biases of queries, keys and values alone
        return {
            "model_type": kind,
            "architectures": [model["model_arch"]],
            "hidden_size": model["hidden_units"],
            "num_hidden_layers": model["num_layer"],
            "num_attention_heads": model["head_num"],
            "num_key_value_heads": shapes["model.layers.0.self_attn.k_proj.weight"][0] // model["size_per_head"],
            "head_dim": model["size_per_head"],
            "intermediate_size": next(shapes[name][1] for name in shapes if name.endswith(self._down())),
            "vocab_size": model["vocab_size"],
            "rms_norm_eps": model["norm_eps"],
            "max_position_embeddings": attention["max_position_embeddings"],
            "attention_bias": bool(model["attn_bias"]),
            "rope_parameters": rope,
            "sliding_window": None,
            "pad_token_id": None,
            "tie_word_embeddings": OUTPUT not in shapes,
        } | self._experts_of_config()

    def rows(self, name: str, start: int, stop: int) -> Bits:
        """Rows start..stop of a tensor, as it is stored: with repeated heads and padding; a vector has one column.

        Raises:
            CheckError: if ranks that have a copy each have different ones.
        """
        stored = self.stored[name]
        unit = stored.head_size or (8 if stored.group else 1)
        first, last = start // unit * unit, -(-stop // unit) * unit
        if stored.along == "":
            self._refuse_other_copies(name, first, last)
        result = self._unpacked(stored, first, last) if stored.group else self._gathered(stored, first, last)
        if stored.head_size:
            result = layout.deinterleave(result, stored.head_size)
        return result[start - first : stop - first]

    def tensor(self, name: str) -> Bits:
        """A whole tensor, as it is stored."""
        return self.rows(name, 0, self.stored[name].shape[0])

    def _gathered(self, stored: Stored, first: int, last: int, dtype: type[np.unsignedinteger] = np.uint16) -> Bits:
        """Rows first..last of all ranks."""
        result = np.empty((last - first, stored.shape[1]), dtype)
        for rank, file in enumerate(stored.files if stored.along else stored.files[:1]):
            offset = rank * stored.outputs if stored.along == "out" else 0
            begin, end = max(first - offset, 0), min(last - offset, stored.outputs)
            if begin < end:
                left = rank * stored.inputs if stored.along == "in" else 0
                part = result[begin + offset - first : end + offset - first, left : left + stored.inputs]
                self._read(stored, file, begin, part)
        return result

    def _unpacked(self, stored: Stored, first: int, last: int) -> Bits:
        """Rows first..last of a matrix in 4 bits, as the numbers that they stand for in float16."""
        codes = unpack(self._gathered(stored.of_kind("qweight"), first // 8, last // 8, np.uint32))
        zeros, scales = (
            self._gathered(stored.of_kind(kind), first, last).view(np.float16) for kind in ("zeros", "scales")
        )
        numbers = codes.astype(np.float32)
        groups = numbers.reshape(len(codes), -1, stored.group)
        groups -= zeros.astype(np.float32)[:, :, None]
        groups *= scales.astype(np.float32)[:, :, None]
        return cast(numbers.reshape(-1), "float16").reshape(codes.shape)

    def _refuse_other_copies(self, name: str, first: int, last: int) -> None:
        stored = self.stored[name]
        copies = np.empty((len(stored.files), last - first, stored.inputs), np.uint16)
        for file, copy in zip(stored.files, copies, strict=True):
            self._read(stored, file, first, copy)
        if not (copies == copies[:1]).all():
            raise CheckError(f"{self.folder}: the ranks' copies of {name} differ; export again")

    def _read(self, stored: Stored, file: str, begin: int, part: Bits) -> None:
        """Fill `part` with the rows from `begin` on of the share of a tensor that a file has."""
        height = stored.inputs if stored.transposed else stored.outputs
        with (self.folder / file).open("rb") as opened:
            if stored.transposed:
                columns = slice(stored.first + begin, stored.first + begin + len(part))
                for top, tile in _tiles(opened.fileno(), 0, height, stored.columns, part.dtype):
                    layout.transpose(tile[:, columns], part[:, top : top + len(tile)])
            else:
                for top, tile in _tiles(opened.fileno(), begin, begin + len(part), stored.columns, part.dtype):
                    part[top - begin : top - begin + len(tile)] = tile

    def _experts_of_config(self) -> dict[str, int]:
        if not self.model["expert_num"]:
            return {}
        return {
            "num_local_experts": self.model["expert_num"][0],
            "num_experts_per_tok": self.model["experts_per_token"],
        }

    def _down(self) -> str:
        return ".experts.0.w2.weight" if self.model["expert_num"] else ".mlp.down_proj.weight"

    def _ranks(self, name: str, kind: str = "weight") -> tuple[str, ...]:
        return tuple(f"{name}.{rank}.{kind}" for rank in range(self.model["tp"]))

    def _stored(self) -> Iterator[tuple[str, Stored]]:
        model = self.model
        hidden, tp, rows = model["hidden_units"], model["tp"], model["embedding_size"]
        padded, share = -(-rows // tp) * tp, hidden // tp
        yield EMBEDDING, Stored(self._ranks("tok_embeddings"), share, padded, share, along="in", transposed=False)
        yield OUTPUT, Stored(self._ranks("output"), hidden, padded // tp, hidden, transposed=False)
        yield FINAL_NORM, Stored(("norm.weight",), hidden, hidden, 1)
        for layer in range(model["num_layer"]):
            theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
            for norm, name in (("attention_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
                yield f"{theirs}.{name}.weight", Stored((f"{ours}.{norm}.weight",), hidden, hidden, 1)
            yield from self._attention(f"{theirs}.self_attn", f"{ours}.attention")
            if model["expert_num"]:
                yield from self._experts(f"{theirs}.block_sparse_moe", f"{ours}.moe_ffn", model["expert_num"][layer])
            else:
                yield from self._mlp(f"{theirs}.mlp", f"{ours}.feed_forward", model["inter_size"][layer])

    def _attention(self, theirs: str, ours: str) -> Iterator[tuple[str, Stored]]:
        model = self.model
        hidden, size, tp = model["hidden_units"], model["size_per_head"], model["tp"]
        query, kv = model["head_num"] * size // tp, model["kv_head_num"] * size // tp
        order = 0 if model["model_arch"] == GLM else size
        for kind, inputs in (("weight", hidden), ("bias", 1))[: 1 + model["attn_bias"]]:
            files, columns = self._ranks(f"{ours}.w_qkv", kind), query + 2 * kv
            yield f"{theirs}.q_proj.{kind}", Stored(files, columns, query, inputs, 0, head_size=order)
            yield f"{theirs}.k_proj.{kind}", Stored(files, columns, kv, inputs, query, head_size=order)
            yield f"{theirs}.v_proj.{kind}", Stored(files, columns, kv, inputs, query + kv)
        yield f"{theirs}.o_proj.weight", Stored(self._ranks(f"{ours}.wo"), hidden, hidden, query, along="in")
        if model["attn_bias"]:
            yield f"{theirs}.o_proj.bias", Stored(self._ranks(f"{ours}.wo", "bias"), hidden, hidden, 1, along="")

    def _mlp(self, theirs: str, ours: str, inner: int) -> Iterator[tuple[str, Stored]]:
        hidden, share = self.model["hidden_units"], inner // self.model["tp"]
        for file, part in (("w1", "gate_proj"), ("w3", "up_proj")):
            yield f"{theirs}.{part}.weight", Stored(self._ranks(f"{ours}.{file}"), share, share, hidden)
        yield f"{theirs}.down_proj.weight", Stored(self._ranks(f"{ours}.w2"), hidden, hidden, share, along="in")

    def _experts(self, theirs: str, ours: str, experts: int) -> Iterator[tuple[str, Stored]]:
        hidden, share = self.model["hidden_units"], self.model["expert_inter_size"] // self.model["tp"]
        yield f"{theirs}.gate.weight", Stored((f"{ours}.gate.weight",), experts, experts, hidden)
        for expert in range(experts):
            name, files = f"{theirs}.experts.{expert}", f"{ours}.experts.{expert}"
            for file in ("w1", "w3"):
                yield f"{name}.{file}.weight", Stored(self._ranks(f"{files}.{file}"), share, share, hidden)
            yield f"{name}.w2.weight", Stored(self._ranks(f"{files}.w2"), hidden, hidden, share, along="in")

    def _check_files(self) -> None:
        expected = {CONFIG: (self.folder / CONFIG).stat().st_size}
        for stored in self.stored.values():
            for one, width in _kinds(stored):
                height = one.inputs if one.transposed else one.outputs
                expected |= dict.fromkeys(one.files, height * one.columns * width)
        for name, size in expected.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
                raise CheckError(f"{path}: {found}, config.yaml implies {size} bytes; export again")
        extra = sorted({path.name for path in self.folder.iterdir()} - expected.keys())
        if extra:
            raise CheckError(f"{self.folder / extra[0]}: no weight of this model; export again")


def _kinds(stored: Stored) -> list[tuple[Stored, int]]:
    """The files of a tensor, and the bytes of a number in them."""
    if not stored.group:
        return [(stored, 2)]
    return [(stored.of_kind(kind), 4 if kind == "qweight" else 2) for kind in KINDS]


def _tiles(file: int, begin: int, end: int, columns: int, dtype: np.dtype[Any]) -> Iterator[tuple[int, Bits]]:
    """Rows begin..end of a file of rows of `columns` numbers, a few at a time, each with the number of its first.

    They are mapped, which finds the numbers of a column in one sweep, until the caller takes the next.
    """
    step = max(1, TILE // columns)
    for row in range(begin, end, step):
        rows = min(step, end - row)
        start = row * columns * dtype.itemsize
        offset = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        size = rows * columns * dtype.itemsize
        mapped = mmap.mmap(file, start - offset + size, offset=offset, access=mmap.ACCESS_READ)
        yield row, np.frombuffer(mapped, dtype, rows * columns, start - offset).reshape(rows, columns)
