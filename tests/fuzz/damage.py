"""Inputs that were right until something in them was replaced, left out or put twice, as Hypothesis draws them."""

import io
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli
import torch
import yaml
from hypothesis import strategies as st

from pipelines.keys import schema_keys
from pipelines.toml_text import spell_key, spell_value
from tests.export.internevo import checkpoints
from tests.export.sources.zero import small_tensors, write_zero
from tests.fuzz.artefacts import FACTS, SHARD
from tests.fuzz.bundle import joined, parts, pickle_of
from tests.fuzz.seeds import CONFIGS, CORPUS, RECORDS
from tests.fuzz.weights import INTERNEVO, ZERO_2, ZERO_3

Tree = Any
"""Tables, lists and values in one another."""
Path_ = tuple[Any, ...]

_TEXTS = st.sampled_from(
    ["", "x", "\x00", "\ud800", "a" * 300, "../x", "/", "中", "1e999", "\u202e", "nan", "{round}", "a.b"]
)
_NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 7, 2**31, 2**63, 10**30, -(2**63), 0.5, -0.0, 1e308, float("inf"), float("nan")]
)
_PLAIN = st.none() | st.booleans() | _NUMBERS | _TEXTS
VALUES = st.recursive(
    _PLAIN, lambda one: st.lists(one, max_size=3) | st.dictionaries(_TEXTS, one, max_size=3), max_leaves=4
)
"""What may stand where something else has to."""


