"""`packtrain export to-internevo`: a Hugging Face directory as a checkpoint for InternEvo's ranks and stages."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open

from export.cast import Bits
from export.destination import refuse_foreign_files, staged
from export.internevo.importer import RECORD, InternEvoWeights, bits, plain
from export.internevo.layout import NORM, OUTPUT, Kind, Part, Rows, Sizes, Whole, parts, wholes
from export.internevo.reader import CONFIG, InternEvoCheckpoint, rank_file
from export.weights import BLOCK
from pipelines.artifacts import FileRecord, Json, Manifest, digest_file, exclusive_name, identity
from pipelines.errors import CheckError, ConfigError, DataError
from pipelines.progress import progress_bar

log = logging.getLogger(__name__)

VERSION = 1
"""Raised whenever the same model gives other bytes."""
_MULTIPLE = 256  # InternEvo rounds the inner size of its MLP up to a multiple of it
_MODEL_TYPES: dict[str, Kind] = {"internlm2": "internlm2", "llama": "llama"}


@dataclass(frozen=True)
class Cut:
    """How a checkpoint is to be cut and written."""

    kind: Kind
    tp: int
    pp: int
    adapt_hf: bool
    split_hidden: bool
    prefix: str
    """Of names in the files; models in training have `model.` from the wrapper around them."""


def to_internevo(
    source: Path,
    out: Path,
    *,
    tp: int | None = None,
    pp: int | None = None,
    adapt_hf: bool | None = None,
    kind: Kind | None = None,
) -> Json:
    """Write model_config.pt and a file for every tensor rank and pipeline stage; does nothing when `out` is current.

    What is not asked for is as it was in the checkpoint that `source` was imported from, or else one rank, one stage
    and adapt_hf. Memory holds a block of a tensor at a time; the disk has room for one rank's file twice.

    Args:
        source: a Hugging Face directory of a Llama or an InternLM2, with safetensors.
        out: new, empty, or what an earlier call wrote.
        tp, pp: tensor ranks and pipeline stages.
        adapt_hf: order of rows in query and key heads that model.adapt_hf of InternEvo's config will name.
        kind: InternEvo's model type.
    Returns:
        The manifest's facts.
    Raises:
        DataError: if `source` is incomplete.
        ConfigError: if InternEvo has no such model, it cannot be cut so, or `out` holds anything else.
        CheckError: if what was written differs.
        BusyError: if another process writes there.
    """
    with exclusive_name(out):
        return _export(source, out, tp=tp, pp=pp, adapt_hf=adapt_hf, kind=kind)


def _export(
    source: Path, out: Path, *, tp: int | None, pp: int | None, adapt_hf: bool | None, kind: Kind | None
) -> Json:
    refuse_foreign_files(out)
    model = _Model(source)
    cut = _cut(model, tp=tp, pp=pp, adapt_hf=adapt_hf, kind=kind)
    whole = wholes(cut.kind, model.sizes, split_hidden=cut.split_hidden)
    _refuse_cut(model.sizes, whole, cut)
    placed = parts(cut.kind, model.layout, whole, model.sizes, adapt_hf=cut.adapt_hf)
    model.compare(placed, whole)
    settings = _model_config(model, cut)
    read = [{"path": path.name, "sha256": digest_file(path)} for path in model.files]
    stage = identity("to-internevo", VERSION, read, vars(cut), plain(settings))
    done = Manifest.read(out)
    if done is not None and done.identity == stage:
        done.verify(out, hashes=False)
        log.info("export to-internevo: nothing to do, %s is current", out)
        return dict(done.facts)
    facts = {**vars(cut), "read": read, "tensors": len(whole)}
    pieces: dict[str, list[tuple[str, Part]]] = {name: [] for name in whole}
    for name, place in placed.items():
        pieces[place.whole].append((name, place))
    total = sum(model.nbytes(name) for name in placed)
    with staged(out, total + total // (cut.tp * cut.pp)) as folder:  # one rank's numbers lie there twice
        with progress_bar("writing internevo", total, "B") as progress:
            for stage_number, local in enumerate(_stages(whole, model.sizes.layers, cut.pp)):
                for rank in range(cut.tp):
                    part = _Rank(model, whole, pieces, rank, cut)
                    part.write(folder / rank_file(rank, stage_number), local, progress)
        torch.save(settings, folder / CONFIG)
        _compare(model, folder, adapt_hf=cut.adapt_hf)
        records = [FileRecord.of(folder, path) for path in sorted(folder.iterdir())]
        Manifest("internevo", VERSION, stage, {}, records, facts).write(folder)
    return facts


def summary(facts: Json) -> str:
    """What was written, for a person."""
    kind = "INTERNLM2_PUBLIC" if facts["kind"] == "internlm2" else "LLAMA2"
    return (
        f"{facts['tensors']} tensors as InternEvo's {kind}, for {facts['tp']} tensor ranks x {facts['pp']} stages\n"
        f"set model.adapt_hf = {facts['adapt_hf']} and model.embed_split_hidden = {facts['split_hidden']} there, and "
        'load it with content=("model",)'
    )


class _Model:
    """A Hugging Face directory, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "config.json"
        if not path.is_file():
            raise DataError(f"{path}: missing; name a Hugging Face directory")
        self.config: dict[str, Any] = _read_json(path)
        self.record: dict[str, Any] = _read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
        self.weights = sorted(folder.glob("*.safetensors"))
        if not self.weights:
            raise DataError(f"{folder}: holds no safetensors; name a Hugging Face directory that has them")
        self.tensors: dict[str, torch.Tensor] = {}
        for file in self.weights:
            with safe_open(file, framework="pt") as opened:
                self.tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        self.layout = self._layout()
        self.sizes = self._sizes()

    @property
    def files(self) -> list[Path]:
        return [self.folder / "config.json", *self.weights]

    def nbytes(self, name: str) -> int:
        return self.tensors[name].numel() * self.tensors[name].element_size()

    def compare(self, placed: Mapping[str, Part], whole: Mapping[str, Whole]) -> None:
        """Make sure that its tensors are those of its config.json."""
        held = {name for name in self.tensors if not name.endswith(".inv_freq")}
        for name in sorted(held ^ placed.keys())[:1]:
            finding = "has no place in InternEvo's model" if name in held else "is in none of its files"
            raise DataError(f"{self.folder}: {name} {finding}; only plain Llama and InternLM2 models are written")
        for name, part in placed.items():
            expected = (len(part.rows), *whole[part.whole].shape[1:])
            if tuple(self.tensors[name].shape) != expected:
                raise DataError(
                    f"{self.folder}: {name} is {list(self.tensors[name].shape)}, its config.json asks for "
                    f"{list(expected)}; download the model again"
                )

    def _layout(self) -> Kind:
        found = _MODEL_TYPES.get(self.config.get("model_type", ""))
        if found is None:
            raise ConfigError(
                f"{self.folder / 'config.json'}: model_type {self.config.get('model_type')!r}: InternEvo checkpoints "
                "are written of llama and internlm2"
            )
        return found

    def _sizes(self) -> Sizes:
        where, config = self.folder / "config.json", self.config
        try:
            sizes = Sizes(
                layers=int(config["num_hidden_layers"]),
                hidden=int(config["hidden_size"]),
                heads=int(config["num_attention_heads"]),
                kv_heads=int(config.get("num_key_value_heads") or config["num_attention_heads"]),
                rows=int(config["vocab_size"]),
                mlp=int(config["intermediate_size"]),
                bias=bool(config.get("bias" if self.layout == "internlm2" else "attention_bias", False)),
            )
        except KeyError as error:
            raise DataError(f"{where}: {error.args[0]} is missing; download the model again") from error
        wrong = {
            "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
            "mlp_bias": bool(config.get("mlp_bias", False)),
            "head_dim": config.get("head_dim") not in (None, sizes.head),
            "hidden_act": config.get("hidden_act", "silu") != "silu",
        }
        for key in (key for key, found in wrong.items() if found):
            raise ConfigError(f"{where}: {key} = {json.dumps(config[key])}: InternEvo's models have no counterpart")
        return sizes


