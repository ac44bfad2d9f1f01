"""An InternEvo checkpoint folder: its files found, read without running any code in them, and compared.

Files are memory-mapped, so tensors cost memory only where they are used.
"""

import math
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch

from export.cast import Dtype
from export.internevo.layout import NORM, OUTPUT, SPLIT_HIDDEN, SPLIT_VOCABULARY, Kind, Sizes, Whole, wholes
from pipelines.errors import DataError
from pipelines.toml_text import on_one_line, spell_value

CONFIG = "model_config.pt"
_CONFIG_CLASS = "internlm.core.context.parallel_context.Config"  # a dict with attributes
_RANK = re.compile(r"model_tp(\d+)_pp(\d+)\.pt")
_CHUNK = re.compile(r"(\d{1,6})\.(.+)")
_LAYER = re.compile(r"layers\.(\d{1,6})\.(.+)")
_REFUSED = {
    r"model_moe_layer\d+_expert\d+_.*\.pt": "holds experts in files of their own",
    r"model_(tp\d+_)?wp\d+_pp\d+\.pt": "is cut over weight-parallel ranks (ISP)",
    r"model_tp\d+_pp\d+_(dp|zo)\d+\.pt": "is cut over FSDP ranks",
}
_TRAINER_STATE = re.compile(r"(optimizer_.*|context|sche?dulde?r)\.pt")
_DEEPEST, _MOST_SETTINGS = 20, 100_000  # tables and lists around a setting; settings in all
_HALF = re.compile(r"[\ud800-\udfff]")  # of a surrogate pair, which pickles can hold and JSON cannot
_DTYPES: dict[torch.dtype, Dtype] = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
}

State = dict[str, torch.Tensor]


