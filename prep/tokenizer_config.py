"""tokenizer_config.json and special_tokens_map.json: what a tokenizer's files say beside its vocabulary."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError

CONFIG = "tokenizer_config.json"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The parts that tokens play."""


def read_config(folder: Path, files: Mapping[str, bytes]) -> Mapping[str, Any]:
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", CONFIG):
        if name not in files:
            continue
        try:
            table = json.loads(files[name].decode("utf-8"))
        except ValueError as error:
            raise ConfigError(f"{folder / name}: not valid JSON: {error}") from error
        config.update({key: value for key, value in table.items() if value is not None})
    return config


def added_by_config(config: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """tokenizer_config.json's added tokens by id, with all their properties."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {
        int(id_): {key: entry.get(key, plain.get(key)) for key in ("content", *plain)}
        for id_, entry in config.get("added_tokens_decoder", {}).items()
    }


def token_text(token: object) -> str | None:
    """A token's text, written as a string or as a table."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None