class _Rank:
    """One tensor rank's part of every tensor."""

    def __init__(
        self,
        model: _Model,
        whole: Mapping[str, Whole],
        pieces: Mapping[str, list[tuple[str, Part]]],
        rank: int,
        cut: Cut,
    ) -> None:
        self.model, self.whole, self.pieces, self.rank, self.cut = model, whole, pieces, rank, cut

    def write(self, path: Path, local: Mapping[str, str], progress: Any) -> None:
        """Write one file.

        Args:
            local: name in the file by name in the whole model.
        """
        # torch.save takes tensors that exist: their numbers go to a file first, which is mapped and not held.
        raw = path.with_suffix(".raw")
        state: dict[str, torch.Tensor] = {}
        offset = 0
        with raw.open("wb") as file:
            for name in local:
                for block in self._blocks(name):
                    file.write(np.ascontiguousarray(block).data)
                    progress(block.nbytes)
        for name, stored in local.items():
            dtype = self.model.tensors[self.pieces[name][0][0]].dtype
            shape = self.whole[name].shard(self.cut.tp)
            numbers = np.memmap(raw, np.uint16 if dtype.itemsize == 2 else np.uint32, "c", offset, shape)
            state[self.cut.prefix + stored] = torch.from_numpy(numbers).view(dtype)
            offset += numbers.nbytes
        torch.save(state, path)
        state.clear()
        raw.unlink()

    def _blocks(self, name: str) -> Iterator[Bits]:
        whole = self.whole[name]
        shape = whole.shard(self.cut.tp)
        first = self.rank * shape[0] if whole.axis == 0 else 0
        columns = slice(self.rank * shape[1], (self.rank + 1) * shape[1]) if whole.axis == 1 else slice(None)
        owner, row = self._sources(name)
        step = max(BLOCK // int(np.prod(whole.shape[1:], dtype=np.int64)), 1)
        for start in range(first, first + shape[0], step):
            stop = min(start + step, first + shape[0])
            yield self._rows(name, owner[start:stop], row[start:stop], columns)

    def _sources(self, name: str) -> tuple[Rows, Rows]:
        """Of every row of the whole: which of its pieces holds it, and at which row."""
        owner = np.empty(self.whole[name].shape[0], np.int64)
        row = np.empty_like(owner)
        for number, (_, part) in enumerate(self.pieces[name]):
            owner[part.rows], row[part.rows] = number, np.arange(len(part.rows))
        return owner, row

    def _rows(self, name: str, owner: Rows, row: Rows, columns: slice) -> Bits:
        pieces = [bits(self.model.tensors[piece]) for piece, _ in self.pieces[name]]
        held = pieces[0][:0, columns] if pieces[0].ndim == 2 else pieces[0][:0]
        found = np.empty((len(row), *held.shape[1:]), held.dtype)
        for number in np.unique(owner):
            here = owner == number
            taken = pieces[number][row[here]]
            found[here] = taken[:, columns] if taken.ndim == 2 else taken
        return found


def _compare(model: _Model, folder: Path, *, adapt_hf: bool) -> None:
    """Read the checkpoint back as an import does, and compare every number."""
    weights = InternEvoWeights(InternEvoCheckpoint(folder), model.layout, adapt_hf=adapt_hf)
    for name in weights.shapes:
        expected = bits(model.tensors[name]).reshape(-1)
        for start in range(0, expected.size, BLOCK):
            stop = min(start + BLOCK, expected.size)
            if not np.array_equal(weights.read(name, start, stop), expected[start:stop]):
                raise CheckError(f"{folder}: {name} differs from {model.folder}; write it again")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); write it again") from error