class InternEvoCheckpoint:
    """The tensors of all ranks and stages, by name with layers counted over all stages.

    Raises:
        DataError: if files are missing, unsafe or at odds with each other, or of a kind that is not read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tp, self.pp = _grid(folder)
        self.config = _config(folder)
        stages = [[_state(folder / rank_file(rank, stage)) for rank in range(self.tp)] for stage in range(self.pp)]
        self.prefix = "model." if all(name.startswith("model.") for name in stages[0][0]) else ""
        """Of names in the files."""
        self.shards = _joined(folder, stages)
        """[tp] tensors of every name, by rank."""
        self.kind = _kind(folder, self.shards)
        self.split_hidden = SPLIT_HIDDEN in self.shards
        self.sizes = self._sizes()
        self._compare_layers()  # before anything is made for as many as the settings say
        self.wholes = wholes(self.kind, self.sizes, split_hidden=self.split_hidden)
        self._compare()

    @property
    def files(self) -> list[Path]:
        """What is read of the folder, in order."""
        ranks = [rank_file(rank, stage) for stage in range(self.pp) for rank in range(self.tp)]
        return [self.folder / name for name in (CONFIG, *ranks)]

    def setting(self, key: str, default: Any = None) -> Any:
        """A key of model_config.pt."""
        value = self.config.get(key, default)
        if value is None:
            raise DataError(f"{self.folder / CONFIG}: {key} is missing; save the checkpoint again with InternEvo")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """A setting that is a whole number from 1 on."""
        value = self.setting(key, default)
        if type(value) is not int or not 1 <= value < 1 << 63:
            raise self._odd(key, value, "a whole number from 1 on")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A setting that is a number."""
        value = self.setting(key, default)
        if type(value) not in (int, float) or not abs(value) < 1e300:
            raise self._odd(key, value, "a number")
        return float(value)

    def flag(self, key: str) -> bool | None:
        """A setting that is true or false; None where it is not there."""
        value = self.config.get(key)
        if value is not None and type(value) not in (bool, int):
            raise self._odd(key, value, "true or false")
        return None if value is None else bool(value)

    def _odd(self, key: str, value: Any, expected: str) -> DataError:
        found = spell_value(value) if isinstance(value, bool | int | float | str) else type(value).__name__
        return DataError(
            f"{self.folder / CONFIG}: {key} = {found}: expected {expected}; the file is not of these weights"
        )

    def dtype(self, name: str) -> Dtype:
        """Number format of a tensor."""
        return _DTYPES[self.shards[name][0].dtype]

    def _sizes(self) -> Sizes:
        heads = self.whole("num_attention_heads")
        sizes = Sizes(
            layers=self.whole("num_layers"),
            hidden=self.whole("hidden_size"),
            heads=heads,
            kv_heads=self.whole("num_kv_attention_heads") if self.config.get("num_kv_attention_heads") else heads,
            rows=self.whole("vocab_size"),
            mlp=self._mlp(),
            bias=any(name.endswith(".bias") for name in self.shards),
        )
        where = self.folder / CONFIG
        if sizes.hidden % sizes.heads or sizes.heads % sizes.kv_heads:
            raise DataError(
                f"{where}: {sizes.heads} attention heads of which {sizes.kv_heads} hold keys and values do not divide "
                f"hidden_size = {sizes.hidden}; the file is not of these weights"
            )
        if self.config.get("head_dim") is not None and self.whole("head_dim") != sizes.head:
            raise DataError(
                f"{where}: head_dim = {self.config['head_dim']} is not hidden_size / num_attention_heads, which "
                "is not read"
            )
        if self.setting("norm_type", "rmsnorm") != "rmsnorm":
            raise DataError(
                f"{where}: norm_type = {self.config['norm_type']!r}: only rmsnorm has a Hugging Face counterpart here"
            )
        return sizes

    def _mlp(self) -> int:
        name = "layers.0.feed_forward.w1.weight"
        if name not in self.shards:
            raise DataError(f"{self.folder}: {name} is missing; the checkpoint is not of an InternLM2 or Llama type")
        first = self.shards[name][0]
        if first.dim() != 2:
            raise DataError(
                f"{self.folder}: {name} is {list(first.shape)}, no matrix; the files are not of these weights"
            )
        return int(first.shape[0]) * self.tp

    def _compare(self) -> None:
        self._compare_names()
        for name, whole in self.wholes.items():
            self._compare_shards(name, whole)

    def _compare_layers(self) -> None:
        layers = {int(found[1]) for name in self.shards if (found := _LAYER.fullmatch(name))}
        if len(layers) != self.sizes.layers:
            raise DataError(
                f"{self.folder}: its files hold {len(layers)} layers, {CONFIG} says num_layers = {self.sizes.layers}; "
                "one of them is of another run"
            )

    def _compare_names(self) -> None:
        for name in sorted(self.wholes.keys() - self.shards.keys())[:1]:
            raise DataError(f"{self.folder}: {name} is in none of its files; save the checkpoint again")
        for name in sorted(self.shards.keys() - self.wholes.keys())[:1]:
            raise DataError(f"{self.folder}: {name} has no place in a {self.kind} model; this variant is not read")

    def _compare_shards(self, name: str, whole: Whole) -> None:
        shards, expected = self.shards[name], whole.shard(self.tp)
        for rank, shard in enumerate(shards):
            where = f"{self.folder}: {name} of tensor rank {rank}"
            cut = whole.axis is None or whole.shape[whole.axis] % self.tp == 0
            if not cut or tuple(shard.shape) != expected:
                raise DataError(
                    f"{where} is {list(shard.shape)}, a part of {list(whole.shape)} over {self.tp} ranks is "
                    f"{list(expected) if cut else 'impossible'}; files of another tensor-parallel size, or another "
                    f"{CONFIG}, lie here"
                )
            if shard.dtype not in _DTYPES or shard.dtype != shards[0].dtype:
                raise DataError(f"{where} is {shard.dtype}, rank 0 has {shards[0].dtype}; the files are not of one run")
            if whole.axis is None and not torch.equal(_bits(shard), _bits(shards[0])):
                raise DataError(
                    f"{where} differs from rank 0's, and all ranks have to hold the same; the files are not of one step"
                )


def rank_file(rank: int, stage: int) -> str:
    """Name of the file of a tensor rank and a pipeline stage."""
    return f"model_tp{rank}_pp{stage}.pt"


