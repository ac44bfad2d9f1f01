"""`packtrain export import-internevo`: an InternEvo checkpoint as a Hugging Face directory, number for number."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.cast import Bits, Dtype, cast
from export.destination import refuse_foreign_files, staged
from export.internevo.layout import OUTPUT, Kind, Rows, Whole, parts
from export.internevo.reader import CONFIG, InternEvoCheckpoint
from export.model_config import rope_spellings
from export.safetensors_stream import records_of, write_model
from export.weights import Weights
from pipelines.artifacts import (
    Json,
    Manifest,
    canonical_json,
    digest_file,
    exclusive_name,
    identity,
    write_atomic,
)
from pipelines.errors import ConfigError
from pipelines.llama_layouts import unit_rows
from pipelines.progress import progress_bar

log = logging.getLogger(__name__)

VERSION = 1
"""Raised whenever the same checkpoint gives other bytes."""
RECORD = "internevo.json"
"""How the checkpoint was cut and set, beside the weights, so that `to-internevo` writes it again as it was."""
_SHARD = 5_000_000_000  # bytes per safetensors file, as export.hf.max_shard_size has it by default


def import_internevo(source: Path, out: Path, *, layout: Kind | None = None, adapt_hf: bool | None = None) -> Json:
    """Write the checkpoint's weights, and the config.json that they compute by; does nothing when `out` is current.

    Memory holds a block of a tensor at a time. What is written is read back and compared.

    Args:
        source: a step's folder, with model_config.pt and a file for every tensor rank and pipeline stage.
        out: new, empty, or what an earlier call wrote.
        layout: names of the Hugging Face tensors; by default the type's own.
        adapt_hf: order of rows in query and key heads, where model_config.pt does not say.
    Returns:
        The manifest's facts.
    Raises:
        DataError: if files are missing, unsafe or at odds with each other.
        ConfigError: if `out` holds anything else, or an option does not fit the checkpoint.
        CheckError: if what was written differs.
        BusyError: if another process writes there.
    """
    with exclusive_name(out):
        return _import(source, out, layout=layout, adapt_hf=adapt_hf)


def _import(source: Path, out: Path, *, layout: Kind | None, adapt_hf: bool | None) -> Json:
    refuse_foreign_files(out)
    checkpoint = InternEvoCheckpoint(source)
    layout = _layout(checkpoint, layout)
    adapted = _adapt_hf(checkpoint, adapt_hf)
    read = [{"path": path.name, "sha256": digest_file(path)} for path in checkpoint.files]
    stage = identity("import-internevo", VERSION, read, layout, adapted)
    done = Manifest.read(out)
    if done is not None and done.identity == stage:
        done.verify(out, hashes=False)
        log.info("export import-internevo: nothing to do, %s is current", out)
        return dict(done.facts)
    weights = InternEvoWeights(checkpoint, layout, adapt_hf=adapted)
    config = hf_config(checkpoint, layout, weights.dtype)
    facts = {
        "adapt_hf": adapted,
        "dtype": weights.dtype,
        "model_type": config["model_type"],
        "norm_head_applied": weights.norm_head,
        "parameters": weights.parameters,
        "pp": checkpoint.pp,
        "read": read,
        "tensors": len(weights.shapes),
        "tp": checkpoint.tp,
    }
    with staged(out, weights.nbytes) as folder:
        with progress_bar("writing hf", weights.nbytes, "B") as progress:
            written = write_model(folder, weights, _SHARD, progress)
        write_atomic(folder / "config.json", canonical_json(config))
        write_atomic(folder / RECORD, canonical_json(_record(checkpoint, adapted)))
        from export.verify import compare_safetensors  # imports transformers

        compare_safetensors(weights, folder, written)
        Manifest("hf", VERSION, stage, {}, records_of(folder, written), facts).write(folder)
    return facts


def summary(facts: Json) -> str:
    """What was imported, for a person."""
    head = "; rows of the output divided by their length (norm_head)" if facts["norm_head_applied"] else ""
    order = "halves (adapt_hf = true)" if facts["adapt_hf"] else "interleaved pairs (adapt_hf = false), put in halves"
    return (
        f"{facts['tensors']} tensors, {facts['parameters']:,} {facts['dtype']} numbers, as {facts['model_type']}\n"
        f"from {facts['tp']} tensor ranks x {facts['pp']} stages; query and key rows were in {order}{head}"
    )


class InternEvoWeights(Weights):
    """A checkpoint's numbers under Hugging Face's names, put together from the ranks' files block by block."""

    def __init__(self, checkpoint: InternEvoCheckpoint, layout: Kind, *, adapt_hf: bool) -> None:
        self.vanished = 0
        self.norm_head = checkpoint.flag("norm_head") or False
        self._source = checkpoint
        self._parts = parts(checkpoint.kind, layout, checkpoint.wholes, checkpoint.sizes, adapt_hf=adapt_hf)
        self.shapes = {
            name: (len(part.rows), *checkpoint.wholes[part.whole].shape[1:]) for name, part in self._parts.items()
        }
        self.dtype = checkpoint.dtype(OUTPUT)

    def dtype_of(self, name: str) -> Dtype:
        """Number format of a tensor, as InternEvo stored it; norms may be float32 where the others are not."""
        return self._source.dtype(self._parts[name].whole)

    def read(self, name: str, start: int, stop: int) -> Bits:
        """Elements start..stop of the flattened tensor."""
        part, width = self._parts[name], int(np.prod(self.shapes[name][1:], dtype=np.int64))
        first, last = start // width, -(-stop // width)
        whole = self._source.wholes[part.whole]
        found = gather([bits(shard) for shard in self._source.shards[part.whole]], whole, part.rows[first:last])
        if part.whole == OUTPUT and self.norm_head:
            found = _unit_rows(found, self.dtype_of(name))
        return found.reshape(-1)[start - first * width : stop - first * width]

    def tensor(self, name: str) -> Bits:
        """A whole tensor in its shape."""
        return self.read(name, 0, self.size(name)).reshape(self.shapes[name])