def _cut(model: _Model, *, tp: int | None, pp: int | None, adapt_hf: bool | None, kind: Kind | None) -> Cut:
    record = model.record
    kind = kind or cast(Kind, record.get("kind", model.layout))
    if kind == "llama" and model.layout == "internlm2":
        raise ConfigError("--type llama: the directory has InternLM2's names; leave it out")
    return Cut(
        kind=kind,
        tp=tp or record.get("tp", 1),
        pp=pp or record.get("pp", 1),
        adapt_hf=record.get("adapt_hf", True) if adapt_hf is None else adapt_hf,
        split_hidden=record.get("split_hidden", True),
        prefix=record.get("prefix", "model."),
    )


def _refuse_cut(sizes: Sizes, whole: Mapping[str, Whole], cut: Cut) -> None:
    if sizes.kv_heads % cut.tp:
        raise ConfigError(
            f"--tp {cut.tp}: does not divide {sizes.kv_heads} key-value heads; every rank holds whole ones"
        )
    for name, tensor in whole.items():
        if tensor.axis is not None and tensor.shape[tensor.axis] % cut.tp:
            raise ConfigError(
                f"--tp {cut.tp}: does not divide {tensor.shape[tensor.axis]}, the size {name} is cut along"
            )
    if sizes.layers < cut.pp:
        raise ConfigError(f"--pp {cut.pp}: the model has {sizes.layers} layers; use as many stages at most")


