"""A sentencepiece tokenizer.model, served by the sentencepiece library."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from pipelines import sentencepiece_json
from pipelines.errors import ConfigError
from pipelines.sentencepiece_model import Kind, SentencePieceModel, changed
from prep.encoded import Encoded
from prep.tokenizer_backend import AddedToken, Prefix
from prep.tokenizer_config import added_by_config


class SentencePieceTokenizer:
    """A sentencepiece tokenizer.model, served by the sentencepiece library."""

    library = "sentencepiece"

    def __init__(self, path: Path, data: bytes, config: Mapping[str, Any]) -> None:
        try:
            model = SentencePieceModel.parse(data)
            sentencepiece_json.check(model)
        except ValueError as error:
            raise ConfigError(
                f"{path}: {error}; let save_pretrained of Transformers make a tokenizer.json of it, and use that"
            ) from error
        listed = [
            AddedToken(entry["content"], id_, entry.get("special", False), entry["lstrip"], entry["rstrip"])
            for id_, entry in sorted(added_by_config(config).items())
        ]
        taken = {token.id for token in listed}
        own = [
            AddedToken(piece.text, id_, special=True)
            for id_, piece in enumerate(model.pieces)
            if piece.kind in (Kind.CONTROL, Kind.UNKNOWN) and id_ not in taken
        ]
        self.added: Sequence[AddedToken] = sorted([*listed, *own], key=lambda token: token.id)
        self.vocab_size = max(len(model.pieces), *(token.id + 1 for token in self.added))
        self.prefix: Prefix = "none" if not model.dummy_prefix else "always" if config.get("legacy", True) else "first"
        self.adds_bos = bool(config.get("add_bos_token", True))
        kinds = [piece.kind for piece in model.pieces]
        self.unknown_id: int | None = kinds.index(Kind.UNKNOWN) if Kind.UNKNOWN in kinds else None
        # Added tokens often stand on spare pieces such as [UNUSED_TOKEN_145]; as control pieces these are out of
        # reach of text, which would otherwise spell a special token under its old name.
        spare = {token.id for token in self.added if token.id < len(model.pieces)}
        data = changed(data, control={id_ for id_ in spare if model.pieces[id_].kind is not Kind.UNKNOWN})
        sentencepiece.set_min_log_level(2)  # or it reports pieces it ignores on every load
        self._prefixed = sentencepiece.SentencePieceProcessor(model_proto=data)
        self._bare = self._prefixed
        if model.dummy_prefix:
            self._bare = sentencepiece.SentencePieceProcessor(model_proto=changed(data, dummy_prefix=False))
        self._plain_added = {token.text: token.id for token in self.added if not token.special}
        names = sorted(self._plain_added, key=len, reverse=True)
        self._plain_pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        self._text_of = {token.id: token.text for token in self.added}

    def encode(self, texts: Sequence[str], *, prefixed: bool) -> Encoded:
        pattern = self._plain_pattern
        if pattern is None or not any(map(pattern.search, texts)):
            processor = self._prefixed if prefixed else self._bare
            return Encoded.of_lists(processor.encode(list(texts), num_threads=1))
        return Encoded.of_lists([self._encode_with_added(text, prefixed) for text in texts])

    def offsets(self, text: str, *, prefixed: bool) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        at = 0
        for part in filter(None, self._plain_pattern.split(text) if self._plain_pattern else [text]):
            if part in self._plain_added:
                ids.append(self._plain_added[part])
                places.append((at, at + len(part)))
                prefixed = self.prefix == "always"
            else:
                processor = self._prefixed if prefixed else self._bare
                own = processor.encode(part)
                ids += own
                places += [
                    (at + first, at + last) for first, last in _characters(part, processor.encode(part, out_type=str))
                ]
            at += len(part)
        return ids, places

    def table(self) -> None:
        return None

    def _encode_with_added(self, text: str, prefixed: bool) -> list[int]:
        assert self._plain_pattern is not None
        ids: list[int] = []
        for part in filter(None, self._plain_pattern.split(text)):
            if part in self._plain_added:
                ids.append(self._plain_added[part])
                prefixed = self.prefix == "always"
            else:
                ids += (self._prefixed if prefixed else self._bare).encode(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        texts: list[str] = []
        run: list[int] = []
        for id_ in [*ids, -1]:
            if id_ >= 0 and id_ not in self._text_of:
                run.append(id_)
                continue
            if run:
                texts.append((self._bare if texts and self.prefix == "first" else self._prefixed).decode(run))
                run = []
            texts += [self._text_of[id_]] if id_ >= 0 else []
        return "".join(texts)

    def id_of(self, text: str) -> int | None:
        return next((token.id for token in self.added if token.text == text), None)


def _characters(text: str, pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Begin and end of the characters of each piece of sentencepiece; of all where it changed the text."""
    parts = [
        bytes.fromhex(piece[3:5]) if _BYTE.fullmatch(piece) else piece.replace("\u2581", " ").encode()
        for piece in pieces
    ]
    encoded = text.encode()
    whole = b"".join(parts)
    shift = len(whole) - len(encoded)
    if shift not in (0, 1) or whole[shift:] != encoded or (shift and whole[:1] != b" "):
        return [(0, len(text))] * len(pieces)
    ends = np.cumsum([0, *map(len, parts)]) - shift
    starts = np.frombuffer(encoded, np.uint8) & 0xC0 != 0x80  # a character begins with each of these bytes
    count = np.concatenate([[0], np.cumsum(starts)])  # characters that begin before a byte
    return [
        (int(count[first + 1]) - 1 if first < last else int(count[first]), int(count[last]))
        for first, last in pairwise(ends.clip(0).tolist())
    ]


_BYTE = re.compile("<0x[0-9A-F]{2}>")