def bits(tensor: torch.Tensor) -> Bits:
    """A tensor's bit patterns, without copying it."""
    found: Bits = tensor.view(torch.uint16 if tensor.element_size() == 2 else torch.uint32).numpy()
    return found


def gather(shards: list[Bits], whole: Whole, rows: Rows) -> Bits:
    """Rows of a whole tensor, from its parts on every tensor rank."""
    if whole.axis is None:
        return shards[0][rows]
    if whole.axis == 1:
        return np.concatenate([shard[rows] for shard in shards], axis=1)
    held = whole.shape[0] // len(shards)
    found = np.empty((len(rows), *whole.shape[1:]), shards[0].dtype)
    for rank in np.unique(rows // held):
        here = rows // held == rank
        found[here] = shards[rank][rows[here] - rank * held]
    return found


def hf_config(checkpoint: InternEvoCheckpoint, layout: Kind, dtype: Dtype) -> dict[str, Any]:
    """config.json of the imported model."""
    sizes = checkpoint.sizes
    config: dict[str, Any] = {
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.mlp,
        "max_position_embeddings": checkpoint.whole("max_position_embeddings", 2048),  # InternEvo's default
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "rms_norm_eps": checkpoint.number("layer_norm_epsilon"),
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "dtype": dtype,
        "vocab_size": sizes.rows,
    }
    theta = checkpoint.number("rope_base", 10000)
    # Its factor in training is 1: nothing changes up to max_position_embeddings, the base grows beyond.
    scaling = {"type": "dynamic", "factor": 1.0} if checkpoint.flag("use_dynamic_ntk_rope") else None
    config |= {"rope_theta": theta, "rope_scaling": scaling}
    if layout == "internlm2":
        own = {"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": sizes.bias}
        return config | own
    own = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": sizes.bias,
        "head_dim": sizes.head,
        "mlp_bias": False,
    }
    return config | own | rope_spellings(config)


def plain(value: Any) -> Json:
    """A setting of model_config.pt as JSON; number formats are written `{"torch": "bfloat16"}`, tuples as lists."""
    if isinstance(value, torch.dtype):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _record(checkpoint: InternEvoCheckpoint, adapt_hf: bool) -> Json:
    config = {**checkpoint.config, "adapt_hf": adapt_hf}
    if "norm_head" in config:
        config["norm_head"] = False  # it is in the weights now
    return {
        "adapt_hf": adapt_hf,
        "kind": checkpoint.kind,
        "model_config": plain(config),
        "pp": checkpoint.pp,
        "prefix": checkpoint.prefix,
        "split_hidden": checkpoint.split_hidden,
        "tp": checkpoint.tp,
    }


def _layout(checkpoint: InternEvoCheckpoint, asked: Kind | None) -> Kind:
    if asked == "internlm2" and checkpoint.kind == "llama":
        raise ConfigError(
            "--layout internlm2: the checkpoint is of the Llama type, which has no such names; leave it out"
        )
    return asked or checkpoint.kind


def _adapt_hf(checkpoint: InternEvoCheckpoint, asked: bool | None) -> bool:
    where, stored = checkpoint.folder / CONFIG, checkpoint.flag("adapt_hf")
    if stored is None and asked is not None:
        return asked
    if stored is None:
        raise ConfigError(
            f"{where}: does not say adapt_hf, the order of rows in query and key heads, and a wrong guess ruins the "
            "model; give --adapt-hf (InternEvo's default for InternLM2) or --no-adapt-hf (its default for Llama)"
        )
    if asked is not None and stored != asked:
        raise ConfigError(f"{where}: says adapt_hf = {str(stored).lower()}; leave the option out")
    return stored


def _unit_rows(found: Bits, dtype: Dtype) -> Bits:
    if dtype == "bfloat16":
        values = (found.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = found.view(np.float16 if dtype == "float16" else np.float32).astype(np.float32)
    return cast(unit_rows(values).reshape(-1), dtype).reshape(found.shape)
