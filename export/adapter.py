"""A PEFT directory: the adapter's weights as they were trained, its configuration, and the tokenizer."""

import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from export.dequantized import Dequantized
from export.hf import Model
from export.merge import OriginalBase, open_base
from export.model_card import adapter_card
from export.safetensors_stream import write_file
from pipelines.artifacts import Manifest, canonical_json, write_atomic
from pipelines.checkpoints import digest_base
from pipelines.errors import CheckError, DataError, MachineError
from pipelines.llama_layouts import llama_config
from pipelines.progress import progress_bar

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def write_adapter(model: Model, base: Path, folder: Path) -> None:
    """Write what `peft.PeftModel.from_pretrained` loads, in float32 as it was trained.

    Args:
        base: the directory of the model below the adapter, named in the configuration.
    """
    weights, stored = model.weights, stored_tensors(model)
    with progress_bar("writing adapter", weights.nbytes, "B") as progress:
        write_file(
            folder / WEIGHTS,
            weights.dtype,
            {name: weights.shapes[trained] for name, trained in stored.items()},
            (block for trained in stored.values() for block in weights.blocks(trained)),
            progress,
        )
    config = {**model.checkpoint.adapter["config"], "base_model_name_or_path": str(base.resolve())}
    write_atomic(folder / CONFIG, canonical_json({**config, "inference_mode": True}))
    for name, content in model.files.items():
        if name != "config.json":  # of the model below; Transformers would take the directory for a whole model
            write_atomic(folder / name, content)
    before, rows = (json.loads((base / "config.json").read_bytes()).get("vocab_size"), model.config["vocab_size"])
    card = adapter_card(
        model.checkpoint,
        weights,
        model.special,
        rows=None if rows == before else rows,
        original=isinstance(open_base(base), OriginalBase),
    )
    write_atomic(folder / "README.md", card.encode("utf-8"))


def stored_tensors(model: Model) -> dict[str, str]:
    """The name of every tensor in a PEFT file, and of the trained one that it is; PEFT wants tied ones twice."""
    trained = {name: name for name in model.weights.shapes} | dict(model.checkpoint.manifest.facts["tied"])
    return {_peft_name(name): one for name, one in trained.items()}


def _peft_name(trained: str) -> str:
    """What PEFT calls a trained tensor in its files: without the name of the adapter, below its wrapper."""
    name = trained.replace(".modules_to_save.default.", ".")
    name = name.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector")
    name = re.sub(r"\.(lora_\w+)\.default\b", r".\1", name)
    return f"base_model.model.{name}"


def load_described(folder: Path) -> Any:
    """An exported adapter on the model that its configuration names.

    Raises:
        DataError: if that model is not there, or not the one it was trained on.
    """
    config = json.loads((folder / CONFIG).read_bytes())
    base = Path(config["base_model_name_or_path"] or ".")
    manifest = Manifest.read(folder)
    if not (base / "config.json").is_file():
        raise DataError(f"{folder}: its base {base} is not there; put it back, or correct {CONFIG}")
    if manifest is not None and digest_base(base) != manifest.facts["base"]["sha256"]:
        raise DataError(f"{folder}: {base} is not the model that it was trained on; restore its files")
    model = load_adapter(base, folder)
    model.generation_config = type(model.generation_config).from_pretrained(folder)
    return model


def load_adapter(base: Path, folder: Path) -> Any:
    """An exported adapter on its base, computing in float32.

    Raises:
        CheckError: if PEFT finds a tensor too many.
    """
    peft = _library()
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        below = _float32(base)
        model = peft.PeftModel.from_pretrained(_as_large(below, _rows(folder, below)), folder)
    for remark in remarks:
        if "missing adapter keys" in str(remark.message):
            raise CheckError(f"{folder}: PEFT misses tensors ({str(remark.message)[:200]}); export again")
    return model.eval()


def load_trained_adapter(base: Path, model: Model, packed: Dequantized | None = None) -> Any:
    """The same as the trainer has it: every tensor of the checkpoint under the trainer's own name.

    Args:
        packed: the base as it was in 4 bits; by default as its files are.
    """
    import torch

    from export.language_model import as_tensor

    peft = _library()
    settings = dict(model.checkpoint.adapter["config"])
    kind = settings.pop("peft_type")
    config = peft.get_peft_config({"peft_type": kind, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = peft.inject_adapter_in_model(config, _as_large(_float32(base, packed), model.config["vocab_size"]))
    parameters: dict[str, nn.Parameter] = dict(trained.named_parameters())
    with torch.no_grad():
        for name in model.weights.shapes:
            if name not in parameters:
                raise CheckError(f"{model.checkpoint.folder}: {name} has no place in the model {base}; export again")
            parameters[name].copy_(as_tensor(model.weights.tensor(name), model.weights.dtype))
    return trained.eval()


def _rows(folder: Path, base: Any) -> int:
    """Rows of the embedding in an exported adapter, or of the base's where it holds none."""
    embedding = base.get_input_embeddings()
    name = _peft_name(next(name for name, module in base.named_modules() if module is embedding) + ".weight")
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        shape = file.get_slice(name).get_shape() if name in file.keys() else embedding.weight.shape  # noqa: SIM118
    return int(shape[0])


def _as_large(base: Any, rows: int) -> Any:
    """The base with that many rows for tokens; the values of new ones are the adapter's, which holds such matrices."""
    if rows != base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(rows, mean_resizing=False)
    return base


def _float32(base: Path, packed: Dequantized | None = None) -> Any:
    import torch

    from export.language_model import load_folder, load_tensors

    files = open_base(base)
    if isinstance(files, OriginalBase):
        tensors = ((name, files.whole(name).view(np.uint32)) for name in files.shapes)
        loaded = load_tensors(llama_config(files.config), tensors, "float32", str(base))
    else:
        loaded = load_folder(base).to(torch.float32)
    if packed is not None:
        with torch.no_grad():
            for name in packed.packed:
                loaded.get_parameter(name).copy_(torch.from_numpy(packed.whole(name)))
    return loaded


def _library() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MachineError(
            "an adapter needs peft, which is not installed here; pip install 'packtrain[train]'"
        ) from error
    return peft
