"""InternLM, InternLM2 and Baichuan as others store them, read as the Llama that they compute."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from export.sources.names import Named, Naming
from export.sources.stored import Run, StoredTensor
from pipelines.errors import ConfigError, DataError
from pipelines.file_ranges import WIDTH
from pipelines.llama_layouts import MODEL_TYPES, Layout, layout_of, llama_config


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model that is read as a Llama."""
    return config.get("model_type") in MODEL_TYPES


def as_llama(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The config.json of that Llama.

    Raises:
        ConfigError: if there is none.
    """
    try:
        return llama_config(config)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder}: its config.json is not that of {config['model_type']} ({type(error).__name__}: {error}); "
            "put the model's own there"
        ) from error


def original_naming(config: Mapping[str, Any], llama: Naming) -> tuple[Naming, Layout]:
    """The names and shapes that the original stores Llama's tensors under, and where their rows are."""
    layout = layout_of(config)
    shapes = {name: (rows, *llama.shapes[layout.tensors[name][0].name][1:]) for name, rows in layout.rows.items()}
    return Naming(shapes, {}, llama.ignored), layout


def taken_apart(folder: Path, stored: Named, layout: Layout, llama: Naming) -> Named:
    """The original's tensors as Llama's: rows of the same files.

    Raises:
        DataError: if a tensor is cut along its columns.
    """
    tensors = {}
    for name, places in layout.places().items():
        width = prod(llama.shapes[name][1:])
        runs: list[Run] = []
        for place in places:
            start, stop = place.first * width, (place.first + place.stop - place.start) * width
            runs += _within(folder, place.original, stored.tensors[place.original], start, stop, place.start * width)
        tensors[name] = StoredTensor(llama.shapes[name], runs)
    return replace(stored, tensors={name: tensors[name] for name in llama.shapes}, tied=llama.tied)


def _within(folder: Path, name: str, tensor: StoredTensor, start: int, stop: int, at: int) -> Iterator[Run]:
    """Elements start..stop of a tensor as elements from `at` on of another."""
    for run in tensor.pieces:
        if not isinstance(run, Run):
            raise DataError(f"{folder}: {name} is cut along its columns, and its rows are of several tensors; not read")
        begin, end = max(start, run.start), min(stop, run.start + run.size)
        if begin < end:
            first = run.first + (begin - run.start) * WIDTH[run.stored]
            yield Run(run.path, first, run.stored, at + begin - start, end - begin)
