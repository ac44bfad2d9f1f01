"""What is compared of a TurboMind folder: every number in its files, and what a model made of them says."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.cast import Bits
from export.hf import Model
from export.language_model import load_tensors
from export.turbomind.layout import repeat_heads
from export.turbomind.matrices import EMBEDDING, OUTPUT
from export.turbomind.reader import TurbomindReader
from export.verify import compare_continuations, continuations, refuse_difference, trained_model
from export.weights import BLOCK, Weights
from pipelines.artifacts import Json
from pipelines.errors import CheckError
from pipelines.progress import progress_bar
from pipelines.schema import ExportVerify


def verify_turbomind(model: Model, folder: Path, table: ExportVerify) -> Json:
    """Check a TurboMind folder by reading it with a plain reader; returns what was compared.

    Numbers are compared a block of rows at a time; the comparison of logits loads the model.

    Raises:
        CheckError: at the first difference, naming it.
    """
    reader = TurbomindReader(folder)
    found: dict[str, Json] = {"tensors_equal": compare(model.weights, reader)}
    if table.greedy_tokens:
        config = reader.hf_config(model.weights.shapes)
        tensors = _as_trained(model.weights, reader)
        served = load_tensors(config, tensors, model.weights.dtype, str(folder))
        exported = continuations(model, served, table.greedy_tokens)
        del served
        trained = continuations(model, trained_model(model), table.greedy_tokens)
        found["greedy"] = compare_continuations(exported, trained, table.max_abs_diff, folder)
    return found


BAND = 1 << 24
"""Numbers read back at once: 32 MiB."""


@dataclass(frozen=True)
class _Origin:
    """Rows of a tensor of the checkpoint that a tensor of the folder holds, with more around them."""

    tensor: str | None
    """None where the folder holds zeros that no tensor has."""
    first: int
    rows: int
    columns: int


def compare(weights: Weights, reader: TurbomindReader) -> int:
    """Compare every number of a folder with what it was written from; returns the tensors.

    Raises:
        CheckError: at the first difference, naming it.
    """
    seen: set[str] = set()
    with progress_bar("checking turbomind", weights.nbytes, "B") as progress:
        for name, stored in reader.stored.items():
            rows, columns = stored.shape
            origin = _origin(weights, name, (rows, columns))
            unit = reader.model["size_per_head"] if name.endswith(_HEADS) else 1
            step = max(1, BAND // (columns * unit)) * unit
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                found = reader.rows(name, start, stop)
                for first in range(start, stop, block := max(1, BLOCK // (columns * unit)) * unit):
                    last = min(first + block, stop)
                    expected = _expected(weights, origin, (first, last), (rows, columns), unit)
                    refuse_difference(found[first - start : last - start], expected, f"{reader.folder}: {name}")
                    progress(expected.nbytes)
            seen |= {origin.tensor} if origin.tensor else set()
    if missing := sorted(weights.shapes.keys() - seen):
        raise CheckError(f"{reader.folder}: {missing[0]} is not in it; export again")
    return len(seen)


_HEADS = (".k_proj.weight", ".v_proj.weight", ".k_proj.bias", ".v_proj.bias")  # which ranks may have copies of


def _origin(weights: Weights, name: str, stored: tuple[int, int]) -> _Origin:
    shapes = weights.shapes
    if name == OUTPUT and name not in shapes:
        name = EMBEDDING
    if name in shapes:
        rows, *columns = shapes[name]
        return _Origin(name, 0, rows, columns[0] if columns else 1)
    for part, index in (("gate_proj", 0), ("up_proj", 1)):
        fused = name.replace(part, "gate_up_proj")
        if fused != name and fused in shapes:
            rows, inputs = shapes[fused]
            return _Origin(fused, index * rows // 2, rows // 2, inputs)
    return _Origin(None, 0, *stored)  # the output bias that the engine wants and the model lacks


def _expected(weights: Weights, origin: _Origin, rows: tuple[int, int], stored: tuple[int, int], unit: int) -> Bits:
    """Rows start..stop as the folder has to have them: with repeated heads, or zeros below and to the right."""
    start, stop = rows
    if origin.tensor is None:
        return np.zeros((stop - start, stored[1]), np.uint16)
    if unit > 1 and stored[0] > origin.rows:
        times = stored[0] // origin.rows
        first, last = start // (unit * times), -(-stop // (unit * times))
        heads = repeat_heads(_read(weights, origin, first * unit, last * unit), unit, times)
        return heads[start - first * times * unit : stop - first * times * unit]
    expected = np.zeros((stop - start, stored[1]), np.uint16)
    last = min(stop, origin.rows)
    if start < last:
        expected[: last - start, : origin.columns] = _read(weights, origin, start, last)
    return expected


def _read(weights: Weights, origin: _Origin, start: int, stop: int) -> Bits:
    assert origin.tensor is not None
    first, columns = origin.first, origin.columns
    return weights.read(origin.tensor, (first + start) * columns, (first + stop) * columns).reshape(-1, columns)


def _as_trained(weights: Weights, reader: TurbomindReader) -> Iterator[tuple[str, Bits]]:
    """The tensors as the model has them: without padding and copies, and those that it has as one joined again."""
    halves: dict[str, Bits] = {}
    for name, stored in reader.stored.items():
        origin = _origin(weights, name, stored.shape)
        if origin.tensor is None or (name == OUTPUT and origin.tensor != name):
            continue
        whole = reader.tensor(name)
        if name.endswith(_HEADS) and len(whole) > origin.rows:
            size = reader.model["size_per_head"]
            whole = whole.reshape(origin.rows // size, -1, size, whole.shape[1])[:, 0].reshape(origin.rows, -1)
        part = whole[: origin.rows, : origin.columns]
        if origin.tensor == name:
            yield name, part.reshape(weights.shapes[name])
        elif origin.tensor in halves:
            yield origin.tensor, np.concatenate([halves.pop(origin.tensor), part])
        else:
            halves[origin.tensor] = part
