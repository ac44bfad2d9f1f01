"""What is compared of a TurboMind folder: every number in its files, and what a model made of them says."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from export.cast import Bits
from export.hf import Model
from export.language_model import load_tensors
from export.progress import progress_bar
from export.turbomind import layout
from export.turbomind.llama import EMBEDDING, OUTPUT
from export.turbomind.reader import TurbomindReader
from export.verify import compare_continuations, continuations, refuse_difference, trained_model
from pipelines.artifacts import Json
from pipelines.errors import CheckError
from pipelines.schema import ExportVerify


def verify_turbomind(model: Model, folder: Path, table: ExportVerify) -> Json:
    """Check a TurboMind folder by reading it with a plain reader; returns what was compared.

    Raises:
        CheckError: at the first difference, naming it.
    """
    found: dict[str, Json] = {"tensors_equal": _compare_turbomind(model, folder)}
    if table.greedy_tokens:
        reader = TurbomindReader(folder)
        config = reader.hf_config(model.weights.shapes)
        tensors = ((name, tensor) for name, tensor in _as_trained(model, reader) if name in model.weights.shapes)
        served = load_tensors(config, tensors, model.weights.dtype, str(folder))
        exported = continuations(model, served, table.greedy_tokens)
        del served
        trained = continuations(model, trained_model(model), table.greedy_tokens)
        found["greedy"] = compare_continuations(exported, trained, table.max_abs_diff, folder)
    return found


def _compare_turbomind(model: Model, folder: Path) -> int:
    weights, seen = model.weights, 0
    with progress_bar("checking turbomind", weights.nbytes, "B") as progress:
        for name, tensor in _as_trained(model, TurbomindReader(folder)):
            if name in weights.shapes:
                expected = weights.tensor(name)
                seen += 1
                progress(tensor.nbytes)
            elif name == OUTPUT:
                expected = weights.tensor(EMBEDDING)
            else:
                expected = np.zeros_like(tensor)  # the output bias that the engine wants and the model lacks
            refuse_difference(tensor, expected, f"{folder}: {name}")
    if seen != len(weights.shapes):
        raise CheckError(f"{folder}: {seen} of {len(weights.shapes)} tensors; export again")
    return seen


def _as_trained(model: Model, reader: TurbomindReader) -> Iterator[tuple[str, Bits]]:
    """The reader's tensors without the padding and the repeated heads that tensor parallelism asked for."""
    for name, tensor in reader.tensors():
        try:
            yield name, _reduced(name, tensor, model.weights.shapes.get(name, tensor.shape), reader)
        except ValueError as error:
            raise CheckError(f"{reader.folder}: {name}: {error}; export again") from error


def _reduced(name: str, tensor: Bits, shape: tuple[int, ...], reader: TurbomindReader) -> Bits:
    if tensor.shape == shape:
        return tensor
    if ".k_proj." in name or ".v_proj." in name:
        columns = tensor.T if tensor.ndim == 2 else tensor[None]
        heads = layout.unrepeat_heads(columns, reader.model["size_per_head"], columns.shape[1] // shape[0])
        return heads.T if tensor.ndim == 2 else heads[0]
    if ".down_proj." in name:
        return layout.unpad_columns(tensor, shape[1])
    return layout.unpad_columns(tensor.T, shape[0]).T
