"""Datasets that `save_to_disk` of the `datasets` library wrote: a folder of Arrow files and what lists them.

A Dataset is a folder with state.json, which names its Arrow files; a DatasetDict is a folder with dataset_dict.json,
which names its splits, each the folder of a Dataset. Other Arrow files beside them are what the library keeps for
itself. The rows of every listed file are records, whatever format was set on the dataset when it was saved.
"""

import json
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, DataError

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return (folder / _SPLITS).is_file() or ((folder / _STATE).is_file() and (folder / "dataset_info.json").is_file())


def listed_files(folder: Path, split: str | None, place: str) -> list[str]:
    """The Arrow files of a saved dataset in its own order, each as its path below the folder.

    Args:
        split: of a DatasetDict.
        place: what asks for it, to begin a message with.
    Raises:
        ConfigError: if the split is missing, unknown, or not to be named at all.
        DataError: if the folder is no saved dataset, is damaged or incomplete, or has its rows in the order of an
            indices file.
    """
    prefix = ""
    if (folder / _SPLITS).is_file():
        splits = _listed(folder / _SPLITS, "splits", str)
        if split not in splits:
            found = "split is missing" if split is None else f"split = {split!r} is not in it"
            raise ConfigError(f"{place}: {folder} is a DatasetDict and {found}; set it to one of {', '.join(splits)}")
        prefix = f"{split}/"
    elif split is not None:
        raise ConfigError(f"{place}: split = {split!r}, but {folder} is a Dataset, not a DatasetDict; remove split")
    state = folder / prefix / _STATE
    if not state.is_file():
        raise DataError(
            f"{place}: {state}: missing, so this is no dataset that save_to_disk wrote; for single Arrow files set "
            'format = "arrow"'
        )
    if any(_read(state).get(key) for key in ("_indices_data_files", "_indices_files")):
        raise DataError(
            f"{place}: {state}: the rows are in the order of an indices file, which is not supported; save the dataset "
            "again after flatten_indices()"
        )
    names = [one.get("filename") for one in _listed(state, "_data_files", dict)]
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise DataError(f"{place}: {state}: lists {name!r}, which is no file beside it; save the dataset again")
        if not (state.parent / name).is_file():
            raise DataError(f"{place}: {state.parent / name}: missing, and state.json lists it; fetch the whole folder")
    if not names:
        raise DataError(f"{place}: {state}: lists no file; the dataset is empty")
    return [prefix + name for name in names]


def _listed(file: Path, key: str, kind: type) -> list[Any]:
    values = _read(file).get(key)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise DataError(f"{file}: has no list {key!r}, so save_to_disk did not write it like this; save it again")
    return values


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON ({error}); save the dataset again") from error
    return found if isinstance(found, dict) else {}