def _stages(whole: Mapping[str, Whole], layers: int, pp: int) -> list[dict[str, str]]:
    """Of each stage, names in its file by names in the whole model; surplus layers go one each to the last stages."""
    counts = [layers // pp + (stage >= pp - layers % pp) for stage in range(pp)]
    found: list[dict[str, str]] = [{} for _ in range(pp)]
    for name in whole:
        if layer := re.fullmatch(r"layers\.(\d+)\.(.+)", name):
            number, stage = int(layer[1]), 0
            while number >= counts[stage]:
                number, stage = number - counts[stage], stage + 1
            found[stage][name] = f"layers.{number}.{layer[2]}"
        else:
            found[-1 if name in (NORM, OUTPUT) else 0][name] = name
    return found


def _model_config(model: _Model, cut: Cut) -> dict[str, Any]:
    sizes, config, where = model.sizes, model.config, model.folder / "config.json"
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    scaling = config.get("rope_scaling") or rope
    scaled = scaling.get("rope_type", scaling.get("type", "default"))
    if scaled not in ("default", "dynamic") or (scaled == "dynamic" and scaling.get("factor") != 1.0):
        raise ConfigError(
            f"{where}: positions scaled by {scaled!r} are not what InternEvo computes; it has no such key"
        )
    settings = {key: _restored(value) for key, value in model.record.get("model_config", {}).items()}
    now: dict[str, Any] = {
        "adapt_hf": cut.adapt_hf,
        "embed_split_hidden": cut.split_hidden,
        "hidden_size": sizes.hidden,
        "layer_norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "max_position_embeddings": config.get("max_position_embeddings", 2048),
        "no_bias": not sizes.bias,
        "num_attention_heads": sizes.heads,
        "num_chunks": 1,
        "num_kv_attention_heads": sizes.kv_heads,
        "num_layers": sizes.layers,
        "rope_base": rope["rope_theta"],
        "use_dynamic_ntk_rope": scaled == "dynamic",
        "vocab_size": sizes.rows,
    }
    # What the checkpoint left to InternEvo's defaults stays so.
    imported = bool(model.record)
    for key, value in now.items():
        if (key in settings or not imported) and settings.get(key) != value:
            settings[key] = value
    if not imported:
        settings |= {"dtype": model.tensors[_output(model)].dtype, "mlp_ratio": _mlp_ratio(sizes, where)}
        settings |= {"norm_head": False, "norm_type": "rmsnorm"}
    return settings


def _output(model: _Model) -> str:
    return OUTPUT if model.layout == "internlm2" else "lm_head.weight"


def _mlp_ratio(sizes: Sizes, where: Path) -> float:
    """The ratio from which InternEvo computes the inner size of the MLP."""
    if sizes.mlp % _MULTIPLE:
        raise ConfigError(
            f"{where}: intermediate_size = {sizes.mlp} is no multiple of {_MULTIPLE}, which InternEvo rounds it up to"
        )
    ratio = sizes.mlp / sizes.hidden
    return ratio if int(sizes.hidden * ratio) <= sizes.mlp else (sizes.mlp - 0.5) / sizes.hidden


def _restored(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"torch"}:
        found = getattr(torch, value["torch"])  # a number format, by its name
        assert isinstance(found, torch.dtype)
        return found
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    return value
