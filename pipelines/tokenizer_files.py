"""The tokenizer's files as every generation of Transformers reads them, and the special tokens generation needs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipelines.artifacts import canonical_json
from pipelines.errors import CheckError
from pipelines.probes import Probes

_TOKENIZER, _CONFIG, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_COPIED = (_TOKENIZER, _TEMPLATE, "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
_MODEL = "tokenizer.model"


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that generation needs."""

    bos: int | None
    pad: int | None
    stop: tuple[int, ...]
    """What ends an answer: the template's end of turn first, then the tokenizer's end of text."""

    def as_config(self) -> dict[str, int | list[int] | None]:
        """As config.json and generation_config.json spell them."""
        eos = self.stop[0] if len(self.stop) == 1 else list(self.stop) or None
        return {"bos_token_id": self.bos, "eos_token_id": eos, "pad_token_id": self.pad}


def special_tokens(folder: Path, model_config: Mapping[str, Any]) -> SpecialTokens:
    """The special tokens of a checkpoint's tokenizer directory; the model's own where the tokenizer names none.

    Raises:
        CheckError: if an id is beyond the model's embedding.
    """
    tokenizer = _tokenizer(folder)
    config = _read_config(folder)
    rows = model_config["vocab_size"]

    def named(part: str) -> list[int]:
        text = _text(config.get(f"{part}_token"))
        id_ = None if text is None else tokenizer.token_to_id(text)
        of_model = [one for one in _ids(model_config.get(f"{part}_token_id")) if 0 <= one < rows]  # -1 stands for none
        return of_model if id_ is None else [id_]

    stop = list(dict.fromkeys([*Probes.read(folder).stop_ids, *named("eos")]))
    bos, pad = named("bos"), [*named("pad"), *reversed(stop)]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise CheckError(
            f"{folder}: the tokenizer has ids up to {largest}, but the model's embedding has {rows} rows; "
            "train with the tokenizer that belongs to the model"
        )
    return SpecialTokens(bos[0] if bos else None, pad[0] if pad else None, tuple(stop))


def tokenizer_files(folder: Path, special: SpecialTokens) -> dict[str, bytes]:
    """Contents by file name of the tokenizer directory to ship.

    tokenizer.json is shipped as it is and named as what to load (`PreTrainedTokenizerFast`), since classes made for
    one model rebuild parts of it in code. The chat template is a file and a key of tokenizer_config.json, for
    readers of either.
    """
    files = {name: (folder / name).read_bytes() for name in (*_COPIED, _MODEL) if (folder / name).is_file()}
    tokenizer = _tokenizer(folder)
    config = _read_config(folder)
    for key in ("auto_map", "backend", "is_local", "name_or_path", "processor_class", "tokenizer_file"):
        config.pop(key, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := config.pop("extra_special_tokens", None), list):
        config["additional_special_tokens"] = extra  # the list's name before Transformers 5
    if not config.get("pad_token") and special.pad is not None:
        config["pad_token"] = tokenizer.id_to_token(special.pad)
    if _TEMPLATE in files:
        config["chat_template"] = files[_TEMPLATE].decode("utf-8")
    elif isinstance(config.get("chat_template"), str):
        files[_TEMPLATE] = config["chat_template"].encode("utf-8")
    return {**files, _CONFIG: canonical_json(config)}


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / _TOKENIZER
    if not path.is_file():
        raise CheckError(f"{path}: missing, so the model could not be used; run prep and train again")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more particular
        raise CheckError(f"{path}: not a tokenizer ({error}); run prep and train again") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except ValueError as error:
        raise CheckError(f"{path}: not JSON ({error}); run prep and train again") from error


def _text(token: Any) -> str | None:
    # Written either as text or with the flags of an added token.
    content = token["content"] if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]
