"""The index of a model in several weight files: which tensor is in which of the files beside it."""

import json
from pathlib import Path


def read_index(path: Path) -> dict[str, str]:
    """File by tensor, as `*.index.json` has it.

    Raises:
        ValueError: if it is no such index, or names a file that is not beside it.
    """
    try:
        listed = json.loads(path.read_bytes())["weight_map"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("no index of weight files") from error
    if not isinstance(listed, dict):
        raise ValueError("no index of weight files")
    for file in listed.values():
        if not isinstance(file, str) or file in ("", ".", "..") or "/" in file or "\0" in file:
            raise ValueError(f"names {file!r}, which is no file beside it")
    return listed