def damaged(tree: Tree, values: st.SearchStrategy[Any] = VALUES) -> st.SearchStrategy[Tree]:
    """The tree with one to three of its values, tables or lists replaced, left out, doubled or swapped."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Tree:
        found = deepcopy(tree)
        for _ in range(draw(st.integers(1, 3))):
            places = list(_places(found))
            if not places:
                break
            *above, last = draw(st.sampled_from(places))
            holder = _at(found, tuple(above))
            how = draw(st.sampled_from(["replace", "replace", "remove", "repeat", "swap"]))
            if how == "replace":
                holder[last] = draw(values)
            elif how == "remove":
                del holder[last]
            elif how == "repeat" and isinstance(holder, list):
                holder.insert(last, deepcopy(holder[last]))
            else:
                holder[last] = deepcopy(_at(found, draw(st.sampled_from(places))))
        return found

    return drawn()


def _places(tree: Tree, above: Path_ = ()) -> Iterator[Path_]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*above, key)
        yield from _places(value, (*above, key))


def _at(tree: Tree, path: Path_) -> Tree:
    for key in path:
        tree = tree[key]
    return tree


@dataclass(frozen=True)
class Damage:
    """Inputs of a target."""

    target: str
    tree: Callable[[], Tree]
    encode: Callable[[Tree], bytes]
    values: st.SearchStrategy[Any] = VALUES

    def inputs(self) -> st.SearchStrategy[bytes]:
        return damaged(self.tree(), self.values).map(self.encode)


def _json(tree: Tree) -> bytes:
    return json.dumps(tree).encode("utf-8", "replace")


def _lines(tree: Tree) -> bytes:
    rows = tree if isinstance(tree, list) else [tree]
    return b"\n".join(_json(row) for row in rows) + b"\n"


def _toml(tree: Tree) -> bytes:
    text = "".join(f"{spell_key([str(key)])} = {_spelt(value)}\n" for key, value in tree.items())
    return joined([text.encode("utf-8", "replace"), b""])


def _spelt(value: Tree) -> str:
    if value is None:
        return "1979-05-27T07:32:00Z"  # TOML has dates where JSON has null
    if isinstance(value, dict):
        return "{" + ", ".join(f"{spell_key([str(key)])} = {_spelt(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spelt, value)) + "]"
    return spell_value(value, longest=1 << 30)


def _pipeline() -> Tree:
    """The small pipeline, and every key of the schema with a value of no kind in particular."""
    table = tomli.loads(parts((CORPUS / "toml" / "small").read_bytes(), 2)[0].decode())
    for path in schema_keys():
        holder = table
        for name in path[:-1]:
            inner = holder.setdefault(name, {})
            holder = inner[0] if isinstance(inner, list) and inner else inner
            if not isinstance(holder, dict):
                break
        else:
            if path[-1] not in ("extends", "file", "path"):
                holder.setdefault(path[-1], 1)
    return table


def _yaml(tree: Tree) -> bytes:
    return joined([yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", "replace"), b""])


def _python(tree: Tree) -> bytes:
    lines = "".join(f"{key} = {value!r}\n" for key, value in tree.items() if str(key).isidentifier())
    return joined([lines.encode("utf-8", "replace"), b""])


def _header(tree: Tree) -> bytes:
    text = _json(tree)
    return len(text).to_bytes(8, "little") + text + bytes(4 * 64)


def _tensors(tree: Tree) -> bytes:
    """The pickle that torch.save writes of it."""
    with TemporaryDirectory() as folder:
        torch.save(tree, Path(folder) / "x.pt")
        return pickle_of(Path(folder) / "x.pt")


def _files(tree: Tree) -> bytes:
    return joined([_tensors(one) if one is not None else b"" for one in tree]) if isinstance(tree, list) else b""


def _report(tree: Tree) -> bytes:
    rows, *tables = tree if isinstance(tree, list) and tree else [[]]
    return joined([_lines(rows), *map(_json, tables)])


def _run() -> Tree:
    rows, *tables = parts((CORPUS / "report" / "whole").read_bytes(), 9)
    listed = [json.loads(row) for row in rows.splitlines()[:-1]]
    chosen = [next(row for row in listed if row["kind"] == kind) for kind in ("train", "eval", "chat")]
    return [chosen, *(json.loads(table) if index != 2 and table else {} for index, table in enumerate(tables))]


def _shard(tree: Tree) -> bytes:
    """A record batch of these columns; what Arrow has no array for is one of nulls."""
    columns = {str(key).encode("utf-8", "replace").decode(): _column(value) for key, value in tree.items()}
    rows = max((len(column) for column in columns.values()), default=0)
    arrays = [pa.concat_arrays([one, pa.nulls(rows - len(one), one.type)]) for one in columns.values()]
    file = io.BytesIO()
    batch = pa.RecordBatch.from_arrays(arrays, names=list(columns))
    with pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    return file.getvalue()


_TYPES: Mapping[str, Any] = {
    "list<uint16>": pa.list_(pa.uint16()),
    "list<uint32>": pa.list_(pa.uint32()),
    "list<int32>": pa.list_(pa.int32()),
    "list<int64>": pa.list_(pa.int64()),
    "large": pa.large_list(pa.uint16()),
    "binary": pa.binary(),
    "string": pa.string(),
    "null": pa.null(),
}


def _column(said: Tree) -> Any:
    try:
        return pa.array(said["values"], _TYPES[said["type"]])
    except (TypeError, LookupError, ValueError, pa.ArrowException, OverflowError):
        return pa.nulls(2)


def _packs() -> Tree:
    def column(type_: str, values: Tree) -> Tree:
        return {"type": type_, "values": values}

    origin = column("list<uint32>", [[0, 0], [1]])
    return {
        "input_ids": column("list<uint16>", [[1, 2, 3, 4], [5]]),
        "loss_mask": column("binary", [b"\x0a", b"\x00"]),
        "cu_seqlens": column("list<int32>", [[0, 3, 4], [0, 1]]),
        "file": origin,
        "record": deepcopy(origin),
        "start": deepcopy(origin),
    }


def _manifest_of_shard(tree: Tree) -> bytes:
    return joined([_json(tree), _shard(_packs())])


def _manifest() -> Tree:
    shard = _shard(_packs())
    facts = {
        **FACTS,
        "packs_per_shard": [2],
        "attention": {"window": 2, "across_samples": False},
        "eval": {"packs_per_shard": []},
    }
    files = [{"path": SHARD, "size": len(shard), "sha256": ""}]
    return {
        "kind": "prep",
        "format_version": 1,
        "identity": "0" * 64,
        "parents": {"x": "y"},
        "files": files,
        "facts": facts,
    }


def _rows(tree: Tree) -> bytes:
    """A .meta of these rows and a .bin of these lines."""
    meta = io.BytesIO()
    try:
        np.save(meta, np.array(tree["meta"], tree["dtype"]), allow_pickle=False)
    except (TypeError, ValueError, OverflowError, LookupError):
        np.save(meta, np.zeros((0,)))
    return joined([meta.getvalue(), _lines(tree.get("lines", []))])


def _ftdp() -> Tree:
    lines: Tree = [{"tokens": [1, -2, 0]}, {"tokens": [999]}, {"tokens": []}]
    sizes = [len(_json(one)) + 1 for one in lines]
    meta = [[0, 3], [sizes[0], 1], [sizes[0] + sizes[1], 0]]
    return {"meta": meta, "dtype": "int64", "lines": lines}


def _parquet(tree: Tree) -> bytes:
    file = io.BytesIO()
    try:
        table = pa.table({str(key): pa.array(value) for key, value in tree.items()})
        pq.write_table(table, file)
    except (TypeError, ValueError, AttributeError, pa.ArrowException, OverflowError):
        pq.write_table(pa.table({"x": [1]}), file)
    return file.getvalue()


def _rows_of_table() -> Tree:
    return {
        "messages": [RECORDS[0]["messages"], []],
        "text": ["a", None],
        "n": [1, 2],
        "b": [b"x", b"\xff"],
        "f": [0.5, None],
    }


@cache
def _zero(stage: int) -> Tree:
    with TemporaryDirectory() as folder:
        inner = write_zero(Path(folder), small_tensors(2), stage=stage, ranks=1, frozen=["b.weight"])
        return [torch.load(inner / name, weights_only=False) for name in (ZERO_3 if stage == 3 else ZERO_2)]


@cache
def _internevo(kind: Any) -> Tree:
    sizes = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "num_kv_attention_heads": 1, "vocab_size": 8}
    settings = {**checkpoints.SETTINGS, **sizes, "no_bias": kind == "internlm2"}
    files = checkpoints.cut(checkpoints.whole_tensors(kind, settings), 2, [[[0]]])
    assert len(files) + 1 == len(INTERNEVO)
    return [settings, *files.values()]


def _config(name: str) -> Tree:
    return yaml.safe_load((CONFIGS / name).read_text())


_INTERNEVO_CONFIG = {
    "JOB_NAME": "x", "DO_ALERT": False, "SEQ_LEN": 2048, "HIDDEN_SIZE": 4096, "NUM_LAYER": 32, "VOCAB_SIZE": 103168,
    "model_type": "INTERNLM2_PUBLIC", "ckpt": {"enable_save_ckpt": True, "save_ckpt_folder": "local:x",
    "load_ckpt_info": {
        "path": "local:y", "content": ("model",), "ckpt_type": "internlm2"}, "checkpoint_every": 50},
    "data": {"seq_len": 2048, "micro_num": 4, "micro_bsz": 1, "total_steps": 100, "train_folder": "/d",
    "rampup_batch_size": ""},
    "grad_scaler": {"fp16": {"initial_scale": 65536}}, "adam": {"lr": 1e-4, "adam_beta1": 0.9, "weight_decay": 0.01},
    "lr_scheduler": {"total_steps": 100, "init_steps": 0, "warmup_ratio": 0.01, "eta_min": 1e-5},
    "model": {"checkpoint": 1.0, "num_attention_heads": 32, "dtype": "torch.bfloat16", "num_layers": 32,
    "no_bias": True},
    "parallel": {"zero1": {"size": 8}, "tensor": {"size": 1, "mode": "mtp"}, "pipeline": {"size": 1},
    "weight": {"size": 1}},
}  # fmt: skip
_XTUNER_CONFIG = {
    "pretrained_model_name_or_path": "m", "max_length": 2048, "pack_to_max_length": True, "batch_size": 1,
    "accumulative_counts": 16,
    "max_epochs": 3, "lr": 2e-5, "betas": (0.9, 0.999), "weight_decay": 0, "max_norm": 1, "warmup_ratio": 0.03,
    "save_steps": 500,
    "model": {"type": "SupervisedFinetune", "llm": {"type": "AutoModelForCausalLM.from_pretrained"}, "lora": {"r": 64}},
    "train_dataloader": {"batch_size": 1, "dataset": {"type": "process_hf_dataset",
    "dataset": {"type": "load_dataset", "path": "p"}}},
    "optim_wrapper": {"type": "AmpOptimWrapper", "optimizer": {"type": "AdamW", "lr": 2e-5},
    "clip_grad": {"max_norm": 1}},
    "param_scheduler": [{"type": "LinearLR", "start_factor": 1e-5, "by_epoch": True, "begin": 0, "end": 0.09}, {
        "type": "CosineAnnealingLR", "eta_min": 0.0, "by_epoch": True, "begin": 0.09, "end": 3}],
    "train_cfg": {"type": "TrainLoop", "max_epochs": 3}, "custom_hooks": [{"type": "DatasetInfoHook"}],
    "randomness": {"seed": None},
}  # fmt: skip

_HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}
_TENSORS = VALUES | st.sampled_from(
    [torch.zeros(0), torch.ones(2, 3), torch.ones(3, dtype=torch.int64), torch.Size([2, -1])]
)
DAMAGES: Mapping[str, Damage] = {
    "toml": Damage("toml", _pipeline, _toml),
    "axolotl": Damage("migrate_axolotl", lambda: _config("axolotl_lora.yaml"), _yaml),
    "llamafactory": Damage("migrate_llamafactory", lambda: _config("llamafactory_full.yaml"), _yaml),
    "xtuner": Damage("migrate_xtuner", lambda: _XTUNER_CONFIG, _python),
    "internevo-config": Damage("migrate_internevo", lambda: _INTERNEVO_CONFIG, _python),
    "openai": Damage("maps", lambda: RECORDS[0], _json),
    "sharegpt": Damage("maps", lambda: RECORDS[1], _json),
    "msagent": Damage("maps", lambda: RECORDS[2], _json),
    "flat": Damage("maps", lambda: RECORDS[3], _json),
    "jsonl": Damage("jsonl", lambda: list(RECORDS), _lines),
    "json": Damage("json", lambda: list(RECORDS), _json),
    "parquet": Damage("parquet", _rows_of_table, _parquet),
    "ftdp": Damage("ftdp", _ftdp, _rows),
    "shard": Damage("shard", _packs, _shard),
    "manifest": Damage("manifest", _manifest, _json),
    "shard-manifest": Damage("shard_manifest", _manifest, _manifest_of_shard),
    "report": Damage("report", _run, _report),
    "safetensors": Damage("safetensors", lambda: _HEADER, _header),
    "zero-1": Damage("zero_2", lambda: _zero(1), _files, _TENSORS),
    "zero-3": Damage("zero_3", lambda: _zero(3), _files, _TENSORS),
    "internevo": Damage("internevo", lambda: _internevo("internlm2"), _files, _TENSORS),
    "internevo-llama": Damage("internevo", lambda: _internevo("llama"), _files, _TENSORS),
    "pickle": Damage("torch_pickle", lambda: [{"a": [1, {"b": (2,)}]}], pickle.dumps),
}
"""Trees that a target takes, and how they become its input."""
