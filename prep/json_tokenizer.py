"""A tokenizer.json, served by the tokenizers library."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import tokenizers

from pipelines.errors import ConfigError
from prep.encoded import Encoded
from prep.tokenizer_backend import AddedToken, Prefix
from prep.tokenizer_config import NAMED, added_by_config, token_text


class JsonTokenizer:
    """A tokenizer.json, served by the tokenizers library."""

    library = "tokenizers"

    def __init__(self, path: Path, content: bytes, config: Mapping[str, Any]) -> None:
        try:
            text = content.decode("utf-8")
            table = orjson.loads(text)
            self._prefixed = _load_json(text, config)
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"{path}: not a tokenizer.json that this tokenizers library reads: {error}") from error
        if table["model"].get("dropout"):
            raise ConfigError(f"{path}: model.dropout is set, so ids would be random; set it to null")
        added = self._prefixed.get_added_tokens_decoder()
        if alone := [token.content for token in added.values() if token.special and token.single_word]:
            raise ConfigError(f"{path}: special token {alone[0]!r} is single_word, which is not supported")
        self.added: Sequence[AddedToken] = [
            AddedToken(token.content, id_, token.special, token.lstrip, token.rstrip) for id_, token in added.items()
        ]
        self.vocab_size = max(self._prefixed.get_vocab(with_added_tokens=True).values()) + 1
        self.prefix: Prefix = _json_prefix(table)
        unknown = table["model"].get("unk_token")
        self.unknown_id: int | None = table["model"].get("unk_id") if unknown is None else self.id_of(unknown)
        self.adds_bos = self._begins_with_bos(config)
        self._bare = self._prefixed
        if self.prefix != "none":
            self._bare = _load_json(json.dumps(_without_prefix(table)), config)

    def encode(self, texts: Sequence[str], *, prefixed: bool) -> Encoded:
        tokenizer = self._prefixed if prefixed else self._bare
        try:
            found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except BaseException as error:
            # A regex that takes too long for a text ends in Rust's own kind of error, which is no Exception.
            if type(error).__module__ != "pyo3_runtime":
                raise
            finding = f"the tokenizer gives up on its text: {error}; mend the text, or leave it out"
            raise UntokenizedError(finding) from None
        return Encoded.of_lists([one.ids for one in found])

    def offsets(self, text: str, *, prefixed: bool) -> tuple[list[int], list[tuple[int, int]]]:
        found = (self._prefixed if prefixed else self._bare).encode(text, add_special_tokens=False)
        places: list[tuple[int, int]] = []
        end = 0
        offsets = found.offsets
        if not prefixed and offsets[:1] == [(0, 0)]:  # a normalizer that puts nothing before a text loses a character
            offsets = [(0, offsets[1][0] if len(offsets) > 1 else len(text)), *offsets[1:]]
        for first, last in offsets:  # whitespace that a post-processor trimmed off is of the token behind it
            places.append((min(first, end), last))
            end = max(end, last)
        return found.ids, places

    def table(self) -> Mapping[str, Any]:
        # With the tokens that tokenizer_config.json adds.
        table: Mapping[str, Any] = orjson.loads(self._prefixed.to_str())
        return table

    def decode(self, ids: list[int]) -> str:
        return str(self._prefixed.decode(ids, skip_special_tokens=False))

    def id_of(self, text: str) -> int | None:
        id_ = self._prefixed.token_to_id(text)
        return None if id_ is None else int(id_)

    def _begins_with_bos(self, config: Mapping[str, Any]) -> bool:
        bos = token_text(config.get("bos_token"))
        ids = self._prefixed.encode("", add_special_tokens=True).ids
        return bos is not None and ids[:1] == [self.id_of(bos)]


def _load_json(text: str, config: Mapping[str, Any]) -> Any:
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for id_, entry in sorted(added_by_config(config).items()):
        if entry["content"] not in known:
            tokenizer.add_tokens([tokenizers.AddedToken(**entry)])
            if (given := tokenizer.token_to_id(entry["content"])) != id_:
                raise ValueError(f"tokenizer_config.json gives {entry['content']!r} the id {id_}, the file {given}")
    # The tokens with a part to play are special even where the file forgot to say so.
    named = [name for part in NAMED if (name := token_text(config.get(part))) is not None]
    listed = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    named += [
        name for entry in (listed if isinstance(listed, list) else listed.values()) if (name := token_text(entry))
    ]
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    tokenizer.add_special_tokens([name for name in dict.fromkeys(named) if name not in special])
    tokenizer.encode_special_tokens = True
    return tokenizer


def _json_prefix(table: Mapping[str, Any]) -> Prefix:
    schemes: set[Prefix] = {_scheme(step) for step in _steps(table)}
    return "always" if "always" in schemes else "first" if "first" in schemes else "none"


def _scheme(step: Mapping[str, Any]) -> Prefix:
    match step["type"]:
        case "Prepend":
            return "always"
        case "ByteLevel":
            return "always" if step.get("add_prefix_space", True) else "none"
        case "Metaspace":
            old = "always" if step.get("add_prefix_space", True) else "never"
            scheme = step.get("prepend_scheme", old)
            return "always" if scheme == "always" else "first" if scheme == "first" else "none"
    return "none"


def _without_prefix(table: Mapping[str, Any]) -> Any:
    bare = json.loads(json.dumps(table))
    for step in _steps(bare):
        if step["type"] == "Prepend":
            step["prepend"] = ""
        elif step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
        elif step["type"] == "Metaspace":
            step.pop("add_prefix_space", None)
            step["prepend_scheme"] = "never"
    return bare


def _steps(table: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Normalizers and pre-tokenizers, sequences opened."""
    left = [step for step in (table.get("normalizer"), table.get("pre_tokenizer")) if step]
    while left:
        step = left.pop(0)
        inner = step.get("normalizers", step.get("pretokenizers"))
        if inner is None:
            yield step
        else:
            left += inner


class UntokenizedError(ValueError):
    """A text that the library cannot tokenize."""
