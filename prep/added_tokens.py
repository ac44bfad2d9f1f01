"""New special tokens in a tokenizer's files, behind its own, in each file that lists tokens."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError

_JSON, _MODEL, _CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
_MAP, _ADDED = "special_tokens_map.json", "added_tokens.json"
_LISTS = ("extra_special_tokens", "additional_special_tokens")
"""What tokenizer_config.json calls its list of further special tokens, since Transformers 5 and before."""


def refuse_known(folder: Path, added: Sequence[str], id_of: Callable[[str], int | None]) -> None:
    """Refuse a new token that is none.

    Raises:
        ConfigError: if the tokenizer has a token of that text.
    """
    for text in added:
        if (id_ := id_of(text)) is not None:
            raise ConfigError(
                f"tokenizer.add_special_tokens: {folder} has a token {text!r} already, with id {id_}; remove it from "
                "the list"
            )


def files_with(files: Mapping[str, bytes], added: Sequence[str], first: int) -> dict[str, bytes]:
    """A tokenizer's files with new special tokens in each that lists tokens.

    Args:
        files: content by name.
        added: texts of the tokens.
        first: id of the first, the others follow.
    """
    entries = {id_: _entry(text) for id_, text in enumerate(added, first)}
    found = dict(files)
    if _JSON in files:
        table = json.loads(files[_JSON])
        table["added_tokens"] = [*(table.get("added_tokens") or []), *({"id": id_, **entries[id_]} for id_ in entries)]
        found[_JSON] = _dump(table)
    config = json.loads(files.get(_CONFIG, b"{}"))
    if "added_tokens_decoder" in config or _JSON not in files:  # beside a tokenizer.model it is the only list
        decoder = config.get("added_tokens_decoder", {})
        config["added_tokens_decoder"] = {**decoder, **{str(id_): entry for id_, entry in entries.items()}}
    name = next((name for name in _LISTS if isinstance(config.get(name), list)), _LISTS[1])
    config[name] = [*(config.get(name) or []), *added]
    found[_CONFIG] = _dump(config)
    if _MAP in files:
        special = json.loads(files[_MAP])
        special[_LISTS[1]] = [*(special.get(_LISTS[1]) or []), *added]
        found[_MAP] = _dump(special)
    if _ADDED in files:
        found[_ADDED] = _dump(json.loads(files[_ADDED]) | {text: id_ for id_, text in enumerate(added, first)})
    return found


def _entry(text: str) -> dict[str, Any]:
    return {
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _dump(table: object) -> bytes:
    return (json.dumps(table, ensure_ascii=False, indent=2) + "\n").encode("utf-8")