def load(path: Path) -> Any:
    """What torch.save wrote to `path`, memory-mapped; nothing but tensors and plain values is ever made of it.

    Raises:
        DataError: if it is damaged or asks for more.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not a file that torch.save wrote, or cut short; copy it again")
    try:
        with torch.serialization.safe_globals([(OrderedDict, _CONFIG_CLASS)]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle raises anything
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        finding = f"asks for {asked[1]}, which is code and is not run" if asked else "cannot be read"
        raise DataError(
            f"{path}: {finding}; only tensors and plain values belong there, take it from who made it again"
        ) from error


def _grid(folder: Path) -> tuple[int, int]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name a step's folder with {rank_file(0, 0)}")
    names = sorted(path.name for path in folder.iterdir())
    for pattern, finding in _REFUSED.items():
        if other := next((name for name in names if re.fullmatch(pattern, name)), None):
            raise DataError(f"{folder / other}: the checkpoint {finding}, which is not read")
    ranks = [(int(found[1]), int(found[2])) for name in names if (found := _RANK.fullmatch(name))]
    if not ranks:
        below = sorted(path.parent.name for path in folder.glob(f"*/{rank_file(0, 0)}"))
        raise DataError(
            f"{folder}: holds no model_tp*_pp*.pt; name a step's folder"
            + (f", such as {folder / below[-1]}" if below else "")
        )
    tp, pp = max(rank for rank, _ in ranks) + 1, max(stage for _, stage in ranks) + 1
    for stage in range(pp):
        for rank in range(tp):
            if (rank, stage) not in ranks:
                raise DataError(
                    f"{folder / rank_file(rank, stage)}: missing, the other files are of {tp} tensor ranks and {pp} "
                    "pipeline stages; copy it as well"
                )
    if any(_TRAINER_STATE.fullmatch(name) for name in names) and not any(name.endswith(".step") for name in names):
        raise DataError(f"{folder}: has no .step file, so InternEvo was stopped while saving; take an earlier step")
    return tp, pp


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise DataError(f"{path}: missing, and without it nothing says how many heads there are; copy it as well")
    config = load(path)
    if not isinstance(config, Mapping):
        raise DataError(f"{path}: holds a {type(config).__name__}, not the settings of a model; copy it again")
    _refuse_odd_settings(path, config)
    return dict(config)


def _refuse_odd_settings(path: Path, config: Mapping[Any, Any]) -> None:
    """Take what JSON can say and what ends: pickles hold tensors, lists within themselves, and texts that are none."""
    if not all(isinstance(key, str) for key in config):
        raise DataError(f"{path}: holds settings without a name; take it from who made it again")
    left = [(key, one, 0) for key, value in config.items() for one in (key, value)]
    for number in count():
        if not left:
            return
        key, value, depth = left.pop()
        if isinstance(value, dict | list | tuple):
            left += [(key, one, depth + 1) for one in ([*value, *value.values()] if isinstance(value, dict) else value)]
        odd = (isinstance(value, float) and not math.isfinite(value)) or isinstance(value, torch.Tensor)
        odd = odd or (isinstance(value, str) and _HALF.search(value) is not None)
        if odd or depth > _DEEPEST or number > _MOST_SETTINGS:
            raise DataError(
                f"{path}: {on_one_line(key)} holds what no setting of a model is; take it from who made it again"
            )


def _state(path: Path) -> State:
    state = load(path)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise DataError(f"{path}: holds something else than named tensors; copy it again")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise DataError(f"{path}: {name} holds no numbers in rows and columns; copy it again")
    return {name: tensor.detach() for name, tensor in state.items() if not name.endswith(".inv_freq")}


def _joined(folder: Path, stages: list[list[State]]) -> dict[str, list[torch.Tensor]]:
    """Tensors of all stages by name; layers are dealt chunk by chunk, and in each from stage to stage."""
    by_run: dict[tuple[int, int], dict[str, list[torch.Tensor]]] = {}
    for stage, ranks in enumerate(stages):
        for rank, state in enumerate(ranks):
            if other := sorted(state.keys() ^ ranks[0].keys()):
                raise DataError(
                    f"{folder / rank_file(rank, stage)}: it and {rank_file(0, stage)} do not hold the same tensors, "
                    f"{other[0]} is in one alone; the files are not of one run"
                )
        for name in ranks[0]:
            chunk, local = _chunk(name.removeprefix("model."))
            by_run.setdefault((chunk, stage), {})[local] = [state[name] for state in ranks]
    found: dict[str, list[torch.Tensor]] = {}
    before = 0
    for run in sorted(by_run):
        tensors = by_run[run]
        count = len({layer[1] for name in tensors if (layer := _LAYER.fullmatch(name))})
        for name, shards in tensors.items():
            layer = _LAYER.fullmatch(name)
            whole = f"layers.{before + int(layer[1])}.{layer[2]}" if layer else name
            first, last = run == min(by_run), run == max(by_run)
            misplaced = (name in (SPLIT_HIDDEN, SPLIT_VOCABULARY) and not first) or (
                name in (NORM, OUTPUT) and not last
            )
            if misplaced or whole in found:
                raise DataError(
                    f"{folder}: {name} is in a stage where it does not belong, so layers are dealt in another way "
                    "than from stage to stage; such a schedule is not read"
                )
            found[whole] = shards
        before += count
    return found


def _chunk(name: str) -> tuple[int, str]:
    # With an interleaved schedule a stage holds several runs of layers, and names begin with the run's number.
    found = _CHUNK.fullmatch(name)
    return (int(found[1]), found[2]) if found else (0, name)


def _kind(folder: Path, shards: Mapping[str, object]) -> Kind:
    if "layers.0.attention.wqkv.weight" in shards:
        return "internlm2"
    if "layers.0.attention.wq.weight" in shards:
        return "llama"
    found = next((name for name in shards if name.startswith(("blocks.", "layers."))), next(iter(shards), "nothing"))
    raise DataError(
        f"{folder}: of an unknown model type, it holds {found}; read are INTERNLM2_PUBLIC, with "
        "layers.0.attention.wqkv, and LLAMA2, with layers.0.attention.wq"
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)  # NaN is equal to itself in bits
